"""What a model has answered so far, a line for each picture, so that nothing is paid for twice.

The first line holds the settings that answers depend on. A line that was cut off by a kill is left out and its picture
asked about again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from data.prepare.instructions.wording import OBSERVATION, REASONING
from errors import UserError
from files import write_text
from foreign import read_bytes


def read(path: Path, settings: dict[str, Any]) -> dict[str, dict]:
    """The answers in a file, by image id; none if there is no file.

    Raises:
        UserError: they were given under other settings, or the file is none of ours.
        OSError: it cannot be read.
    """
    try:
        lines = read_bytes(path).decode("utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return {}
    before = _parsed(lines[0])
    before = before.get("settings") if isinstance(before, dict) else None
    if not isinstance(before, dict):
        raise UserError(f"{path} does not hold answers of this command; name another folder with --out")
    if different := [key for key in settings if before.get(key) != settings[key]]:
        key = different[0]
        raise UserError(
            f"{path} holds answers of another {key} ({_shown(before.get(key))}, now {_shown(settings[key])}); go on "
            "with that one, or name another folder with --out"
        )
    return {row["id"]: row for row in map(_parsed, lines[1:]) if _is_answer(row)}


def begin(path: Path, settings: dict[str, Any], rows: dict[str, dict]) -> IO[str]:
    """The file with these answers, open for more; what `add` writes is out of this process at once."""
    write_text(path, (_line(value) for value in ({"settings": settings}, *rows.values())))
    return path.open("a", encoding="utf-8", buffering=1)


def add(file: IO[str], row: dict[str, Any]) -> None:
    file.write(_line(row))


def _is_answer(row: object) -> bool:
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("id", "label")):
        return False
    texts = [row["dropped"]] if "dropped" in row else [row.get(REASONING), row.get(OBSERVATION)]
    usage = row.get("usage")
    is_usage = isinstance(usage, dict) and all(type(n) in (int, float) and 0 <= n < 1e12 for n in usage.values())
    return is_usage and all(isinstance(text, str) and text for text in texts)


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value) + "\n"  # ASCII: an id may hold bytes that are no character


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _shown(value: object) -> str:
    return str(value)[:80]
