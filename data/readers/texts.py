"""Read only the texts of an annotation file, for counting words."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from common.errors import UserError
from data.readers.annotations import TABLES, guess_format, load_json, read_text
from data.readers.table import HEADS, column_of, records


def read_texts(path: Path) -> list[str]:
    """Return every text of a file, in order.

    The suffix decides the format: ArtEmis or COCO JSON; raw ArtEmis CSV, or CSV, TSV or JSON Lines with a column of
    texts named as in data/readers/table.py; any other suffix: one text per line.

    Raises:
        UserError: missing, not readable in that format, or without a text.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        found: Iterable[object] = _from_json(load_json(path), path)
    elif suffix in TABLES:
        found = _column(path)
    else:
        found = io.StringIO(read_text(path))
    texts = [text.strip() for text in found if isinstance(text, str) and text.strip()]
    if not texts:
        raise UserError(f"{path}: the file has no text")
    return texts


def _from_json(value: object, path: Path) -> list[object]:
    kind = guess_format(value)
    if kind == "artemis":
        return [text for record in value.values() for text in _many(record, "explanations")]
    if kind == "coco":
        captions = [record.get("caption") for record in _many(value, "annotations") if isinstance(record, Mapping)]
        sentences = [sentence for image in _many(value, "images") for sentence in _many(image, "sentences")]
        return captions + [found.get("raw") if isinstance(found, Mapping) else found for found in sentences]
    raise UserError(
        f"{path}: neither ArtEmis nor COCO annotations; pass a CSV with a column text, or one text per line"
    )


def _many(record: object, key: str) -> list[object]:
    value = record.get(key) if isinstance(record, Mapping) else None
    return value if isinstance(value, list) else []


def _column(path: Path) -> Iterator[object]:
    head = None
    for _, record in records(path):
        head = head or column_of("text", record)
        if head is None:
            raise UserError(f"{path}: none of its columns is named {', '.join(HEADS['text'])}")
        yield record.get(head)
