"""Entries of a JSON, JSON lines, CSV or TSV file, recognized by its content, not its name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from data.readers.annotations import object_of, read_text
from data.readers.table import detect_delimiter, separated


@dataclass(frozen=True, slots=True)
class Records:
    """Objects, each with its place in the file ("FILE, line 7")."""

    form: str  # "JSON lines", "a JSON list", "CSV" or "TSV"
    entries: list[tuple[str, Mapping[str, object]]]


def load(path: Path) -> Records | dict[str, object]:
    """Return the entries of a list or table, or the one object of a JSON file.

    Raises:
        UserError: missing, unreadable, empty, not UTF-8, or malformed JSON (if it begins with a bracket) or CSV.
    """
    text = read_text(path, what="file")
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    if text.lstrip()[0] not in "[{":
        rows = [(f"{path}, line {line}", record) for line, record in separated(text, path)]
        return Records("TSV" if detect_delimiter(text) == "\t" else "CSV", rows)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if len(lines) > 1 and _is_object(lines[0][1]):
        values = [(f"{path}, line {number}", _json(line, f"{path}, line {number}")) for number, line in lines]
        return Records("JSON lines", [(where, object_of(value, where=where)) for where, value in values])
    value = _json(text, str(path))
    if isinstance(value, dict):
        return value
    entries = [(f"{path}, entry {number}", entry) for number, entry in enumerate(value, start=1)]
    return Records("a JSON list", [(where, object_of(entry, where=where)) for where, entry in entries])


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _json(text: str, where: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, where))
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{where}: not JSON at {place}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or too deeply nested
        raise UserError(f"{where}: unreadable JSON: {error}") from None


def _unique(pairs: list[tuple[str, object]], where: str) -> dict[str, object]:
    if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise UserError(f"{where}: the key {twice[0]!r} occurs twice in one object ({len(twice)} such keys)")
    return dict(pairs)
