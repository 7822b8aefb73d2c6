"""VAD lexicons: word → (valence, arousal, dominance), each in −1..1.

Reads the published files as they lie: NRC-VAD v1, its bipolar copy and v2.1 (Mohammad, 2018 and 2025), Warriner et al.
(2013), the Glasgow norms (Scott et al., 2019), ANEW (Bradley and Lang, 1999), and any CSV or TSV with the columns word,
valence, arousal, dominance. None of them may be shipped with this project; the user brings one.

    python -m data.lexicon FILE      # says what was recognised
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from errors import UserError

Vad = tuple[float, float, float]  # valence, arousal, dominance

NAMES = ("valence", "arousal", "dominance")
WORD_HEADS = ("word", "words", "term", "description")
# Heads of the three columns, always in the order valence, arousal, dominance, whatever the order in the file.
LAYOUTS = {
    "Glasgow norms": ("val_m", "arou_m", "dom_m"),
    "Warriner et al. 2013": ("v.mean.sum", "a.mean.sum", "d.mean.sum"),
    "ANEW": ("valence mean", "arousal mean", "dominance mean"),
    "word, valence, arousal, dominance": NAMES,
}
SCALES = {"-1..1": (-1.0, 1.0), "0..1": (0.0, 1.0), "1..5": (1.0, 5.0), "1..9": (1.0, 9.0)}
LEMMA_ORDER = ("NOUN", "VERB", "ADJ", "ADV")
SENSE = re.compile(r"(.*\S)\s*\([^()]*\)")  # "bank (river)"
APOSTROPHES = str.maketrans({"’": "'", "‐": "-", "‑": "-"})
CACHED_WORDS = 1 << 16


def normalise(word: str) -> str:
    """The form in which words are stored and looked up: NFC, lower case, plain apostrophe and hyphen."""
    return unicodedata.normalize("NFC", word).translate(APOSTROPHES).lower().strip()


class Lexicon:
    """A table of words with their valence, arousal and dominance in −1..1.

    `table` maps every term, multi-word terms included, to its values; `layout` and `scale` say what the file was.
    """

    def __init__(self, table: Mapping[str, Vad], *, layout: str = "table", scale: str = "-1..1") -> None:
        self.table: dict[str, Vad] = {normalise(term): tuple(values) for term, values in table.items()}
        self.layout = layout
        self.scale = scale
        self.lookup = lru_cache(maxsize=CACHED_WORDS)(self._find)

    def __len__(self) -> int:
        return len(self.table)

    def __reduce__(self) -> tuple:
        # Loader processes are sent a copy; the cache cannot travel and need not.
        return _rebuild, (self.table, self.layout, self.scale)

    def _find(self, word: str) -> Vad | None:
        """Values of `word` (any case) by its surface form, else by the first of its lemmas that is in the table.

        Lemmas are the dictionary's (lemminflect), as noun, verb, adjective, adverb, in this order; words that the
        dictionary does not know are not guessed at. None: not in the lexicon, which differs from (0, 0, 0).
        """
        key = normalise(word)
        values = self.table.get(key)
        if values is not None or not key:
            return values
        return next((self.table[lemma] for lemma in _lemmas(key) if lemma in self.table), None)


def _rebuild(table: dict[str, Vad], layout: str, scale: str) -> Lexicon:
    return Lexicon(table, layout=layout, scale=scale)


def _lemmas(word: str) -> Iterator[str]:
    from lemminflect import getAllLemmas  # half a second, only when a surface form has missed

    found = getAllLemmas(word)
    if word.endswith("ves"):  # the dictionary gives the noun "leaves" as leave, leaf
        found["NOUN"] = sorted(found.get("NOUN", ()), key=lambda lemma: not lemma.endswith(("f", "fe")))
    for part_of_speech in LEMMA_ORDER:
        yield from found.get(part_of_speech, ())


class _Row(NamedTuple):
    line: int
    term: str
    values: Vad  # as in the file


def read_lexicon(path: Path, *, scale: str = "auto") -> Lexicon:
    """Reads a VAD lexicon file, whatever its published layout, and maps its values linearly to −1..1.

    Args:
        scale: "-1..1", "0..1", "1..5", "1..9", or "auto": a negative value means −1..1, else the smallest of 0..1,
            1..5 and 1..9 that reaches the largest value.

    Senses ("bank (river)") are averaged into their word where the word has no row of its own. Of rows that differ only
    in case the lower-case one is kept, of equal ones the first.

    Raises:
        UserError: no such file, no recognised columns, or a value that is no number or outside the scale; the message
            names file, line and column.
    """
    path = Path(path)
    if scale != "auto" and scale not in SCALES:
        raise UserError(f"unknown scale {scale!r} for the VAD lexicon {path}: choose auto, {', '.join(SCALES)}")
    layout, rows = _rows(path)
    if scale == "auto":
        scale, why = _guess_scale(rows)
    else:
        why = "the scale that was asked for"
    _check_range(path, rows, scale=scale, why=why)
    low, high = SCALES[scale]
    mapped = [row._replace(values=tuple(2 * (v - low) / (high - low) - 1 for v in row.values)) for row in rows]
    return Lexicon(_merge(mapped), layout=layout, scale=scale)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"no VAD lexicon at {path}: check dataset.vad_lexicon, or set it to null to go without"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read the VAD lexicon {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"the VAD lexicon {path} is not UTF-8 text (byte {error.start}): give the .csv, .tsv or .txt file, in UTF-8"
        ) from None


def _rows(path: Path) -> tuple[str, list[_Row]]:
    text = _text(path)
    # StringIO, not splitlines: csv then sees every kind of line end, bare CR included, and nothing else as one.
    first_line = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")
    delimiter = max("\t,;", key=lambda mark: (mark in first_line, mark == "\t"))
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
    layout, columns, rows = "", (), []
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if not layout:
                layout, columns, has_header = _recognise(fields, path)
                if has_header:
                    continue
            rows.append(_row(fields, columns, where=f"{path}, line {reader.line_num}", line=reader.line_num))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not readable as CSV or TSV ({error})") from None
    if not rows:
        raise UserError(f"the VAD lexicon {path} holds no words: expected lines of word, valence, arousal, dominance")
    return layout, rows


def _recognise(fields: list[str], path: Path) -> tuple[str, tuple[int, int, int, int], bool]:
    """Layout, positions of (word, valence, arousal, dominance), and whether `fields` is a header and not a row."""
    if len(fields) == 4 and all(_number(field) is not None for field in fields[1:]):
        return "word, valence, arousal, dominance (no header)", (0, 1, 2, 3), False
    heads = [field.strip().lower() for field in fields]
    word = next((heads.index(head) for head in WORD_HEADS if head in heads), None)
    for layout, wanted in LAYOUTS.items():
        if word is not None and all(head in heads for head in wanted):
            return layout, (word, *(heads.index(head) for head in wanted)), True
    shown = ", ".join(repr(field) for field in fields[:8]) + (", …" if len(fields) > 8 else "")
    raise UserError(
        f"no columns word, valence, arousal, dominance recognised in the VAD lexicon {path}: it begins with {shown}; "
        "give the three columns these heads, or leave out the header and keep just these four columns"
    )


def _number(field: str) -> float | None:
    try:
        value = float(field)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _row(fields: list[str], columns: tuple[int, int, int, int], *, where: str, line: int) -> _Row:
    if len(fields) <= max(columns):
        raise UserError(f"{where}: {len(fields)} columns where at least {max(columns) + 1} were expected")
    term = fields[columns[0]].strip()
    if not term:
        raise UserError(f"{where}: the word is empty; spreadsheets lose words such as null and nan, use the original")
    values = []
    for name, column in zip(NAMES, columns[1:], strict=True):
        value = _number(fields[column])
        if value is None:
            raise UserError(f"{where}, column {column + 1} ({name}): {fields[column]!r} of {term!r} is not a number")
        values.append(value)
    return _Row(line, term, tuple(values))


def _guess_scale(rows: list[_Row]) -> tuple[str, str]:
    """The scale, and the value that decided it, in words."""
    lowest, highest = min(rows, key=lambda row: min(row.values)), max(rows, key=lambda row: max(row.values))
    if min(lowest.values) < 0:
        return "-1..1", f"the scale of files with negative values, as {min(lowest.values):g} in line {lowest.line}"
    top = max(highest.values)
    scale = next((name for name in ("0..1", "1..5", "1..9") if top <= SCALES[name][1]), "1..9")
    return scale, f"the scale of files whose largest value is {top:g}, as in line {highest.line}"


def _check_range(path: Path, rows: list[_Row], *, scale: str, why: str) -> None:
    low, high = SCALES[scale]
    for row in rows:
        for name, value in zip(NAMES, row.values, strict=True):
            if not low <= value <= high:
                raise UserError(
                    f"{path}, line {row.line}, {name}: {value:g} of {row.term!r} is outside {scale}, {why}; "
                    "correct the value or leave out its row"
                )


def _merge(rows: list[_Row]) -> dict[str, Vad]:
    """One entry per term, rows already mapped to −1..1."""
    table: dict[str, Vad] = {}
    senses: dict[str, list[Vad]] = {}
    for row in sorted(rows, key=lambda row: row.term != row.term.lower()):  # stable: lower-case spellings first
        sense = SENSE.fullmatch(row.term)
        if sense:
            senses.setdefault(normalise(sense[1]), []).append(row.values)
        else:
            table.setdefault(normalise(row.term), row.values)
    for word, values in senses.items():
        table.setdefault(word, tuple(math.fsum(column) / len(values) for column in zip(*values, strict=True)))
    return table


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.lexicon", description="Says what a VAD lexicon file holds.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--scale", default="auto", help="auto, " + ", ".join(SCALES))
    arguments = parser.parse_args(argv)
    try:
        lexicon = read_lexicon(arguments.file, scale=arguments.scale)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    phrases = sum(" " in term for term in lexicon.table)
    print(f"layout  {lexicon.layout}")
    print(f"scale   {lexicon.scale}, mapped to -1..1")
    print(f"words   {len(lexicon) - phrases}, and {phrases} terms of several words")
    for term in list(lexicon.table)[:: max(1, len(lexicon) // 5)][:5]:
        v, a, d = lexicon.table[term]
        print(f"        {term}: valence {v:+.3f}  arousal {a:+.3f}  dominance {d:+.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
