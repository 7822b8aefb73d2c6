"""Read only the texts of an annotation file, and their emotions, without its images."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from data.emotions import normalize_label
from data.languages import language_name
from data.readers.annotations import TABLES, guess_format, load_json, read_text
from data.readers.table import HEADS, column_of, records
from data.split_names import split_name


class AnnotatedText(NamedTuple):
    text: str
    emotion: str | None = None  # its name
    language: str = ""  # as data.languages.language_name; "" if the file does not name it


def read_texts(path: Path) -> list[str]:
    """Return every text of a file, in order; formats and errors as in `read_annotated_texts`."""
    return [found.text for found in read_annotated_texts(path)]


def read_annotated_texts(path: Path, *, split: str | None = None) -> list[AnnotatedText]:
    """Return every text of a file, in order, with its emotion and language if the file names them.

    Args:
        split: of a table with a column split, only the rows of this one.

    The suffix decides the format: ArtEmis or COCO JSON; raw ArtEmis CSV, or CSV, TSV or JSON Lines with a column of
    texts named as in data/readers/table.py; any other suffix: one text per line.

    Raises:
        UserError: missing, not readable in that format, or without a text.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        found: Iterable[tuple[object, object, object]] = _from_json(load_json(path), path)
    elif suffix in TABLES:
        found = _columns(path, split)
    else:
        found = (AnnotatedText(line) for line in io.StringIO(read_text(path)))
    texts = [
        AnnotatedText(text.strip(), _emotion(name), language_name(language))
        for text, name, language in found
        if isinstance(text, str) and text.strip()
    ]
    if not texts:
        raise UserError(f"{path}: the file has no text")
    return texts


def _emotion(name: object) -> str | None:
    return normalize_label(name) or None if isinstance(name, str) else None


def _from_json(value: object, path: Path) -> Iterable[tuple[object, object, object]]:
    """Yield texts with their emotion and language, "" or None where the file has none."""
    kind = guess_format(value)
    if kind == "artemis":
        records = [
            (*(_many(record, key) for key in ("explanations", "emotions")), record.get("language"))
            for record in value.values()
        ]
        return [
            (text, emotion, language)
            for texts, emotions, language in records
            for text, emotion in zip_longest(texts, emotions[: len(texts)])
        ]
    if kind == "coco":
        captions = [record.get("caption") for record in _many(value, "annotations") if isinstance(record, Mapping)]
        sentences = [sentence for image in _many(value, "images") for sentence in _many(image, "sentences")]
        captions += [found.get("raw") if isinstance(found, Mapping) else found for found in sentences]
        return [AnnotatedText(caption) for caption in captions]
    raise UserError(
        f"{path}: neither ArtEmis nor COCO annotations; pass a CSV with a column text, or one text per line"
    )


def _many(record: object, key: str) -> list[object]:
    value = record.get(key) if isinstance(record, Mapping) else None
    return value if isinstance(value, list) else []


def _columns(path: Path, wanted: str | None) -> Iterator[tuple[object, object, object]]:
    text = emotion = split = language = None
    for line, record in records(path):
        if text is None:
            fields = ("text", "emotion", "split", "language")
            text, emotion, split, language = (column_of(field, record) for field in fields)
        if text is None:
            raise UserError(f"{path}: none of its columns is named {', '.join(HEADS['text'])}")
        if None in (wanted, split) or split_name(record[split], where=f"{path}, line {line}") == wanted:
            yield record.get(text), record.get(emotion), record.get(language)
