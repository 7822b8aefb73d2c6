"""The checkpoints of a run on disk: listing, checksums and retention.

index.json is written for people and other programs; EmoScribe reads the folders themselves.
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
    """A checkpoint of a run."""

    folder: Path
    value: float | None = None  # of the monitored metric; None if the checkpoint was not written at a validation
    lower_is_better: bool = True
    readable: bool = True  # False if checkpoint.json is damaged, so that it might have been the best

    @property
    def step(self) -> int:
        return int(self.folder.name.removeprefix("step-"))


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def entries(root: Path) -> list[Entry]:
    """Return every checkpoint in the folder `root`, the newest first."""
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
    finite = isinstance(value, float) and math.isfinite(value)  # an integer may be too large for a float
    return Entry(folder, value if finite else None, lower)


def best_first(found: Iterable[Entry]) -> list[Entry]:
    """Return the entries with a value, the best first, of equal values the earlier first."""
    valued = [entry for entry in found if entry.value is not None]
    return sorted(valued, key=lambda e: (e.value if e.lower_is_better else -e.value, e.step))


def retain(root: Path, step: int, *, best: int, last: int, discarded: Collection[int] = ()) -> None:
    """Remove checkpoints that are neither among the best nor among the last, once that of `step` is written.

    Those of later steps and of the steps `discarded` are removed too: training went back to an earlier checkpoint.
    """
    found = [entry for entry in entries(root) if entry.step <= step and entry.step not in discarded]
    ranked = best_first(found)[:best]
    retained = {entry.folder for entry in (*found[: max(last, 1)], *ranked)}
    index = {"last": folder_name(step), "best": [{"name": e.folder.name, "value": e.value} for e in ranked]}
    write_json(root / INDEX, index)
    for entry in entries(root):
        if entry.folder not in retained:
            remove_folder(entry.folder)


def write_sums(folder: Path) -> None:
    """Write the checksums of all files in `folder` into SHA256SUMS."""
    lines = [f"{digest_of(path)}  {path.name}\n" for path in sorted(folder.iterdir()) if path.name != SUMS]
    write_text(folder / SUMS, "".join(lines))


def find_damage(folder: Path, *, ignore: tuple[str, ...] = ()) -> str | None:
    """Describe the first file that is missing or does not match its checksum; None if there is none.

    Without SHA256SUMS, which users may delete after changing a file, nothing is checked.
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
                return f"{path} lists {name!r}, which is not a file name"
            if name not in ignore and digest_of(folder / name) != digest:
                return f"{folder / name} was changed or damaged (its checksum in {SUMS} differs)"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (OSError, ValueError) as error:
        return f"{path} or a file in it cannot be read ({error})"
    return None


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    require_file(path, largest=sys.maxsize)
    return sha256(path)
