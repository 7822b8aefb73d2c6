"""Small copies of a folder of pictures, for training: the longest side at most `--max-side`, the names as they were.

    python -m data.prepare images SOURCE --out FOLDER

Links out of SOURCE are not followed.

Every picture is opened as training opens it (`data.images.open_image`: upright, transparency on white, 8 bits) and made
smaller by Lanczos resampling. What need not change, an upright RGB or grey JPEG that is small enough, is copied
byte for byte. A name that ends as JPEG's do gets JPEG data, with colours at full resolution (4:4:4), and any other
name, which annotations may refer to, gets PNG data. Colour profiles are neither applied, as in training, nor kept: one
of CMYK or grey would be wrong for the copy.

A copy has the time of its picture, so a later run makes only the copies that are missing or whose picture has another
time. In FOLDER, beside the copies: `left_out.csv` (what could not be used, and why), `manifest.json` (settings and
counts).
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from common.errors import UserError
from common.files import write_csv, write_json
from common.progress import progress
from common.reading import read_json
from data.images import MAX_PIXELS, ImageError, find_pictures, open_image
from data.prepare.parallel import DIED, add_workers, count, in_processes

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
UPRIGHT = 1  # EXIF orientation
LINK_OUT = "a symbolic link out of the folder is not followed"
LEFT_OUT, MANIFEST, UNFINISHED = "left_out.csv", "manifest.json", ".unfinished"
HOW = {"resized": "made smaller", "converted": "written anew in their size", "copied": "copied as they are"}
NAME_ERRORS = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL}  # a file system that cannot have this name


class Settings(NamedTuple):
    """What the pixels of a copy depend on; copies of other settings are made anew."""

    max_side: int  # pixels
    quality: int  # of JPEG, 1..100


class Job(NamedTuple):
    source: Path  # folder
    out: Path  # folder
    name: str  # of the picture, relative to both
    settings: Settings
    max_pixels: int


@dataclass(slots=True)
class Outcome:
    """What became of a folder's pictures."""

    copies: dict[str, str] = field(default_factory=dict)  # by name: a key of HOW, or "" for one from before
    left_out: dict[str, str] = field(default_factory=dict)  # reason by name

    @property
    def counts(self) -> dict[str, int]:
        """Copies from before, and those made now by how."""
        how = Counter(self.copies.values())
        return {"earlier": how[""], **{key: how[key] for key in HOW}}


# --- one picture ---------------------------------------------------------------------------------------------------


def copy_picture(job: Job) -> str:
    """Make the copy of one picture; return how (a key of HOW), or why there is none.

    Raises:
        OSError: the copy cannot be written (disk full, no permission).
    """
    path = job.source / job.name
    try:
        time = path.stat().st_mtime_ns
        data, how = _copy_of(path, job.settings, job.max_pixels)
    except ImageError as error:
        return str(error)
    except MemoryError:
        return "there is not enough memory for it"
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    try:
        _write(job.out / job.name, data, time, job.out / UNFINISHED)
    except OSError as error:
        if error.errno not in NAME_ERRORS:
            raise
        return f"its copy cannot have this name here ({error.strerror})"
    return how


def _copy_of(path: Path, settings: Settings, max_pixels: int) -> tuple[bytes, str]:
    picture = open_image(path, max_pixels=max_pixels)
    longest = max(picture.size)
    if longest <= settings.max_side:
        if _is_plain_jpeg(path):
            return path.read_bytes(), "copied"
        return _encoded(picture, path.suffix, settings), "converted"
    size = tuple(max(1, round(side * settings.max_side / longest)) for side in picture.size)
    return _encoded(picture.resize(size, Image.Resampling.LANCZOS), path.suffix, settings), "resized"


def _is_plain_jpeg(path: Path) -> bool:
    """Whether the picture, which can be opened, is a JPEG that its pixels can be read from as they lie."""
    try:
        with Image.open(path, formats=("JPEG",)) as image:
            upright = image.getexif().get(Image.ExifTags.Base.Orientation, UPRIGHT) == UPRIGHT
            return image.format == "JPEG" and image.mode in ("RGB", "L") and upright
    except Exception:  # another format, or as with any unreadable EXIF data; the copy shall have none
        return False


def _encoded(picture: Image.Image, suffix: str, settings: Settings) -> bytes:
    buffer = io.BytesIO()
    if suffix.lower() in JPEG_SUFFIXES:
        picture.save(buffer, "JPEG", quality=settings.quality, subsampling="4:4:4", optimize=True)
    else:
        picture.save(buffer, "PNG")
    return buffer.getvalue()


