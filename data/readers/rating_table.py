"""Columns and scales of the tables in which sets of affective pictures publish their mean ratings.

OASIS.csv (Kurdi, Lozano and Banaji, 2017), NAPS (Marchewka et al., 2014), the IAPS technical manual (Lang, Bradley and
Cuthbert, 2008), EmoArt as `data.prepare emoart` writes it, and any table or JSON file with columns of those names.
"""

from __future__ import annotations

import csv
import itertools
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from common.errors import UserError
from data.readers.annotations import collect_faults, object_of, read_text
from data.readers.records import Records, load
from data.readers.table import detect_delimiter, separated

DIMENSIONS = ("valence", "arousal", "dominance")
NEEDED = ("image", "valence", "arousal")
_SHORT = {"valence": "val", "arousal": "aro", "dominance": "dom"}
_PUBLISHED = {"valence": ("valmn",), "arousal": ("aromn",), "dominance": ("dom1mn", "dommn")}  # of IAPS
# Accepted names of columns by field, in lower case and with spaces only; of images, the first that occurs counts.
HEADS: dict[str, tuple[str, ...]] = {
    "image": ("image", "image name", "file name", "filename", "file", "path", "picture", "theme", "iaps", "id"),
    "split": ("split",),
    **{
        name: (
            *(name, f"{name} mean", f"mean {name}", f"{name} m", f"m {name}"),
            *(f"{short} mean", f"mean {short}", f"{short} m", f"m {short}", *_PUBLISHED[name]),
        )
        for name, short in _SHORT.items()
    },
}
KNOWN = {head for heads in HEADS.values() for head in heads}
# Scales of published sets, by columns that only they have.
LAYOUTS = {"OASIS": (("theme", "valence mean"), (1.0, 7.0)), "IAPS": (("iaps", "valmn"), (1.0, 9.0))}
LAYOUTS["NAPS"] = (("id", "v h"), (1.0, 9.0))
WORDS = {"positive": 1.0, "high": 1.0, "neutral": 0.0, "medium": 0.0, "negative": -1.0, "low": -1.0}  # of EmoArt
MISSING = ("", ".", "na", "n/a", "nan", "null", "none")
MOST_HEAD = 20  # lines before the names of the columns
NAME_SCALE = "set dataset.rating_scale=[LOWEST,HIGHEST]"

Scale = tuple[float, float]
Rows = Iterator[tuple[str, Mapping[str, object]]]  # place, for messages, and values by field of HEADS


def rating_rows(path: Path, faults: list[str]) -> tuple[Rows, Scale | None]:
    """Return the rows of a file of ratings, and the scale of the published set whose columns it has.

    Args:
        faults: collects the rows that cannot be read, as they are passed.

    Raises:
        UserError: the file cannot be read, or has no column of images, valence or arousal.
    """
    text = read_text(path)
    if text.lstrip()[:1] in ("{", "["):
        return _json_rows(path, faults)
    text, names, before = _with_known_head(text, path)
    rows = ((f"{path}, line {line}", record) for line, record in separated(text, path, faults=faults))
    return rows, _published_scale([*names, *before])


def _json_rows(path: Path, faults: list[str]) -> tuple[Rows, Scale | None]:
    found = load(path)
    if isinstance(found, Records):
        entries = found.entries
    elif found and all(isinstance(entry, dict) for entry in found.values()):
        entries = [(f"{path}: image {id!r}", entry) for id, entry in found.items()]
    else:  # JSON lines with one line
        entries = [(str(path), found)]
    if not entries:
        raise UserError(f"{path}: the file holds no picture")
    names = [*dict.fromkeys(key for _, entry in entries for key in entry)]
    columns = _require(names, path)

    def rows() -> Rows:
        for where, entry in entries:
            with collect_faults(faults):
                record = object_of(entry, where=where)
                yield where, {field: record.get(names[place]) for field, place in columns.items()}

    return rows(), _published_scale(map(_plain, names))


def _with_known_head(text: str, path: Path) -> tuple[str, list[str], list[str]]:
    """Return a table whose first line that is not blank names the used columns by their field, all others by "".

    Tables of supplements have titles above the names of the columns, names that continue in a second line ("Valence"
    above "Mean"), or spaces between the columns. Lines keep their numbers.

    Returns:
        the text; the names of the columns and those above them, in lower case.
    """
    lines = text.split("\n")
    best: list[str] = []
    above: list[str] = []
    for number, line in enumerate(lines[:MOST_HEAD]):
        cells = _cells(line)
        for names in (cells, _joined(above, cells)):
            columns = _columns(names, path)
            if all(field in columns for field in NEEDED):
                lines[:number], lines[number] = [""] * number, _head(line, columns, len(cells))
                lines[number + 1 :] = _between_tabs(line, lines[number + 1 :])
                return "\n".join(lines), [*map(_plain, names)], [*map(_plain, cells)]
            best = max(best, names, key=lambda head: len(_columns(head, path)))
        above = cells if len(cells) > 1 else above
    raise _no_columns(best, path)


