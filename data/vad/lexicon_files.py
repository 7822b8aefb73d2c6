"""Read published VAD lexicon files.

NRC-VAD v1, its bipolar copy and v2.1 (Mohammad, 2018 and 2025), Warriner et al. (2013), the Glasgow norms (Scott et
al., 2019), ANEW (Bradley and Lang, 1999), and any CSV or TSV with the columns word, valence, arousal, dominance. Their
licenses do not allow this project to include them; the user provides the file.
"""

from __future__ import annotations

import csv
import io
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError
from common.reading import expand_user
from data.readers.annotations import read_text
from data.vad.lexicon import Lexicon, Vad, normalize_word

NAMES = ("valence", "arousal", "dominance")
WORD_HEADS = ("word", "words", "term", "description")
SCALES = {"-1..1": (-1.0, 1.0), "0..1": (0.0, 1.0), "1..5": (1.0, 5.0), "1..9": (1.0, 9.0), "0..100": (0.0, 100.0)}
# Column names of valence, arousal, dominance, in any order in the file; and the scale of the published file.
LAYOUTS = {
    "Glasgow norms": (("val_m", "arou_m", "dom_m"), "1..9"),
    "Warriner et al. 2013": (("v.mean.sum", "a.mean.sum", "d.mean.sum"), "1..9"),
    "ANEW": (("valence mean", "arousal mean", "dominance mean"), "1..9"),
    "word, valence, arousal, dominance": (NAMES, None),
}
SENSE = re.compile(r"(.*\S)\s*\([^()]*\)")  # "bank (river)"
NAME_COLUMNS = "set dataset.vad_columns=[WORD,VALENCE,AROUSAL,DOMINANCE] (or --columns) to column names or numbers"
NAME_SCALE = f"set dataset.vad_scale (or --scale) to one of {', '.join(SCALES)}"


class _Layout(NamedTuple):
    name: str
    columns: tuple[int, ...]  # indices of word, valence, arousal, dominance
    has_header: bool
    scale: str | None = None


class _Row(NamedTuple):
    line: int
    term: str
    values: Vad  # as in the file


def read_lexicon(path: Path, *, scale: str = "auto", columns: Sequence[str | int] | None = None) -> Lexicon:
    """Return the lexicon in a file of any published layout, with values mapped linearly to −1..1.

    Senses ("bank (river)") are averaged for a word without its own row. Of rows that differ only in case the lower-case
    one is kept, of equal words the first, and a row without a word is skipped; `notes` reports rows that are not used.

    Args:
        scale: "-1..1", "0..1", "1..5", "1..9", "0..100", or "auto": the scale of the published layout; else −1..1 if a
            value is negative; else the smallest of 0..1, 1..5 and 1..9 with the largest value, or 0..100 if most values
            are above 9, so that a single wrong value does not choose it.
        columns: names (any case) or numbers (from 1) of the columns word, valence, arousal, dominance. None recognizes
            them by their names; a file of four columns without header has them in this order.

    Raises:
        UserError: no such file, a value that is not a number or outside the scale (names line and column), or ambiguous
            columns or scale (names the option to set).
    """
    if scale != "auto" and scale not in SCALES:
        raise UserError(f"unknown scale {scale!r} for the VAD lexicon {path}: choose auto, {', '.join(SCALES)}")
    layout, rows, nameless = _rows(path, columns)
    if scale == "auto":
        scale = _scale(path, rows, layout)
    _check_range(path, rows, scale)
    low, high = SCALES[scale]
    mapped = [row._replace(values=tuple(2 * (v - low) / (high - low) - 1 for v in row.values)) for row in rows]
    table, notes = _merge(mapped)
    if nameless:
        lines = f"{len(nameless)} rows without a word are skipped, the first in line {nameless[0].line}"
        notes = (f"{lines}: a spreadsheet drops words such as null, nan and true; use the original file", *notes)
    numbers = ", ".join(str(column + 1) for column in layout.columns)
    return Lexicon(table, layout=f"{layout.name}, from columns {numbers}", scale=scale, notes=notes)