def _write(path: Path, data: bytes, time: int, unfinished: Path) -> None:
    """Atomic, with `time` (ns) as that of its last change.

    What is being written lies in `unfinished`: beside its own, a long name could get too long.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished.mkdir(exist_ok=True)
    beside = unfinished / f"{os.getpid()}.tmp"
    beside.unlink(missing_ok=True)
    try:
        with beside.open("xb") as file:
            file.write(data)
        os.utime(beside, ns=(time, time))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


# --- all of them ---------------------------------------------------------------------------------------------------


def copy_pictures(source: Path, out: Path, settings: Settings, *, max_pixels: int, workers: int) -> Outcome:
    """Copies of every picture below `source` under the same names below `out`, but for those that are there already.

    Hidden files and folders are no pictures; folders that are symbolic links are not entered, but reported.

    Raises:
        UserError: folders that cannot be used so; a copy that cannot be written, after which the others stay.
    """
    source, out = _folders(source, out)
    outcome, outside = Outcome(left_out=_closed_folders(source)), []
    names = [os.path.relpath(path, source) for path in _pictures(source, outside)]
    outcome.left_out |= {os.path.relpath(path, source): LINK_OUT for path in outside}
    try:
        _begin(out, settings, names)
        outcome.copies = {name: "" for name in names if _is_current(source / name, out / name)}
        jobs = [Job(source, out, name, settings, max_pixels) for name in names if name not in outcome.copies]
        with progress(len(names), "making copies", unit="picture", initial=len(outcome.copies)) as bar:
            for job, result in in_processes(copy_picture, jobs, workers=workers):
                bar.update()
                if result in HOW:
                    outcome.copies[job.name] = result
                    continue
                outcome.left_out[job.name] = result or DIED
                _remove(out / job.name)  # of what was a picture once
        _write_reports(outcome, source, out, settings, max_pixels)
    except OSError as error:
        raise UserError(
            f"writing into {out} failed: {error.strerror or error}. {len(outcome.copies):,} of {len(names):,} pictures "
            "are done and stay; when that is mended, the same command goes on from there"
        ) from error
    return outcome


def _folders(source: Path, out: Path) -> tuple[Path, Path]:
    """Both as absolute paths without symbolic links; `out` may be created."""
    if not source.is_dir():
        raise UserError(f"{source}: there is no such folder of pictures")
    source, real = Path(os.path.realpath(source)), Path(os.path.realpath(out))
    if real.is_relative_to(source) or source.is_relative_to(real):
        raise UserError(f"--out {out} must be a folder apart from {source}, neither inside it nor around it")
    if real.exists() and not real.is_dir():
        raise UserError(f"--out {out} is not a folder")
    if real.is_dir() and any(real.iterdir()) and _settings_of(real) is None:
        raise UserError(f"--out {out} holds other files, which copies could replace; name a new or an empty folder")
    return source, real


def _settings_of(out: Path) -> dict[str, object] | None:
    """The settings of the copies in `out`; None where they were not made by this command."""
    try:
        found = read_json(out / MANIFEST)
        return {key: found[key] for key in Settings._fields}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _begin(out: Path, settings: Settings, names: list[str]) -> None:
    """Remove copies of other settings, and record these."""
    if _settings_of(out) == settings._asdict():
        return
    for name in names:
        _remove(out / name)
    write_json(out / MANIFEST, settings._asdict())


def _remove(path: Path) -> None:
    if os.path.lexists(path):  # False for a name that this file system cannot hold
        path.unlink()


def _is_current(picture: Path, copy: Path) -> bool:
    try:
        info = copy.stat()
        return info.st_size > 0 and info.st_mtime_ns == picture.stat().st_mtime_ns
    except OSError:
        return False


def _pictures(source: Path, outside: list[Path]) -> list[Path]:
    try:
        return find_pictures(source, outside=outside)
    except UserError:
        raise UserError(f"{source}: the folder holds no picture") from None


def _closed_folders(source: Path) -> dict[str, str]:
    """The folders that no picture is looked for in, with the reason."""
    closed: dict[str, str] = {}

    def refused(error: OSError) -> None:
        closed[os.path.relpath(error.filename, source)] = f"the folder cannot be read ({error.strerror})"

    for folder, subfolders, _ in os.walk(source, onerror=refused):
        for path in (os.path.join(folder, name) for name in subfolders):  # noqa: PTH118 — 100,000 Paths would be slow
            if os.path.islink(path):  # noqa: PTH114
                closed[os.path.relpath(path, source)] = "a folder that is a symbolic link is not entered"
    return closed


def _write_reports(outcome: Outcome, source: Path, out: Path, settings: Settings, max_pixels: int) -> None:
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    write_csv(out / LEFT_OUT, ("image", "reason"), sorted(outcome.left_out.items()))
    manifest = {
        "source": str(source),
        **settings._asdict(),
        "max_pixels": max_pixels,
        "resampling": "Lanczos",
        "jpeg_subsampling": "4:4:4",
        "pictures": len(outcome.copies),
        **outcome.counts,
        "left_out": len(outcome.left_out),
        "bytes": sum((out / name).stat().st_size for name in outcome.copies),
        "source_bytes": sum((source / name).stat().st_size for name in outcome.copies),
    }
    write_json(out / MANIFEST, manifest)


# --- the command ---------------------------------------------------------------------------------------------------


def add_parser(commands: argparse._SubParsersAction) -> None:
    summary = "small copies of a folder of pictures"
    form = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser("images", help=summary, description=__doc__, formatter_class=form)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of pictures, with all its subfolders")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the copies go")
    parser.add_argument("--max-side", type=count, default=600, help="longest side of a copy in pixels (default: 600)")
    parser.add_argument("--quality", type=count, default=95, help="of JPEG, 1 to 100 (default: 95)")
    parser.add_argument(
        "--max-pixels", type=count, default=MAX_PIXELS, help=f"larger ones are left out (default: {MAX_PIXELS:,})"
    )
    add_workers(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.quality > 100:
        raise UserError(f"--quality {arguments.quality} must be 1 to 100")
    settings = Settings(arguments.max_side, arguments.quality)
    limits = {"max_pixels": arguments.max_pixels, "workers": arguments.workers}
    try:
        outcome = copy_pictures(arguments.source, arguments.out, settings, **limits)
    except KeyboardInterrupt:
        print("interrupted; what is done stays, and the same command goes on from there", file=sys.stderr)
        return 130
    print("\n".join(_summary(outcome, arguments.out)))
    return 0


def _summary(outcome: Outcome, out: Path) -> Iterator[str]:
    counts = outcome.counts
    yield f"{len(outcome.copies):,} pictures in {out}, {counts['earlier']:,} of them from before"
    yield from (f"{counts[key]:>9,} {words}" for key, words in HOW.items())
    if outcome.left_out:
        yield f"{len(outcome.left_out):>9,} left out, each with its reason in {out / LEFT_OUT}"
