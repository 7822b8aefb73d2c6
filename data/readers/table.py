"""Read a CSV, TSV or JSON Lines table: a row per text, with the columns image, text, and perhaps emotion and split."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from data.emotions import EMOTIONS, emotion_index
from data.languages import language_name
from data.readers.annotations import (
    HEAD_AGAIN,
    collect_faults,
    image_path,
    object_of,
    read_text,
    refuse_doubled,
    text_of,
)
from data.samples import Samples
from data.schema import Sample
from data.split_names import TRAIN, one_split_each, split_name

# Accepted column names by field.
HEADS = {
    "image": ("image", "image_name", "file_name", "filename", "file", "path"),
    "text": ("text", "explanation", "utterance", "caption"),
    "emotion": ("emotion", "label"),
    "split": ("split",),
    "language": ("language",),
}
LARGEST_CELL = 1 << 20  # characters; an unclosed quotation mark makes the rest of the file one cell


class Row(NamedTuple):
    where: str  # in the file, for messages
    name: str  # of the image
    path: Path
    text: str
    emotion: int | None
    split: str  # "" without the column
    language: str  # "" without the column


def read_table(
    table_path: Path,
    visual_dir: Path,
    *,
    labels: Sequence[str] = EMOTIONS,
    split: str = TRAIN,
    faults: list[str] | None = None,
) -> Samples:
    """Return one sample per image and language, in the order of first occurrence; rows need not be adjacent.

    Either every row has an emotion or none has. An image's id is its name, with the language if a column names several.
    If there is a column split, an image is in one split, and only the rows of `split` are returned.

    Args:
        visual_dir: the folder that image names are relative to; the images need not exist.
        labels: the emotions in the order of the histograms.
        faults: collects the faults of single rows, which are then skipped; without it the first is raised.

    Raises:
        UserError: a fault in the file; names the file, the line and the column.
    """
    found = records(table_path, faults=faults)
    rows = list(read_rows(found, table_path, visual_dir, labels=labels, faults=faults))
    return samples_of(rows, table_path, labels=labels, split=split, faults=faults)


def samples_of(
    rows: list[Row], table_path: Path, *, labels: Sequence[str], split: str, faults: list[str] | None
) -> Samples:
    """Return the samples of the rows of a split; see read_table."""
    if not rows and not faults:
        raise UserError(f"{table_path}: the table has no rows")
    rows = _of_split(rows, split, table_path)
    return Samples.pack(_samples(rows, labels, faults), labels)


def _samples(rows: list[Row], labels: Sequence[str], faults: list[str] | None) -> Iterator[Sample]:
    with_emotions = any(row.emotion is not None for row in rows)
    several = len({row.language for row in rows}) > 1
    by_image: dict[tuple[str, str], tuple[Path, list[str], list[int]]] = {}
    for row in rows:
        _, texts, emotions = by_image.setdefault((row.name, row.language), (row.path, [], []))
        with collect_faults(faults):
            if with_emotions and row.emotion is None:
                raise UserError(f"{row.where}: the emotion is empty, while other rows have one")
            texts.append(row.text)
            emotions += [row.emotion] if with_emotions else []
    for (name, language), (image, texts, emotions) in by_image.items():
        if texts:
            id, histogram = f"{name} {language}" if several else name, _histogram(emotions, len(labels))
            yield Sample(id, image, tuple(texts), tuple(emotions), histogram, language)


def _of_split(rows: list[Row], split: str, path: Path) -> list[Row]:
    """Return the rows of a split, or all of a table without the column."""
    if not any(row.split for row in rows):
        return rows
    one_split_each(((row.name, row.split) for row in rows), where=str(path))
    found = [row for row in rows if row.split == split]
    if not found:
        counts = ", ".join(f"{name} {count:,}" for name, count in Counter(row.split for row in rows).items())
        raise UserError(
            f"{path}: the column split has no row of {split} ({counts}); without this column, all rows are used"
        )
    return found


def _histogram(emotions: list[int], count: int) -> tuple[float, ...] | None:
    return tuple(emotions.count(i) / len(emotions) for i in range(count)) if emotions else None


def read_rows(
    found: Iterable[tuple[int, Mapping[str, object]]],
    path: Path,
    visual_dir: Path,
    *,
    labels: Sequence[str],
    faults: list[str] | None,
    place: Mapping[int, Path] | None = None,
    line_name: str = "line",
) -> Iterator[Row]:
    """Yield the rows of a table; raises UserError as read_table does.

    Args:
        found: line number and cells by column name.
        place: of each line, the image, which then needs no text; None: its name below visual_dir.
        line_name: how messages call a line.
    """
    columns: dict[str, str] = {}
    for line, record in found:
        where = f"{path}, {line_name} {line}"
        columns = columns or _columns(record, path, text_needed=place is None)
        with collect_faults(faults):
            name = text_of(record, columns["image"], where=where).strip()
            text = text_of(record, columns["text"], where=where).strip() if "text" in columns else ""
            if not text and "text" in columns:
                raise UserError(f"{where}: the column {columns['text']!r} is empty")
            label = record.get(columns["emotion"]) if "emotion" in columns else None
            named = label is not None and str(label).strip()
            emotion = emotion_index(label, where=where, labels=labels) if named else None
            split = split_name(record.get(columns["split"]), where=where) if "split" in columns else ""
            if "split" in columns and not split:
                raise UserError(f"{where}: the column {columns['split']!r} is empty; fill it, or delete the column")
            language = language_name(record.get(columns["language"])) if "language" in columns else ""
            image = image_path(visual_dir, name, where=where) if place is None else place[line]
            yield Row(where, name, image, text, emotion, split, language)


def _columns(record: Mapping[str, object], path: Path, *, text_needed: bool) -> dict[str, str]:
    """Return the column name in the file by field of HEADS; without texts, there are emotions."""
    found = {field: head for field in HEADS if (head := column_of(field, record)) is not None}
    for needed in ("image", "text" if text_needed or "emotion" not in found else "emotion"):
        if needed not in found:
            raise UserError(
                f"{path}: no column {needed!r} (nor {', '.join(HEADS[needed][1:])}); its columns are "
                f"{', '.join(map(repr, record)) or 'none'}"
            )
    return found


def records(path: Path, *, faults: list[str] | None = None) -> Iterator[tuple[int, dict[str, object]]]:
    """Return line number and cells by column name of every row; raises UserError as read_table does."""
    text = read_text(path)
    is_json = path.suffix.lower() in (".jsonl", ".json")
    return _json_lines(text, path, faults) if is_json else separated(text, path, faults=faults)


def column_of(field: str, record: Mapping[str, object]) -> str | None:
    """Return the name in the file of the column with `field`, a key of HEADS."""
    known = {head.strip().lower(): head for head in record if isinstance(head, str)}
    return next((known[name] for name in HEADS[field] if name in known), None)


def _json_lines(text: str, path: Path, faults: list[str] | None) -> Iterator[tuple[int, dict[str, object]]]:
    counts: Counter[int] = Counter()
    for line, content in enumerate(io.StringIO(text), start=1):
        if not content.strip():
            continue
        counts[hash(content.strip())] += 1
        with collect_faults(faults):
            try:
                value = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {line}: not JSON: {error}") from None
            yield line, object_of(value, where=f"{path}, line {line}")
    with collect_faults(faults):
        refuse_doubled(counts, path)


def detect_delimiter(text: str) -> str:
    """Return tab, semicolon or comma, whichever is most frequent in the first line that is not blank."""
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")
    return max("\t;,", key=first.count)


def separated(text: str, path: Path, *, faults: list[str] | None = None) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield the `records` of the text of a CSV or TSV file.

    Between tabs, quotation marks are part of the text, unless the names of the columns are quoted too, or all marks but
    the outer two are doubled. What Excel leaves is skipped: empty rows, empty cells beyond the last column, a first
    line `sep=;`; so is a column without a name, as pandas writes its index.
    """
    delimiter = detect_delimiter(text)
    csv.field_size_limit(LARGEST_CELL)
    literal = delimiter == "\t" and not text.lstrip().startswith('"')
    quoting = csv.QUOTE_NONE if literal else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    head: list[str] = []
    counts: Counter[int] = Counter()
    try:
        for cells in reader:
            with collect_faults(faults):
                if not any(map(str.strip, cells)) or (not head and _names_delimiter(cells)):
                    continue
                if not head:
                    head = _head(cells, path)
                    continue
                if [cell.strip().lower() for cell in cells] == [name.lower() for name in head]:
                    raise UserError(f"{path}, line {reader.line_num}: {HEAD_AGAIN}")
                if len(cells) < len(head) or any(cells[len(head) :]):
                    raise UserError(
                        f"{path}, line {reader.line_num}: {'more' if len(cells) > len(head) else 'fewer'} cells than "
                        f"the {len(head)} columns of the first line; quote texts with {delimiter!r}"
                    )
                if literal:
                    cells = [*map(_unquoted, cells)]
                record = {name: cell for name, cell in zip(head, cells, strict=False) if name}
                counts[hash(tuple(record.values()))] += 1
                yield reader.line_num, record
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: not readable as CSV or TSV ({error}); put a text that holds "
            f"{delimiter!r} or a quotation mark in quotation marks, and double those in it"
        ) from None
    with collect_faults(faults):
        refuse_doubled(counts, path)


def _unquoted(cell: str) -> str:
    inner = cell[1:-1]
    doubled = cell[:1] == cell[-1:] == '"' and '""' in inner and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if doubled else cell


def _names_delimiter(cells: Sequence[str]) -> bool:
    return re.fullmatch("sep=.?", cells[0]) is not None and not any(cells[1:])


def _head(cells: Sequence[str], path: Path) -> list[str]:
    head = [cell.strip() for cell in cells]
    folded = [name.lower() for name in head]  # as column_of matches them
    if twice := [name for name, one in zip(head, folded, strict=True) if name and folded.count(one) > 1]:
        raise UserError(f"{path}: two columns are named {twice[0]!r}; rename or delete one of them")
    return head
