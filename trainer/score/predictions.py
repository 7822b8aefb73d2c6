"""Predictions out of files: EmoScribe's own, COCO results, SEVLM's, NLX-GPT's, and tables. Ids are compared as text."""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.emotions import EMOTIONS, INDEX, as_shares, emotion_index, label_set, labels_entry, labels_of, number_of
from data.readers.annotations import id_of, kind, object_of, text_of, texts_of
from trainer.score.records import Records, load

Row = dict[str, Any]

# Names that people give the keys and columns; the first that an entry has is taken.
HEADS = {
    "id": ("image_id", "id", "image", "image_name", "file_name"),
    "text": ("explanation", "caption", "text", "utterance"),
    "emotion": ("emotion", "label"),
}
PROMPT, BECAUSE = "the emotion is ", " because "
PREDICTIONS_ARE = "predictions are JSON lines, a JSON list or a CSV of entries with an id and an explanation or caption"


@dataclass(frozen=True, slots=True)
class Texts:
    """What a file of predictions or of references holds, by image id.

    A prediction has "explanation", "emotion" (None where it is none of the labels), "emotion_distribution" and,
    where that is calibrated, "emotion_temperature"; references have "references", "reference_emotions" and "histogram";
    a row of EmoScribe's own has both. "labels" are there where they are not the nine.
    """

    path: Path
    format: str  # in words
    rows: dict[str, Row]
    notes: list[str] = field(default_factory=list)


def read_predictions(path: Path) -> Texts:
    """One text per image, and its emotion where there is one.

    Without an emotion of its own an entry may hold it in its text, "EMOTION because EXPLANATION", as SEVLM and NLX-GPT
    write it: where more than half of a file's texts begin so, all of them are split at their first " because ". A label
    that is none of the emotions is no prediction.

    Raises:
        UserError: not such a file, an image that stands in it twice, or rows of different labels.
    """
    records = records_of(path, PREDICTIONS_ARE)
    heads = heads_of_first(records, path, PREDICTIONS_ARE)
    ids = [id_of(record, heads["id"], where=where) for where, record in records.entries]
    refuse_twice(ids, path)
    rows = {id: _predicted(id, *entry, heads) for id, entry in zip(ids, records.entries, strict=True)}
    refuse_other_labels(rows, path)
    what = "EmoScribe predictions" if any("references" in row for row in rows.values()) else "captions"
    what += f" of {len(rows)} images in {records.form}"
    if "emotion" not in heads and (split := split_all([row["explanation"] for row in rows.values()])):
        what += ', each "EMOTION because EXPLANATION"'
        for row, (emotion, explanation) in zip(rows.values(), split, strict=True):
            row["emotion"], row["explanation"] = emotion, explanation
    return Texts(path, what, rows, _check_emotions(rows, path))


def refuse_twice(ids: Sequence[str], path: Path) -> None:
    if twice := [id for id, count in Counter(ids).items() if count > 1]:
        raise UserError(f"{path}: image {twice[0]!r} stands in it more than once ({len(twice)} such images)")


def refuse_other_labels(rows: Mapping[str, Row], path: Path) -> None:
    """Raises UserError where one row counts through other emotions than another."""
    first, *others = rows.items()
    if other := next((id for id, row in others if labels_of(row) != labels_of(first[1])), None):
        raise UserError(f"{path}: image {other!r} has other 'labels' than {first[0]!r}; a file has one set of emotions")


def records_of(path: Path, wanted: str) -> Records:
    """The entries of a file that is `wanted` (in words, for who gives another)."""
    content = load(path)
    if isinstance(content, dict):
        if not _heads_of(content).keys() >= {"id", "text"}:  # else JSON lines of a single line
            raise UserError(f"{path}: {wanted}; this is {_object_seems(content)}")
        content = Records("JSON lines", [(f"{path}, line 1", content)])
    if not content.entries:
        raise UserError(f"{path}: there is no entry in it")
    return content


def _object_seems(content: Mapping[str, object]) -> str:
    if isinstance(content.get("annotations"), list):
        return "an object of COCO annotations"
    if any(isinstance(value, dict) and "explanations" in value for value in content.values()):
        return "an object of SEVLM annotations"
    return f"an object with the keys {', '.join(reprlib.repr(key) for key in list(content)[:3])}" if content else "{}"


def _heads_of(record: Mapping[str, object]) -> dict[str, str]:
    """Our name of each key → its name in the file."""
    known = {head.strip().lower(): head for head in record if isinstance(head, str)}
    return {ours: known[name] for ours, names in HEADS.items() for name in reversed(names) if name in known}


def heads_of_first(records: Records, path: Path, wanted: str) -> dict[str, str]:
    first = records.entries[0][1]
    heads = _heads_of(first)
    for needed in ("id", "text"):
        if needed not in heads:
            keys = ", ".join(reprlib.repr(key) for key in first) or "none"
            raise UserError(
                f"{path}: the first entry has none of the keys {', '.join(HEADS[needed])}, but {keys}; {wanted}"
            )
    return heads