def _rows(path: Path, wanted: Sequence[str | int] | None) -> tuple[_Layout, list[_Row], list[_Row]]:
    """Return the layout, the rows, and those without a word."""
    text = read_text(path, what="VAD lexicon", hint="check dataset.vad_lexicon, or set it to null to use none")
    # StringIO instead of splitlines: only CR, LF and CRLF end a line.
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")
    # A comma can be the decimal separator in a file with semicolons.
    delimiter = "\t" if "\t" in first else ";" if first.count(";") >= len(NAMES) else ","
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
    layout, width, rows, nameless = None, 0, [], []
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if layout is None:
                width = len(fields)
                layout = _named(fields, wanted, path) if wanted else _recognize(fields, path)
                if layout.has_header:
                    continue
            where = f"{path}, line {reader.line_num}"
            if any(field.strip() for field in fields[width:]):
                raise UserError(
                    f"{where}: {len(fields)} columns, but the first line has {width}; quote a word with {delimiter!r}"
                )
            row = _row(fields, layout.columns, where=where, line=reader.line_num)
            (rows if row.term else nameless).append(row)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not readable as CSV or TSV ({error})") from None
    if layout is None or not rows:
        raise UserError(f"the VAD lexicon {path} has no words: expected lines of word, valence, arousal, dominance")
    return layout, rows, nameless


def _recognize(fields: list[str], path: Path) -> _Layout:
    """Return the layout that matches the first line, which is already a row if it has a word and three numbers."""
    if len(fields) == 4 and all(_number(field) is not None for field in fields[1:]):
        return _Layout("word, valence, arousal, dominance without header", (0, 1, 2, 3), has_header=False)
    heads = [field.strip().lower() for field in fields]
    words = [head for head in heads if head in WORD_HEADS]
    matches = [name for name, (wanted, _) in LAYOUTS.items() if words and all(head in heads for head in wanted)]
    if not matches:
        raise UserError(
            f"no columns word, valence, arousal, dominance in the VAD lexicon {path}, which begins with "
            f"{_shorten(fields)}: {NAME_COLUMNS}"
        )
    usable = {*WORD_HEADS, *(head for name in matches for head in LAYOUTS[name][0])}
    candidates = [head for head in heads if head in usable]
    if len(candidates) > 1 + len(NAMES):
        raise UserError(
            f"the VAD lexicon {path} has more than one column for a word or a value ({', '.join(candidates)}): "
            f"{NAME_COLUMNS}"
        )
    wanted, scale = LAYOUTS[matches[0]]
    return _Layout(matches[0], tuple(heads.index(head) for head in (words[0], *wanted)), has_header=True, scale=scale)


def _named(fields: list[str], wanted: Sequence[str | int], path: Path) -> _Layout:
    """Return the layout with the columns that the user named; a first line with numbers there is not a header."""
    heads = [field.strip().lower() for field in fields]
    columns = []
    for column in map(str, wanted):
        found = [i for i, head in enumerate(heads) if head == column.strip().lower()]
        if column.strip().isdecimal():
            found = [int(column) - 1] if 1 <= int(column) <= len(fields) else []
        if len(found) != 1:
            raise UserError(
                f"dataset.vad_columns (--columns): {column!r} matches {len(found) or 'none'} of the "
                f"columns of {path}, which begins with {_shorten(fields)}; use column names, or numbers from 1"
            )
        columns += found
    if not len(columns) == len(set(columns)) == 1 + len(NAMES):
        raise UserError(
            f"dataset.vad_columns (--columns): {', '.join(map(str, wanted))} are not four different columns of {path}, "
            "those of word, valence, arousal, dominance"
        )
    has_header = any(_number(fields[column]) is None for column in columns[1:])
    return _Layout("columns as they were named", tuple(columns), has_header)


def _shorten(fields: list[str]) -> str:
    return ", ".join(reprlib.repr(field) for field in fields[:8]) + (", …" if len(fields) > 8 else "")


