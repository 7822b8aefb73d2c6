"""What people said and felt, out of files: COCO annotations, SEVLM's, tables, and EmoScribe's predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import UserError
from data.emotions import EMOTIONS, INDEX, emotion_index
from data.readers.annotations import id_of, list_of, object_of, text_of, texts_of
from data.readers.artemis import HISTOGRAM_KEYS
from trainer.score.predictions import (
    Row,
    Texts,
    heads_of_first,
    judged,
    own_references,
    records_of,
    refuse_twice,
    shares_of,
    split_all,
)
from trainer.score.records import Records, load

OWN = "EmoScribe predictions"
REFERENCES_ARE = (
    "references are COCO or SEVLM annotations, EmoScribe's predictions.jsonl, or a CSV with an id and a text"
)


def read_references(path: Path) -> Texts:
    """What people said of each image, and what they felt where the file says so.

    COCO annotations, SEVLM's (`origin_emotion_distribution` is the histogram), EmoScribe's predictions.jsonl, or
    entries of an id, a text and perhaps an emotion, any number for an image.

    Raises:
        UserError: not such a file, or a fault in it.
    """
    content = load(path)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        rows, form = _from_coco(content, path), "COCO annotations"
    elif isinstance(content, dict) and any(isinstance(v, dict) and "explanations" in v for v in content.values()):
        rows, form = _from_sevlm(content, path), "SEVLM annotations"
    else:
        records = records_of(path, REFERENCES_ARE)
        if any("references" in record for _, record in records.entries):
            rows, form = _from_own(records, path), f"{OWN} in {records.form}"
        else:
            rows, form = _from_table(records, path), records.form
    texts = {id: row for id, row in rows.items() if any(text.strip() for text in row["references"])}
    rows = judged(rows) if form.startswith(OWN) else texts
    if not rows:
        raise UserError(f"{path}: none of its images has a reference text")
    count = sum(len(row["references"]) for row in rows.values())
    emotions = " with emotions" if any(row["histogram"] for row in rows.values()) else ""
    return Texts(path, f"{form}: {count} texts{emotions} on {len(rows)} images", rows)


def _row(texts: Sequence[str], emotions: Sequence[str] = (), histogram: Sequence[float] | None = None) -> Row:
    """The histogram, where it is not given, is that of the listed emotions."""
    if histogram is None and emotions:
        histogram = [emotions.count(name) / len(emotions) for name in EMOTIONS]
    kept = [(text, name) for text, name in zip(texts, emotions or [None] * len(texts), strict=True) if text.strip()]
    return {
        "references": [text for text, _ in kept],
        "reference_emotions": [name for _, name in kept] if emotions else [],
        "histogram": histogram,
    }


def _from_coco(content: Mapping[str, object], path: Path) -> dict[str, Row]:
    captions: dict[str, list[str]] = {}
    for number, entry in enumerate(list_of(content, "annotations", where=str(path))):
        where = f"{path}: annotations[{number}]"
        record = object_of(entry, where=where)
        captions.setdefault(id_of(record, "image_id", where=where), []).append(text_of(record, "caption", where=where))
    split = split_all([text for texts in captions.values() for text in texts])
    pairs = iter(split or ())
    rows = {
        id: _row(texts) if split is None else _split_row([next(pairs) for _ in texts]) for id, texts in captions.items()
    }
    for entry in content["images"] if isinstance(content.get("images"), list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str) and str(entry.get("id")) in rows:
            rows[str(entry["id"])]["image_name"] = entry["file_name"]
    return rows


def _split_row(pairs: Sequence[tuple[str | None, str]]) -> Row:
    """Of texts "EMOTION because EXPLANATION"; an image with a label that is none of the nine has no emotions."""
    names = [emotion for emotion, _ in pairs if emotion in INDEX]
    return _row([text for _, text in pairs], names if len(names) == len(pairs) else ())


def _from_sevlm(content: Mapping[str, object], path: Path) -> dict[str, Row]:
    rows = {}
    for id, entry in content.items():
        where = f"{path}: image {id!r}"
        record = object_of(entry, where=where)
        texts, labels = (texts_of(record, key, where=where) for key in ("explanations", "emotions"))
        if len(texts) != len(labels):
            raise UserError(f"{where}: 'explanations' has {len(texts)} entries and 'emotions' {len(labels)}")
        names = [EMOTIONS[emotion_index(label, where=where)] for label in labels]
        given = next((key for key in HISTOGRAM_KEYS if record.get(key) is not None), None)
        rows[id] = _row(texts, names, given and shares_of(record[given], EMOTIONS, where=f"{where}: {given!r}"))
        if isinstance(record.get("image_name"), str):
            rows[id]["image_name"] = record["image_name"]
    return rows


def _from_own(records: Records, path: Path) -> dict[str, Row]:
    ids = [id_of(record, "id", where=where) for where, record in records.entries]
    refuse_twice(ids, path)
    return {id: own_references(record, where=where) for id, (where, record) in zip(ids, records.entries, strict=True)}


def _from_table(records: Records, path: Path) -> dict[str, Row]:
    heads = heads_of_first(records, path, REFERENCES_ARE)
    found: dict[str, tuple[list[str], list[str]]] = {}
    for where, record in records.entries:
        texts, names = found.setdefault(id_of(record, heads["id"], where=where), ([], []))
        texts.append(text_of(record, heads["text"], where=where))
        if "emotion" in heads:
            names.append(EMOTIONS[emotion_index(record.get(heads["emotion"]), where=where)])
    return {id: _row(texts, names) for id, (texts, names) in found.items()}