def _predicted(id: str, where: str, record: Mapping[str, object], heads: Mapping[str, str]) -> Row:
    emotion = record.get(heads.get("emotion", ""))
    distribution, labels = record.get("emotion_distribution"), _labels(record, where=where)
    text, only_named = heads["text"], emotion is not None and record.get(heads["text"], "") is None
    row = {
        "id": id,
        **labels_entry(labels),
        "explanation": None if only_named else text_of(record, text, where=where),
        "emotion": emotion.strip().lower() or None if isinstance(emotion, str) else emotion,
        "emotion_distribution": None,
    }
    if distribution:
        row["emotion_distribution"] = shares_of(distribution, labels, where=f"{where}: 'emotion_distribution'")
    row |= {key: record[key] for key in ("text", "log_prob", "asked_emotion") if key in record}
    if distribution and "emotion_temperature" in record:
        temperature = record["emotion_temperature"]
        if not _is_number(temperature) or not 0 < temperature < math.inf:
            raise UserError(f"{where}: 'emotion_temperature' must be a number above 0, not {reprlib.repr(temperature)}")
        row["emotion_temperature"] = float(temperature)
    if isinstance(record.get("image"), str):
        row["image"] = record["image"]
    if "references" in record:
        row |= own_references(record, where=where)
    return row | _expert(record, labels, where=where)


def _expert(record: Mapping[str, object], labels: Sequence[str], *, where: str) -> Row:
    """Return the distributions of language model, expert and gates, and the gate in use."""
    row: Row = {}
    for key in ("sources", "gates"):
        if record.get(key) is not None:
            found = object_of(record[key], where=f"{where}: {key!r}")
            named = {name: f"{where}: {key!r}: {name!r}" for name in found}
            row[key] = {name: shares_of(found[name], labels, where=place) for name, place in named.items()}
    if record.get("gate") is not None:
        gate = object_of(record["gate"], where=f"{where}: 'gate'")
        weight = gate.get("weight")
        if weight is not None and not (_is_number(weight) and 0 <= weight <= 1):
            raise UserError(f"{where}: 'gate': 'weight' must be a number from 0 to 1, not {reprlib.repr(weight)}")
        row["gate"] = {"name": text_of(gate, "name", where=f"{where}: 'gate'"), "weight": weight}
    if record.get("own") is not None:
        own = object_of(record["own"], where=f"{where}: 'own'")
        only_named = own.get("explanation", "") is None
        text = None if only_named else text_of(own, "explanation", where=f"{where}: 'own'")
        row["own"] = {"emotion": own.get("emotion"), "explanation": text}
    return row


def _labels(record: Mapping[str, object], *, where: str) -> tuple[str, ...]:
    if not record.get("labels"):
        return EMOTIONS
    return label_set(texts_of(record, "labels", where=where), where=f"{where}: 'labels'")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def split_all(texts: Sequence[str]) -> list[tuple[str | None, str]] | None:
    """(emotion, explanation) of every text where more than half of them begin with an emotion; None elsewhere."""
    split = [_split(text or "") for text in texts]
    return split if 2 * sum(emotion in INDEX for emotion, _ in split) > len(split) else None


def _split(text: str) -> tuple[str | None, str]:
    """A text without " because " has no emotion and is its own explanation."""
    head, because, tail = text.strip().removeprefix(PROMPT).partition(BECAUSE)
    return (head.strip().lower(), tail.strip()) if because else (None, text.strip())


def _check_emotions(rows: Mapping[str, Row], path: Path) -> list[str]:
    """Names that are none of the emotions become None; a note says how many predictions are without one."""
    wrong = [row for row in rows.values() if not (isinstance(row["emotion"], str) and row["emotion"] in labels_of(row))]
    if not wrong or all(row["emotion"] is None for row in rows.values()):
        return []
    name = f" ({reprlib.repr(wrong[0]['emotion'])})" if wrong[0]["emotion"] else ""
    first = f"{wrong[0]['id']!r}{name}"
    for row in wrong:
        row["emotion"] = None
    count = number_of(labels_of(wrong[0]))
    return [
        f"{path}: {len(wrong)} of {len(rows)} predictions name none of the {count} emotions and count as wrong, the "
        f"first is that of image {first}"
    ]


def judged(rows: Mapping[str, Row]) -> dict[str, Row]:
    """The rows with a text of people; where there is not one in all of them, those with what people felt."""
    explained = {id: row for id, row in rows.items() if any(map(str.strip, row.get("references", ())))}
    return explained or {id: row for id, row in rows.items() if row.get("histogram")}


def own_references(record: Mapping[str, object], *, where: str) -> Row:
    emotions = texts_of(record, "reference_emotions", where=where) if record.get("reference_emotions") else []
    histogram, labels = record.get("histogram"), _labels(record, where=where)
    row = {
        **labels_entry(labels),
        "references": texts_of(record, "references", where=where),
        "reference_emotions": [labels[emotion_index(name, where=where, labels=labels)] for name in emotions],
        "histogram": histogram and shares_of(histogram, labels, where=f"{where}: 'histogram'"),
    }
    return row | ({"image": record["image"]} if isinstance(record.get("image"), str) else {})


def shares_of(value: object, labels: Sequence[str], *, where: str) -> list[float]:
    """The shares of the emotions, given as shares or counts."""
    good = isinstance(value, list) and len(value) == len(labels)
    if not good or not all(_is_number(v) and 0 <= v < math.inf for v in value):
        shown = reprlib.repr(value) if isinstance(value, list) else kind(value)
        raise UserError(f"{where} must be {number_of(labels)} numbers of at least 0, one for each emotion, not {shown}")
    total = math.fsum(value)
    if total == 0:
        raise UserError(f"{where} sums to 0")
    return [*as_shares(value, total)]
