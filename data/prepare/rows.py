"""Read the CSV files of ArtEmis v1 (artemis_dataset_release_v0.csv) and v2 (Contrastive.csv), ArtELingo, ArtELingo-28.

Accepted are a byte order mark, any line ends, further columns, and names in NFC or NFD. A row that cannot be used is
left out and listed with its line and the reason.
"""

from __future__ import annotations

import csv
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.reading import LARGEST_TEXT, require_file
from data.emotions import EMOTIONS, INDEX, normalize_label
from data.languages import language_name
from data.readers.annotations import HEAD_AGAIN, refuse_doubled
from data.split_names import split_name

COLUMNS = ("art_style", "painting", "emotion", "utterance")
OPTIONAL = ("repetition", "version", "split", "language")
UTTERANCE = ("caption", "text")  # names of the column utterance in ArtELingo-28 and ArtELingo on the hub
OTHER = "other"  # of ArtELingo-28, beside the nine: read as something else
ANCHOR = ("anchor_art_style", "anchor_painting")
LONGEST_CELL = 1 << 24  # characters; the csv module's own limit is 131,072
NEVER_CLOSED = ("unexpected end of data", "field larger than field limit")  # the csv module's messages
UNSAFE = frozenset("/\\\0")  # in a name, they would lead to another folder
NO_ANCHOR = ("", "nan")  # pandas writes missing values as "nan"
NOT_UTF8 = "bytes that are not UTF-8"


class Row(NamedTuple):
    """One annotation: what one annotator felt and wrote about a painting."""

    file: str
    line: int  # its first
    name: str  # Style/painting in NFC: the key of the painting
    emotion: int  # index into EMOTIONS
    utterance: str
    repetition: int | None  # annotations of the painting according to the file
    anchor: str | None  # v2: the painting (Style/painting) that this one was chosen to contrast with
    new: bool  # True: v2, False: v1
    split: str | None = None  # as in data.split_names; None: the file has no such column
    language: str = ""  # as data.languages.language_name; "": the file has no such column


class LeftOut(NamedTuple):
    """A row, or an image (no line), that was not used."""

    file: str
    line: int | None
    art_style: str
    painting: str
    reason: str  # text before ": " is counted as one reason; details follow
    language: str = ""


class _Fault(Exception):
    """Why a row cannot be used."""


def read_rows(path: Path, *, new: bool | None, left_out: list[LeftOut]) -> list[Row]:
    """Return the usable rows of a CSV file in file order, and append the others to `left_out`.

    Args:
        new: True: all rows are v2's (Contrastive.csv), False: v1's; None: the column `version` (new, old) decides, and
            without this column they are v1's.

    Raises:
        UserError: the file cannot be read, lacks columns, has a quotation mark that is never closed, an unknown name of
            a split, or was joined to itself or to another.
    """
    records = _records(path)
    _, header = next(records, (1, []))
    if isinstance(header, int):
        raise UserError(f"{path}, line 1: the header is not valid CSV; expected {', '.join(COLUMNS)}")
    columns = _columns(path, header, new=new)
    rows, counts = [], Counter()
    for line, cells in records:
        if cells == header:
            raise UserError(f"{path}, line {line}: {HEAD_AGAIN}")
        if isinstance(cells, int):
            extent = f": lines {line} to {cells}" if cells > line else ""
            left_out.append(LeftOut(path.name, line, "", "", f"not readable as CSV{extent}"))
            continue
        counts[hash(tuple(cells))] += 1
        try:
            rows.append(_row(path, line, cells, columns, width=len(header), new=new))
        except _Fault as fault:
            value = {name: cells[i] for name, i in columns.items() if i < len(cells)}
            style, painting, language = (value.get(name, "") for name in ("art_style", "painting", "language"))
            left_out.append(LeftOut(path.name, line, style, painting, str(fault), language_name(language)))
    refuse_doubled(counts, path)
    return rows