def _cells(line: str) -> list[str]:
    if not re.search("[\t;,]", line):
        return line.split()
    return [cell.strip() for cell in next(csv.reader([line.rstrip("\r")], delimiter=detect_delimiter(line)), [])]


def _joined(above: Sequence[str], cells: Sequence[str]) -> list[str]:
    """Return the cells with those above them in front ("Valence M"), each of which reaches to the next one above.

    Cells that name a field by themselves stay as they are.
    """
    reaching = itertools.accumulate(above, lambda before, cell: cell or before)
    pairs = itertools.zip_longest(itertools.islice(reaching, len(cells)), cells, fillvalue="")
    return [cell if _plain(cell) in KNOWN else f"{upper} {cell}".strip() for upper, cell in pairs]


def _head(line: str, columns: Mapping[str, int], width: int) -> str:
    fields = {place: field for field, place in columns.items()}
    quote = '"' * line.lstrip().startswith('"')  # says how quotation marks between tabs are read
    delimiter = detect_delimiter(line) if re.search("[\t;,]", line) else "\t"
    return delimiter.join(f"{quote}{fields.get(place, '')}{quote}" for place in range(width))


def _between_tabs(head: str, lines: list[str]) -> list[str]:
    return lines if re.search("[\t;,]", head) else ["\t".join(line.split()) for line in lines]


def _plain(name: str) -> str:
    """Return "valence mean" for Valence_mean, "valence (mean)" or VALENCE.Mean."""
    return re.sub(r"[\W_]+", " ", name).strip().lower()


def _columns(names: Sequence[str], path: Path) -> dict[str, int]:
    """Return the place of each field of HEADS that has a column; raise UserError if a rating has two."""
    plain, found = [*map(_plain, names)], {}
    for field, heads in HEADS.items():
        places = [plain.index(head) for head in heads if head in plain]
        if len(places) > 1 and field in DIMENSIONS:
            two = " and ".join(repr(names[place]) for place in places[:2])
            raise UserError(f"{path}: {two} are both columns of {field}; rename or delete one of them")
        found |= {field: places[0]} if places else {}
    return found


def _require(names: Sequence[str], path: Path) -> dict[str, int]:
    columns = _columns(names, path)
    if not all(field in columns for field in NEEDED):
        raise _no_columns(names, path)
    return columns


def _no_columns(names: Sequence[str], path: Path) -> UserError:
    missing = [field for field in NEEDED if field not in _columns(names, path)]
    accepted = "; ".join(f"of {field}: {', '.join(HEADS[field])}" for field in missing)
    return UserError(
        f"{path}: no column of {' or '.join(missing)}; its columns are {', '.join(map(repr, names)) or 'none'}, and "
        f"accepted are, {accepted}"
    )


def _published_scale(names: Iterable[str]) -> Scale | None:
    known = {*names}
    return next((scale for columns, scale in LAYOUTS.values() if known.issuperset(columns)), None)


def rating(value: object, *, where: str) -> float:
    """Return a rating as a number, NaN if it is missing; EmoArt's words are numbers of −1..1 (see WORDS).

    Raises:
        UserError: neither a number nor one of these words.
    """
    text = "" if value is None else str(value).strip().lower()
    if text in MISSING:
        return math.nan
    if text in WORDS:
        return WORDS[text]
    try:
        number = float(text.replace(",", "."))
    except ValueError:
        number = math.inf
    if math.isfinite(number) and not isinstance(value, bool):
        return number
    raise UserError(f"{where}: {str(value)!r} is not a number; correct it or delete the row")


def scale_of(values: Sequence[float], *, path: Path) -> Scale:
    """Return the scale that all values of a file must have by their range; NaNs are none.

    Means of people's ratings seldom reach the ends of a scale: values from 1 to 6.5 may be on a scale to 7 or to 9.

    Raises:
        UserError: they may be on several scales.
    """
    known = [value for value in values if not math.isnan(value)]
    low, high = min(known), max(known)
    if -1 <= low < 0 and high <= 1:
        return -1.0, 1.0
    if 0 <= low < high <= 1:
        return 0.0, 1.0
    if low >= 1 and 7 < high <= 9:
        return 1.0, 9.0
    if low >= 0 and high <= 100 and statistics.median(known) > 10:
        return 0.0, 100.0
    raise UserError(
        f"{path}: its ratings are from {low:g} to {high:g}, which is on several scales or none; {NAME_SCALE}, such as "
        "[1,7] or [1,9]"
    )
