"""Make small copies of a folder of pictures for training: longest side at most `--max-side`, names unchanged.

    python -m data.prepare images SOURCE --out FOLDER

If FOLDER lies beside the files of a prepared ArtEmis, only the pictures that they name are copied, as with
`--out datasets/artemis_v1/images`; --no-only-annotated copies all. Links out of SOURCE need --follow-links.

Pictures are opened as training opens them (`data.images.open_image`: upright, transparency on white, 8 bits) and
reduced by Lanczos resampling. An upright RGB or grey JPEG that is small enough is copied byte for byte. Names with a
JPEG suffix get JPEG data with colors at full resolution (4:4:4), all others PNG data, since annotations may refer to
these names. Color profiles are neither applied, as in training, nor kept: one of CMYK or grey would not fit the copy.

A copy has the modification time of its picture, so a later run makes only copies that are missing or out of date.
FOLDER also gets `left_out.csv` (pictures that cannot be used, with the reason) and `manifest.json` (settings, counts).
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from common.errors import UserError
from common.files import write_csv, write_json
from common.progress import progress
from common.reading import read_json
from data.images import MAX_PIXELS, ImageError, open_image
from data.prepare.parallel import DIED, add_workers, count, in_processes
from data.prepare.sources import annotation_files, select

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
UPRIGHT = 1  # EXIF orientation
LEFT_OUT, MANIFEST, UNFINISHED = "left_out.csv", "manifest.json", ".unfinished"
HOW = {"resized": "reduced", "converted": "converted in their size", "copied": "copied unchanged"}
NAME_ERRORS = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL}  # the file system does not allow this name


class Settings(NamedTuple):
    """What the pixels of a copy depend on; other settings replace all copies."""

    max_side: int  # pixels
    quality: int  # of JPEG, 1..100


@dataclass(slots=True)
class Outcome:
    """Results for the pictures of a folder, by name."""

    copies: dict[str, str] = field(default_factory=dict)  # a key of HOW, or "earlier" for that of an earlier run
    left_out: dict[str, str] = field(default_factory=dict)  # reason
    not_annotated: int = 0  # pictures that are not wanted

    @property
    def counts(self) -> dict[str, int]:
        how = Counter(self.copies.values())
        return {key: how[key] for key in ("earlier", *HOW)}


def copy_picture(name: str, *, source: Path, out: Path, settings: Settings, max_pixels: int) -> str:
    """Make the copy of one picture; return how (a key of HOW), or why there is none.

    Args:
        name: relative to both folders.

    Raises:
        OSError: the copy cannot be written (disk full, no permission).
    """
    path = source / name
    try:
        time = path.stat().st_mtime_ns
        data, how = _copy_of(path, settings, max_pixels)
    except ImageError as error:
        return str(error)
    except MemoryError:
        return "there is not enough memory for it"
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    try:
        _write(out / name, data, time, out / UNFINISHED)
    except OSError as error:
        if error.errno not in NAME_ERRORS:
            raise
        return f"the file system does not allow this name for the copy ({error.strerror})"
    return how


def _copy_of(path: Path, settings: Settings, max_pixels: int) -> tuple[bytes, str]:
    picture, how = open_image(path, max_pixels=max_pixels), "converted"
    longest = max(picture.size)
    if longest > settings.max_side:
        size = tuple(max(1, round(side * settings.max_side / longest)) for side in picture.size)
        picture, how = picture.resize(size, Image.Resampling.LANCZOS), "resized"
    elif _is_plain_jpeg(path):
        return path.read_bytes(), "copied"
    buffer = io.BytesIO()
    if path.suffix.lower() in JPEG_SUFFIXES:
        picture.save(buffer, "JPEG", quality=settings.quality, subsampling="4:4:4", optimize=True)
    else:
        picture.save(buffer, "PNG")
    return buffer.getvalue(), how


def _is_plain_jpeg(path: Path) -> bool:
    """Return whether a picture is a JPEG whose pixels need no conversion or rotation."""
    try:
        with Image.open(path, formats=("JPEG",)) as image:
            upright = image.getexif().get(Image.ExifTags.Base.Orientation, UPRIGHT) == UPRIGHT
            return image.format == "JPEG" and image.mode in ("RGB", "L") and upright
    except Exception:  # another format, or unreadable EXIF data, which the copy must not have
        return False


def _write(path: Path, data: bytes, time: int, unfinished: Path) -> None:
    """Write a file atomically, with `time` (ns) as its modification time.

    Unfinished files are in a folder of their own, since a long name with a suffix could become too long.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished.mkdir(exist_ok=True)
    temporary = unfinished / f"{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(data)
        os.utime(temporary, ns=(time, time))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def copy_pictures(
    source: Path,
    out: Path,
    settings: Settings,
    *,
    max_pixels: int,
    workers: int,
    annotations: list[Path] | None = None,
    follow_links: bool = False,
) -> Outcome:
    """Copy the pictures below `source` to the same names below `out`, except for copies that are up to date.

    Hidden files and folders are ignored.

    Args:
        annotations: files of a prepared ArtEmis that name the wanted pictures; None or empty: all.

    Raises:
        UserError: the folders cannot be used, or a copy cannot be written; the other copies stay.
    """
    source, out = _folders(source, out)
    names, left_out, not_annotated = select(source, annotations or [], follow_links=follow_links)
    outcome = Outcome(left_out=left_out, not_annotated=not_annotated)
    try:
        _begin(out, settings, names)
        outcome.copies = {name: "earlier" for name in names if _is_current(source / name, out / name)}
        outdated = [name for name in names if name not in outcome.copies]
        copy = partial(copy_picture, source=source, out=out, settings=settings, max_pixels=max_pixels)
        with progress(len(names), "making copies", unit="picture", initial=len(outcome.copies)) as bar:
            for name, result in in_processes(copy, outdated, workers=workers):
                bar.update()
                if result in HOW:
                    outcome.copies[name] = result
                else:
                    outcome.left_out[name] = result or DIED
                    _remove(out / name)  # of an earlier version of the picture
        _write_reports(outcome, source, out, settings, max_pixels)
    except OSError as error:
        raise UserError(
            f"writing into {out} failed: {error.strerror or error}. {len(outcome.copies):,} of {len(names):,} pictures "
            "are done and stay; solve this and run the same command again to continue"
        ) from error
    return outcome