def _records(path: Path) -> Iterator[tuple[int, list[str] | int]]:
    """Yield (first line, cells) of every record, or (first, last line) of invalid CSV; blank lines are skipped."""
    try:
        require_file(path, largest=LARGEST_TEXT)
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            csv.field_size_limit(LONGEST_CELL)
            reader = csv.reader(file, strict=True)
            while True:
                line = reader.line_num + 1
                try:
                    if cells := next(reader):
                        yield line, cells
                except StopIteration:
                    return
                except csv.Error as error:
                    if any(reason in str(error) for reason in NEVER_CLOSED):
                        raise UserError(f"{path}, line {line}: a quotation mark is never closed; close it") from None
                    yield line, reader.line_num  # the reader continues with the next line
    except OSError as error:
        raise UserError(f"the annotations {path} cannot be read ({error.strerror}); give a CSV file") from None


def _columns(path: Path, header: Sequence[str], *, new: bool | None) -> dict[str, int]:
    """Return the index of each column; of columns with the same name, the first."""
    found = {name.strip(): i for i, name in reversed([*enumerate(header)])}
    if other := next((name for name in UTTERANCE if name in found), None):
        found.setdefault("utterance", found[other])
    if new is not None:
        found.pop("version", None)
    elif "version" not in found and all(name in found for name in ANCHOR):
        raise UserError(
            f"{path} has anchors but no column version, so it is v2's part alone: "
            "give v1's file first and this one with --contrastive"
        )
    required = COLUMNS + (ANCHOR if (new or "version" in found) and "split" not in found else ())
    if missing := [name for name in required if name not in found]:
        first = ", ".join(map(ascii, header[:6])) or "nothing"
        raise UserError(
            f"{path} lacks the column {' and '.join(missing)}: its first line contains {first}; "
            "expected comma-separated UTF-8 text with these columns"
        )
    return {name: found[name] for name in (*required, *OPTIONAL) if name in found}


def _row(path: Path, line: int, cells: Sequence[str], columns: dict[str, int], *, width: int, new: bool | None) -> Row:
    if len(cells) < width or any(cells[width:]):
        raise _Fault(f"number of cells: {len(cells)} where the first line has {width}")
    value = {name: cells[i] for name, i in columns.items()}
    if any("\udc80" <= character <= "\udcff" for text in value.values() if not text.isascii() for character in text):
        raise _Fault(NOT_UTF8)
    name = _name(value["art_style"], value["painting"])
    label = normalize_label(value["emotion"])
    emotion = INDEX.get(EMOTIONS[-1] if label == OTHER else label)
    if emotion is None:
        raise _Fault(f"unknown emotion: {value['emotion']!r}")
    if not value["utterance"].strip():
        raise _Fault("empty utterance")
    version = value.get("version", "new" if new else "old").strip().lower()
    if version not in ("new", "old"):
        raise _Fault(f"unknown version: {value['version']!r}")
    anchor = _anchor(value) if version == "new" else None
    repetition = _repetition(value.get("repetition", ""))
    split = split_name(value["split"], where=f"{path}, line {line}") if "split" in value else None
    language = language_name(value.get("language"))
    if "language" in value and not language:
        raise _Fault("no language")
    return Row(
        path.name, line, name, emotion, value["utterance"], repetition, anchor, version == "new", split, language
    )


def _name(style: str, painting: str) -> str:
    """Return `Style/painting` in NFC: a folder and a file in it."""
    parts = [unicodedata.normalize("NFC", part.strip()) for part in (style, painting)]
    if not all(parts):
        raise _Fault("no art_style or painting")
    if any(part in (".", "..") or not UNSAFE.isdisjoint(part) for part in parts):
        raise _Fault("art_style or painting is not the name of a folder or file")
    return sys.intern("/".join(parts))  # one string for all rows of a painting


def _anchor(value: dict[str, str]) -> str | None:
    parts = [value.get(name, "").strip() for name in ANCHOR]
    return None if any(part in NO_ANCHOR for part in parts) else unicodedata.normalize("NFC", "/".join(parts))


def _repetition(text: str) -> int | None:
    """Return a positive integer, which pandas may have written as 5.0; None for anything else."""
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if 1 <= number < 1e9 else None