def _number(field: str) -> float | None:
    try:
        value = float(field.replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _row(fields: list[str], columns: tuple[int, ...], *, where: str, line: int) -> _Row:
    if len(fields) <= max(columns):
        raise UserError(f"{where}: {len(fields)} columns instead of at least {max(columns) + 1}")
    term = fields[columns[0]].strip()
    values = tuple(_number(fields[column]) for column in columns[1:])
    if None in values:
        name, column = NAMES[values.index(None)], columns[1 + values.index(None)]
        raise UserError(f"{where}, column {column + 1} ({name}): {fields[column]!r} of {term!r} is not a number")
    return _Row(line, term, values)


def _scale(path: Path, rows: list[_Row], layout: _Layout) -> str:
    """Return the scale of the layout or of the smallest and largest value; raise UserError if they do not fit one."""
    lowest, highest = min(rows, key=lambda row: min(row.values)), max(rows, key=lambda row: max(row.values))
    bottom, top = min(lowest.values), max(highest.values)
    extent = (
        f"the values of the VAD lexicon {path} are from {bottom:g} ({lowest.term!r}, line {lowest.line}) to {top:g} "
        f"({highest.term!r}, line {highest.line})"
    )
    if bottom == top == 1 and layout.scale is None:
        raise UserError(f"all values of the VAD lexicon {path} are 1, which is on several scales: {NAME_SCALE}")
    smallest = next((name for name in ("0..1", "1..5", "1..9") if top <= SCALES[name][1]), "1..9")
    if sorted(value for row in rows for value in row.values)[3 * len(rows) // 2] > SCALES["1..9"][1]:
        smallest = "0..100"
    scale = layout.scale or ("-1..1" if bottom < 0 else smallest)
    low, high = SCALES[scale]
    if low <= bottom and top <= high:
        return scale
    if layout.scale:
        raise UserError(
            f"{extent}, but columns named as in {layout.name} have the scale {layout.scale}: correct these rows, or if "
            f"the file was rescaled, {NAME_SCALE}"
        )
    raise UserError(
        f"{extent}, which fits none of the scales {', '.join(SCALES)}: correct the wrong row, or map all values to "
        f"-1..1; to find the rows outside a scale, {NAME_SCALE}"
    )


def _check_range(path: Path, rows: list[_Row], scale: str) -> None:
    low, high = SCALES[scale]
    for row in rows:
        for name, value in zip(NAMES, row.values, strict=True):
            if not low <= value <= high:
                raise UserError(
                    f"{path}, line {row.line}, {name}: {value:g} of {row.term!r} is outside the scale {scale}; "
                    "correct the value, remove the row, or choose another scale"
                )


def _merge(rows: list[_Row]) -> tuple[dict[str, Vad], tuple[str, ...]]:
    """Return the values of each term, from rows in −1..1, and notes on the rows that were ignored."""
    first: dict[str, _Row] = {}
    senses: dict[str, list[Vad]] = {}
    doubled: dict[str, int] = {}
    cased: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: row.term != row.term.lower()):  # stable: lower-case spellings first
        if sense := SENSE.fullmatch(row.term):
            senses.setdefault(normalize_word(sense[1]), []).append(row.values)
            continue
        kept = first.setdefault(normalize_word(row.term), row)
        if kept.values != row.values:
            (doubled if kept.term == row.term else cased).setdefault(row.term, row.line)
    table = {term: row.values for term, row in first.items()}
    for word, values in senses.items():
        table.setdefault(word, tuple(math.fsum(column) / len(values) for column in zip(*values, strict=True)))
    notes = []
    for found, what, used in (
        (doubled, "words have a second row with other values", "first"),
        (cased, "words have another row that differs in case and values", "lower-case one"),
    ):
        if found:
            term, line = next(iter(found.items()))
            notes.append(f"{len(found)} {what}, e.g. {term!r} in line {line}; the {used} is used")
    return table, tuple(notes)


def configured_lexicon(dataset: Mapping[str, Any]) -> Lexicon | None:
    """Return the lexicon of the section `dataset` of the configuration, or None; raises UserError as read_lexicon."""
    if dataset["vad_lexicon"] is None:
        return None
    path = expand_user(dataset["vad_lexicon"])
    return read_lexicon(path, scale=dataset["vad_scale"], columns=dataset["vad_columns"])
