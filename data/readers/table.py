"""A table of one's own: CSV, TSV or JSON lines, a row per text, with the columns image, text and perhaps emotion."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from common.errors import UserError
from data.emotions import EMOTIONS, emotion_index
from data.readers.annotations import image_path, object_of, read_text, text_of, tolerated
from data.samples import Samples
from data.schema import Sample

# Heads that people give the columns; the first of each is ours.
HEADS = {
    "image": ("image", "image_name", "file_name", "filename", "file", "path"),
    "text": ("text", "explanation", "utterance", "caption"),
    "emotion": ("emotion", "label"),
}
LARGEST_CELL = 1 << 20  # characters; a quotation mark that is never closed makes a cell of the rest of the file


def read_table(
    table_path: Path, visual_dir: Path, *, labels: Sequence[str] = EMOTIONS, faults: list[str] | None = None
) -> Samples:
    """One sample per image, in the order in which images first occur; an image's rows need not stand together.

    Either every row has an emotion or none has. An image's id is its name.

    Args:
        visual_dir: the folder that image names are relative to; nothing is looked for in it.
        labels: what the column of the emotion can name.
        faults: gets the faults of single rows, which are then left out; without it the first one is raised.

    Raises:
        UserError: a fault in the file, named by file, line and column.
    """
    rows = list(_rows(table_path, visual_dir, labels, faults))
    if not rows and not faults:
        raise UserError(f"{table_path}: the table has no row")
    with_emotions = any(emotion is not None for *_, emotion in rows)
    by_image: dict[str, tuple[Path, list[str], list[int]]] = {}
    for line, name, path, text, emotion in rows:
        _, texts, emotions = by_image.setdefault(name, (path, [], []))
        with tolerated(faults):
            if with_emotions and emotion is None:
                raise UserError(f"{table_path}, line {line}: the emotion is empty, while other rows have one")
            texts.append(text)
            emotions += [emotion] if with_emotions else []
    samples = (
        Sample(name, path, tuple(texts), tuple(emotions), histogram=_shares(emotions, len(labels)))
        for name, (path, texts, emotions) in by_image.items()
        if texts
    )
    return Samples.pack(samples, labels)


def _shares(emotions: list[int], count: int) -> tuple[float, ...] | None:
    return tuple(emotions.count(i) / len(emotions) for i in range(count)) if emotions else None


def _rows(
    path: Path, visual_dir: Path, labels: Sequence[str], faults: list[str] | None
) -> Iterator[tuple[int, str, Path, str, int | None]]:
    """Line, image name, its path, text and emotion of every row."""
    heads: dict[str, str] | None = None
    for line, record in records(path, faults=faults):
        where = f"{path}, line {line}"
        if heads is None:
            heads = _heads(record, path)
        with tolerated(faults):
            name = text_of(record, heads["image"], where=where).strip()
            text = text_of(record, heads["text"], where=where).strip()
            if not text:
                raise UserError(f"{where}: the column {heads['text']!r} is empty")
            label = record.get(heads["emotion"]) if "emotion" in heads else None
            emotion = emotion_index(label, where=where, labels=labels) if label not in (None, "") else None
            yield line, name, image_path(visual_dir, name, where=where), text, emotion


def _heads(record: Mapping[str, object], path: Path) -> dict[str, str]:
    """Our name of each column → its name in the file."""
    found = {ours: head for ours in HEADS if (head := column_of(ours, record)) is not None}
    for needed in ("image", "text"):
        if needed not in found:
            raise UserError(
                f"{path}: no column {needed!r} (nor {', '.join(HEADS[needed][1:])}); its columns are "
                f"{', '.join(map(repr, record)) or 'none'}"
            )
    return found


def records(path: Path, *, faults: list[str] | None = None) -> Iterator[tuple[int, dict[str, object]]]:
    """Line and cells of every row, by the heads of the columns.

    Raises:
        UserError: see read_table.
    """
    text = read_text(path)
    if path.suffix.lower() in (".jsonl", ".json"):
        return _json_lines(text, path, faults)
    return separated(text, path, faults=faults)


def column_of(ours: str, record: Mapping[str, object]) -> str | None:
    """What the table calls the column that is `image`, `text` or `emotion` here."""
    known = {head.strip().lower(): head for head in record if isinstance(head, str)}
    return next((known[name] for name in HEADS[ours] if name in known), None)


def _json_lines(text: str, path: Path, faults: list[str] | None) -> Iterator[tuple[int, dict[str, object]]]:
    for line, content in enumerate(io.StringIO(text), start=1):
        if not content.strip():
            continue
        with tolerated(faults):
            try:
                value = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {line}: not JSON: {error}") from None
            yield line, object_of(value, where=f"{path}, line {line}")


def delimiter_of(text: str) -> str:
    """Tab, semicolon or comma: the commonest in the first line that is not blank."""
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")
    return max("\t;,", key=first.count)


def separated(text: str, path: Path, *, faults: list[str] | None = None) -> Iterator[tuple[int, dict[str, object]]]:
    """`records` of the text of a CSV or TSV file."""
    delimiter = delimiter_of(text)
    csv.field_size_limit(LARGEST_CELL)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for record in reader:
            with tolerated(faults):
                if None in record or None in record.values():
                    raise UserError(
                        f"{path}, line {reader.line_num}: {'more' if None in record else 'fewer'} cells than the "
                        f"{len(reader.fieldnames or ())} columns of the first line; quote texts that hold {delimiter!r}"
                    )
                yield reader.line_num, record
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.reader.line_num}: not readable as CSV or TSV ({error})") from None
