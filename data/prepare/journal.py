"""What copies have been made from what, a line each, so that a run that was cut off goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, NamedTuple

from files import write_text
from foreign import read_bytes

NAME = "copies.jsonl"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the pixels of a copy depend on; copies of other settings are made anew."""

    max_side: int  # pixels
    quality: int  # of JPEG, 1..100


class Copy(NamedTuple):
    """A finished copy."""

    name: str  # relative to both folders
    how: str  # resized, converted or copied
    source_size: int  # bytes
    source_time: int  # of its last change, nanoseconds
    size: int  # bytes

    def is_current(self, source: Path, out: Path) -> bool:
        """Whether the copy is still there, and the picture has not changed since it was made."""
        try:
            info, size = (source / self.name).stat(), (out / self.name).stat().st_size
        except OSError:
            return False
        return (info.st_size, info.st_mtime_ns, size) == (self.source_size, self.source_time, self.size)


def read(out: Path, settings: Settings) -> dict[str, Copy]:
    """The copies in `out`, by name, if they were made with these settings.

    Raises:
        OSError: the journal cannot be read.
    """
    try:
        lines = read_bytes(out / NAME).decode("ascii", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    if not lines or _parsed(lines[0]) != asdict(settings):
        return {}
    records = map(_parsed, lines[1:])
    return {r["name"]: Copy(**r) for r in records if _is_copy(r)}


def _is_copy(record: object) -> bool:
    if not isinstance(record, dict) or record.keys() != set(Copy._fields):
        return False
    texts, numbers = [record["name"], record["how"]], [record[key] for key in Copy._fields[2:]]
    return all(type(text) is str for text in texts) and all(type(number) is int for number in numbers)


def begin(out: Path, settings: Settings, copies: dict[str, Copy]) -> IO[str]:
    """A new journal with these copies, open for more; what `add` writes is on disk at once."""
    text = "".join(_line(value) for value in (asdict(settings), *(copy._asdict() for copy in copies.values())))
    write_text(out / NAME, text)
    return (out / NAME).open("a", encoding="ascii", buffering=1)


def add(journal: IO[str], copy: Copy) -> None:
    journal.write(_line(copy._asdict()))


def _line(value: dict[str, object]) -> str:
    return json.dumps(value) + "\n"  # ASCII: a name may hold bytes that are no character


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # the last line of a run that was killed
        return None
