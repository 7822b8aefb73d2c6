"""The checkpoints of a run on disk: which there are, which are as they were written, which are kept.

The folders are what counts; index.json is written from them, for people and other programs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from common.files import remove_folder, sha256, write_json, write_text
from common.reading import read_bytes, read_json, require_file

SUMS = "SHA256SUMS"  # `sha256sum -c SHA256SUMS` reads it too
INDEX = "index.json"
LARGEST_SUMS = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A checkpoint of a run.

    Args:
        value: of the monitored figure; None where the checkpoint was not made at a validation.
        readable: False where checkpoint.json is damaged, so that it might have been the best.
    """

    folder: Path
    value: float | None = None
    lower_is_better: bool = True
    readable: bool = True

    @property
    def step(self) -> int:
        return int(self.folder.name.removeprefix("step-"))


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def entries(root: Path) -> list[Entry]:
    """Every checkpoint in the folder `root`, the newest first."""
    folders = [p for p in root.glob("step-*") if p.name.removeprefix("step-").isdecimal() and p.is_dir()]
    return sorted(map(_entry, folders), key=lambda entry: entry.step, reverse=True)


def _entry(folder: Path) -> Entry:
    try:
        monitored = read_json(folder / "checkpoint.json")["monitored"]
        value, lower = monitored["value"], bool(monitored["lower_is_better"])
    except (OSError, ValueError):
        return Entry(folder, readable=False)
    except (KeyError, TypeError):
        return Entry(folder)
    usable = isinstance(value, float) and math.isfinite(value)  # an integer may be too large for a float
    return Entry(folder, value if usable else None, lower)


def best_first(found: Iterable[Entry]) -> list[Entry]:
    """Those that have a value; of equals the earlier."""
    valued = [entry for entry in found if entry.value is not None]
    return sorted(valued, key=lambda e: (e.value if e.lower_is_better else -e.value, e.step))


def retain(root: Path, step: int, *, best: int, last: int, given_up: Collection[int] = ()) -> None:
    """Remove the checkpoints that are neither among the best nor among the last, once that of `step` is written.

    Those of later steps, and of the steps `given_up`, are of a course that was left: training went back to an earlier
    checkpoint.
    """
    found = [entry for entry in entries(root) if entry.step <= step and entry.step not in given_up]
    ranked = best_first(found)[:best]
    kept = {entry.folder.name for entry in (*found[: max(last, 1)], *ranked)}
    index = {"last": folder_name(step), "best": [{"name": e.folder.name, "value": e.value} for e in ranked]}
    write_json(root / INDEX, index)
    for entry in entries(root):
        if entry.folder.name not in kept:
            remove_folder(entry.folder)


# --- checksums -------------------------------------------------------------------------------------------------------


def write_sums(folder: Path) -> None:
    """The checksums of all files in `folder`, into the file SHA256SUMS."""
    lines = [f"{digest_of(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    write_text(folder / SUMS, "".join(lines))


def damage(folder: Path, *, leave_out: tuple[str, ...] = ()) -> str | None:
    """What is wrong with the first file that is not as it was written, or None.

    Without SHA256SUMS, which users may delete after changing a file, a checkpoint is taken as it is.
    """
    path = folder / SUMS
    if not path.exists():
        return None
    try:
        lines = read_bytes(path, largest=LARGEST_SUMS).decode("ascii").splitlines()
        sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
        if not sums:
            return f"{path} is empty"
        for name, digest in sums.items():
            if name in ("", ".", "..") or "/" in name or "\\" in name:
                return f"{path} lists {name!r}, which is no file beside it"
            if name not in leave_out and digest_of(folder / name) != digest:
                return f"{folder / name} is not as it was written (its checksum in {SUMS} is another)"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (OSError, ValueError) as error:
        return f"{path} and the files that it lists cannot be read ({error})"
    return None


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    require_file(path, largest=sys.maxsize)
    return sha256(path)
