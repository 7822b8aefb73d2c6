"""The texts of an annotation file and nothing else, for counting words in them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from common.errors import UserError
from data.readers.annotations import TABLES, guess_format, load_json, read_text
from data.readers.table import HEADS, column_of, records


def read_texts(path: Path) -> list[str]:
    """Every text of a file, in order: ArtEmis or COCO JSON, raw ArtEmis CSV, a CSV, TSV or JSON lines file with a
    column of texts (named as in data/readers/table.py), or, under any other ending, a text per line.

    Raises:
        UserError: no such file, not readable as what its ending says, or without a text.
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
        raise UserError(f"{path}: there is no text in it")
    return texts


def _from_json(value: object, path: Path) -> Iterator[object]:
    kind = guess_format(value)
    if kind == "artemis":
        for record in value.values():
            yield from _many(record, "explanations")
    elif kind == "coco":
        for record in _many(value, "annotations"):
            yield record.get("caption") if isinstance(record, Mapping) else None
        for image in _many(value, "images"):
            for sentence in _many(image, "sentences"):
                yield sentence.get("raw") if isinstance(sentence, Mapping) else sentence
    else:
        raise UserError(
            f"{path}: neither ArtEmis nor COCO annotations; give a CSV with a column text, or a text per line"
        )


def _many(record: object, key: str) -> list[object]:
    value = record.get(key) if isinstance(record, Mapping) else None
    return value if isinstance(value, list) else []


def _column(path: Path) -> Iterator[object]:
    head = None
    for _, record in records(path):
        head = head or column_of("text", record)
        if head is None:
            raise UserError(f"{path}: none of its columns is called {', '.join(HEADS['text'])}")
        yield record.get(head)
