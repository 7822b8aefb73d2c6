"""Read references (COCO annotations, SEVLM's, tables, EmoScribe's predictions), and join them with predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import UserError
from data.emotions import EMOTIONS, INDEX, emotion_index, labels_entry, labels_of
from data.readers.annotations import id_of, list_of, object_of, shares_of, text_of, texts_of
from data.readers.artemis import HISTOGRAM_KEYS, labels_in
from data.readers.records import Records, load
from trainer.score.predictions import (
    Row,
    Texts,
    entries_by_id,
    heads_of_first,
    own_references,
    records_of,
    split_all,
    with_references,
)

REFERENCES_ARE = "references are COCO or SEVLM annotations, predictions.jsonl, or a CSV with an id and a text"


def read_references(path: Path, labels: Sequence[str] = EMOTIONS) -> Texts:
    """Read the human texts of each image, and the emotions if the file has them.

    The file is COCO annotations, SEVLM's (`origin_emotion_distribution` is the histogram; without explanations, its
    emotions are votes and may be others than the nine), EmoScribe's predictions.jsonl, or has entries of an id, a text
    and optionally an emotion, any number per image.

    Args:
        labels: of a file of such entries; COCO and SEVLM annotations have the nine, predictions.jsonl names its own.

    Raises:
        UserError: not such a file, or a malformed entry.
    """
    content = load(path)
    votes = _is_votes(content)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        rows, form = _from_coco(content, path), "COCO annotations"
    elif votes or (
        isinstance(content, dict) and any("explanations" in v for v in content.values() if isinstance(v, dict))
    ):
        rows, form = _from_sevlm(content, path, labels_in(content) if votes else EMOTIONS), "SEVLM annotations"
    else:
        records = records_of(path, REFERENCES_ARE)
        votes = any("references" in record for _, record in records.entries)
        if votes:
            entries = entries_by_id(records, "id", path)
            rows = {id: own_references(record, where=where) for id, (where, record) in entries.items()}
            form = f"EmoScribe predictions in {records.form}"
        else:
            rows, form = _from_table(records, path, labels), records.form
    rows = with_references(rows) if votes else {id: row for id, row in rows.items() if row["references"]}
    if not rows:
        raise UserError(f"{path}: none of its images has a reference text")
    count = sum(len(row["references"]) for row in rows.values())
    emotions = " with emotions" if any(row["histogram"] for row in rows.values()) else ""
    return Texts(path, f"{form}: {count} texts{emotions} on {len(rows)} images", rows)


def _row(
    texts: Sequence[str],
    emotions: Sequence[str] = (),
    histogram: Sequence[float] | None = None,
    labels: Sequence[str] = EMOTIONS,
) -> Row:
    """Return the row; without a histogram, the emotions are counted."""
    if histogram is None and emotions:
        histogram = [emotions.count(name) / len(emotions) for name in labels]
    pairs = [(text, name) for text, name in zip(texts, emotions or [None] * len(texts), strict=True) if text.strip()]
    return {
        **labels_entry(labels),
        "references": [text for text, _ in pairs],
        "reference_emotions": [name for _, name in pairs] if emotions else [],
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
    rows = {id: _split_row([next(pairs) for _ in texts]) if split else _row(texts) for id, texts in captions.items()}
    for entry in content["images"] if isinstance(content.get("images"), list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str) and str(entry.get("id")) in rows:
            rows[str(entry["id"])]["image_name"] = entry["file_name"]
    return rows


def _split_row(pairs: Sequence[tuple[str | None, str]]) -> Row:
    """Return the row of split texts, without emotions if one of them is none of the nine."""
    names = [emotion for emotion, _ in pairs if emotion in INDEX]
    return _row([text for _, text in pairs], names if len(names) == len(pairs) else ())


def _is_votes(content: object) -> bool:
    """Return whether a file is ArtEmis' or SEVLM's without explanations."""
    entries = [*content.values()] if isinstance(content, dict) else []
    return bool(entries) and all(
        isinstance(entry, dict) and isinstance(entry.get("emotions"), list) and "explanations" not in entry
        for entry in entries
    )


def _from_sevlm(content: Mapping[str, object], path: Path, labels: Sequence[str]) -> dict[str, Row]:
    rows, votes = {}, _is_votes(content)
    for id, entry in content.items():
        where = f"{path}: image {id!r}"
        record = object_of(entry, where=where)
        felt = texts_of(record, "emotions", where=where)
        texts = texts_of(record, "explanations", where=where) if not votes else [""] * len(felt)
        if len(texts) != len(felt):
            raise UserError(f"{where}: 'explanations' has {len(texts)} entries and 'emotions' {len(felt)}")
        names = [labels[emotion_index(name, where=where, labels=labels)] for name in felt]
        given = next((key for key in HISTOGRAM_KEYS if record.get(key) is not None), None)
        shares = given and shares_of(record[given], labels, where=f"{where}: {given!r}")
        rows[id] = _row(texts, names, shares, labels)
        rows[id] |= {key: record[key] for key in ("image_name", "language") if isinstance(record.get(key), str)}
    return rows


def _from_table(records: Records, path: Path, labels: Sequence[str]) -> dict[str, Row]:
    heads = heads_of_first(records, path, REFERENCES_ARE)
    found: dict[str, tuple[list[str], list[str]]] = {}
    for where, record in records.entries:
        texts, names = found.setdefault(id_of(record, heads["id"], where=where), ([], []))
        texts.append(text_of(record, heads["text"], where=where))
        if "emotion" in heads:
            names.append(labels[emotion_index(record.get(heads["emotion"]), where=where, labels=labels)])
    return {id: _row(texts, names, labels=labels) for id, (texts, names) in found.items()}


def join(predictions: Texts, references: Texts | None, *, subset: bool = False) -> tuple[list[Row], list[str]]:
    """Return rows as in predictions.jsonl, in the order of the predictions, and notes on omitted images.

    Args:
        references: None if the predictions contain them.
        subset: use only the images that both have, instead of refusing files that differ.

    Raises:
        UserError: different images (unless `subset`), none in common, or different labels.
    """
    if references is None:
        references = _own(predictions, subset=subset)
    notes = [*predictions.notes, *references.notes]
    ids = common(predictions, references, subset=subset)
    rows = [_joined(predictions, references, id) for id in ids]
    if len(ids) < len(predictions.rows) or len(ids) < len(references.rows):
        notes.append(
            f"scored are the {len(ids)} images that have a prediction and references, of {len(predictions.rows)} "
            f"predicted and {len(references.rows)} with references"
        )
    return rows, notes


def _joined(predictions: Texts, references: Texts, id: str) -> Row:
    """Return the row of an image; its histogram has the order of the predicted labels, if all votes are among them."""
    said, felt = predictions.rows[id], references.rows[id]
    labels, theirs = labels_of(said), labels_of(felt)
    if not said.get("emotion_distribution") or not felt.get("histogram") or labels == theirs:
        return {**said, **felt}
    shares = dict(zip(theirs, felt["histogram"], strict=True))
    if any(shares[name] > 0 for name in theirs if name not in labels):
        raise UserError(
            f"{predictions.path} is of the emotions {', '.join(labels)} and {references.path} of {', '.join(theirs)}"
        )
    return {**said, **felt, **labels_entry(labels), "histogram": [shares.get(name, 0.0) for name in labels]}


def _own(predictions: Texts, *, subset: bool) -> Texts:
    having = with_references(predictions.rows)
    if not having:
        raise UserError(f"{predictions.path} has no references; give --references FILE")
    without = [id for id in predictions.rows if id not in having]
    if without and not subset:
        raise UserError(
            f"{predictions.path}: image {without[0]!r} has no references ({len(without)} such images); --subset leaves "
            "them out, --references FILE replaces all references"
        )
    return Texts(predictions.path, "its own", having)


def common(a: Texts, b: Texts, *, subset: bool) -> list[str]:
    """Return the ids of the images that both have, in the order of `a`.

    Raises:
        UserError: none in common, or one has images that the other lacks (unless `subset`).
    """
    ids = [id for id in a.rows if id in b.rows]
    if not ids:
        first, second = next(iter(a.rows)), next(iter(b.rows))
        raise UserError(
            f"{a.path} (images such as {first!r}) and {b.path} (such as {second!r}) have no image in common"
        )
    parts = []
    for one, other in ((a, b), (b, a)):
        if only := [id for id in one.rows if id not in other.rows]:
            images = "image is" if len(only) == 1 else "images are"
            parts.append(f"{len(only)} {images} only in {one.path}, the first is {only[0]!r}")
    if parts and not subset:
        raise UserError(f"{' and '.join(parts)}; --subset scores the {len(ids)} that both have")
    return ids