def _folders(source: Path, out: Path) -> tuple[Path, Path]:
    """Return both as absolute paths without symbolic links; `out` need not exist."""
    if not source.is_dir():
        raise UserError(f"{source}: there is no such folder of pictures")
    source, real = Path(os.path.realpath(source)), Path(os.path.realpath(out))
    if real.is_relative_to(source) or source.is_relative_to(real):
        raise UserError(f"--out {out} and {source} contain one another; give separate folders")
    if real.exists() and not real.is_dir():
        raise UserError(f"--out {out} is not a folder")
    if real.is_dir() and any(real.iterdir()) and _settings_of(real) is None:
        raise UserError(f"--out {out} contains other files, which copies could replace; give a new or an empty folder")
    return source, real


def _settings_of(out: Path) -> dict[str, object] | None:
    """Return the settings of the copies in `out`; None if it was not made by this command."""
    try:
        found = read_json(out / MANIFEST)
        return {key: found[key] for key in Settings._fields}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _begin(out: Path, settings: Settings, names: list[str]) -> None:
    """Remove copies of other settings and record the new ones."""
    if _settings_of(out) != settings._asdict():
        for name in names:
            _remove(out / name)
        write_json(out / MANIFEST, settings._asdict())


def _remove(path: Path) -> None:
    if os.path.lexists(path):  # False for a name that the file system does not allow
        path.unlink()


def _is_current(picture: Path, copy: Path) -> bool:
    try:
        info = copy.stat()
        return info.st_size > 0 and info.st_mtime_ns == picture.stat().st_mtime_ns
    except OSError:
        return False


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


def add_parser(commands: argparse._SubParsersAction) -> None:
    summary = "small copies of a folder of pictures"
    form = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser("images", help=summary, description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="folder of pictures with all its subfolders")
    add("--out", type=Path, required=True, metavar="FOLDER", help="output folder")
    add("--only-annotated", action=argparse.BooleanOptionalAction, default=True,
        help="of the pictures, copy those in artEmisX_*.json beside FOLDER, if there are such files")  # fmt: skip
    add("--follow-links", action="store_true", help="follow symbolic links out of SOURCE")
    add("--max-side", type=count, default=600, help="longest side of a copy in pixels (%(default)s)")
    add("--quality", type=count, default=95, help="of JPEG, 1 to 100 (%(default)s)")
    add("--max-pixels", type=count, default=MAX_PIXELS, help=f"larger pictures are left out ({MAX_PIXELS:,})")
    add_workers(parser)
    parser.set_defaults(
        run=run, interrupted="interrupted; the copies so far stay, run the same command again to continue"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.quality > 100:
        raise UserError(f"--quality {arguments.quality} must be 1 to 100")
    settings = Settings(arguments.max_side, arguments.quality)
    source, out = arguments.source, arguments.out
    outcome = copy_pictures(
        source,
        out,
        settings,
        max_pixels=arguments.max_pixels,
        workers=arguments.workers,
        annotations=annotation_files(out.resolve().parent) if arguments.only_annotated else None,
        follow_links=arguments.follow_links,
    )
    counts = outcome.counts
    print(f"{len(outcome.copies):,} pictures in {out}, {counts['earlier']:,} of them from earlier runs")
    for key, words in HOW.items():
        print(f"{counts[key]:>9,} {words}")
    if outcome.not_annotated:
        print(f"{outcome.not_annotated:>9,} without an annotation, not copied (--no-only-annotated copies them too)")
    if outcome.left_out:
        print(f"{len(outcome.left_out):>9,} left out, each with its reason in {out / LEFT_OUT}")
    return 0
