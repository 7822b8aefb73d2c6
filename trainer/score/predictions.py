"""Read predictions: EmoScribe's own, COCO results, SEVLM's, NLX-GPT's, and tables. Ids are compared as text."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.emotions import (
    EMOTIONS,
    INDEX,
    emotion_index,
    label_set,
    labels_entry,
    labels_of,
    normalize_label,
    number_word,
)
from data.readers.annotations import guess_format, id_of, is_number, object_of, shares_of, text_of, texts_of
from data.readers.records import Records, load

Row = dict[str, Any]

HEADS = {  # common names of the keys and columns, in order of preference
    "id": ("image_id", "id", "image", "image_name", "file_name"),
    "text": ("explanation", "caption", "text", "utterance"),
    "emotion": ("emotion", "label"),
}
PROMPT, BECAUSE = "the emotion is ", " because "
PREDICTIONS_ARE = "predictions are JSON lines, a JSON list or a CSV of entries with an id and an explanation or caption"


@dataclass(frozen=True, slots=True)
class Texts:
    """Predictions or references by image id.

    A prediction has "explanation", "emotion" (None if it is none of the labels), "emotion_distribution" and, if that is
    calibrated, "emotion_temperature"; references have "references", "reference_emotions" and "histogram"; EmoScribe's
    own rows have both, and "vad" and "ratings" if there are any. "labels" are given if they are not the nine.
    """

    path: Path
    format: str  # description
    rows: dict[str, Row]
    notes: list[str] = field(default_factory=list)


def read_predictions(path: Path) -> Texts:
    """Read one text per image, and its emotion if there is one.

    SEVLM and NLX-GPT write "EMOTION because EXPLANATION" as the text. If more than half of the texts of a file without
    emotions begin so, all of them are split at their first " because ". A name that is none of the labels is no
    prediction.

    Raises:
        UserError: not such a file, a repeated image, or rows with different labels.
    """
    records = records_of(path, PREDICTIONS_ARE)
    heads = heads_of_first(records, path, PREDICTIONS_ARE)
    rows = {id: _predicted(id, *entry, heads) for id, entry in entries_by_id(records, heads["id"], path).items()}
    first, *others = rows.items()
    if other := next((id for id, row in others if labels_of(row) != labels_of(first[1])), None):
        raise UserError(f"{path}: image {other!r} has other 'labels' than {first[0]!r}; a file has one set of emotions")
    what = "EmoScribe predictions" if any("references" in row for row in rows.values()) else "captions"
    what += f" of {len(rows)} images in {records.form}"
    if "emotion" not in heads and (split := split_all([row["explanation"] for row in rows.values()])):
        what += ', each "EMOTION because EXPLANATION"'
        for row, (emotion, explanation) in zip(rows.values(), split, strict=True):
            row["emotion"], row["explanation"] = emotion, explanation
    return Texts(path, what, rows, _check_emotions(rows, path))


def entries_by_id(records: Records, key: str, path: Path) -> dict[str, tuple[str, Mapping[str, object]]]:
    """Return the entries, each with its place in the file, by image id; raise UserError for a repeated image."""
    ids = [id_of(record, key, where=where) for where, record in records.entries]
    if twice := [id for id, count in Counter(ids).items() if count > 1]:
        raise UserError(f"{path}: image {twice[0]!r} occurs more than once ({len(twice)} such images)")
    return dict(zip(ids, records.entries, strict=True))


def records_of(path: Path, wanted: str) -> Records:
    """Return the entries of a file; `wanted` describes the expected format for the error message."""
    content = load(path)
    if isinstance(content, dict):
        if not _heads_of(content).keys() >= {"id", "text"}:  # else JSON lines of a single line
            found = f"an object with the keys {reprlib.repr(list(content))}"
            if "annotations" in content or guess_format(content) == "artemis":
                found = "COCO annotations" if "annotations" in content else "SEVLM annotations"
            raise UserError(f"{path}: {wanted}; this is {found}")
        content = Records("JSON lines", [(f"{path}, line 1", content)])
    if not content.entries:
        raise UserError(f"{path}: the file has no entry")
    return content


def _heads_of(record: Mapping[str, object]) -> dict[str, str]:
    """Return the name in the file of each key of HEADS that the record has."""
    known = {head.strip().lower(): head for head in record if isinstance(head, str)}
    return {ours: known[name] for ours, names in HEADS.items() for name in reversed(names) if name in known}


def heads_of_first(records: Records, path: Path, wanted: str) -> dict[str, str]:
    """Return `_heads_of` the first entry; raise UserError if it lacks an id or a text."""
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
    emotion = record.get(heads["emotion"]) if "emotion" in heads else None
    distribution, labels = record.get("emotion_distribution"), _labels(record, where=where)
    silent = emotion is not None or "vad" in record  # a head for ratings explains nothing
    row = {
        "id": id,
        **labels_entry(labels),
        "explanation": _explanation(record, heads["text"], required=not silent, where=where),
        "emotion": normalize_label(emotion) or None if isinstance(emotion, str) else emotion,
        "emotion_distribution": None,
    }
    if distribution:
        row["emotion_distribution"] = shares_of(distribution, labels, where=f"{where}: 'emotion_distribution'")
    row |= {key: record[key] for key in ("text", "log_prob", "asked_emotion") if key in record}
    if distribution and "emotion_temperature" in record:
        temperature = record["emotion_temperature"]
        if not is_number(temperature) or not 0.001 <= temperature <= 1000:
            shown = reprlib.repr(temperature)
            raise UserError(f"{where}: 'emotion_temperature' must be a number from 0.001 to 1000, not {shown}")
        row["emotion_temperature"] = float(temperature)
    row |= {key: record[key] for key in ("image", "group") if isinstance(record.get(key), str)}
    if "references" in record:
        row |= own_references(record, where=where)
    return row | _vad(record, where=where) | _looking(record, where=where) | _expert(record, labels, where=where)


def _vad(record: Mapping[str, object], *, where: str) -> Row:
    """Return the predicted valence, arousal and dominance, and people's ratings with both ends of their scale."""
    row: Row = {}
    for key, lengths in (("vad", (2, 3)), ("ratings", (5,))):
        if (found := record.get(key)) is None:
            continue
        numbers = isinstance(found, list) and all(value is None or is_number(value) for value in found)
        if not numbers or len(found) not in lengths or (key == "ratings" and not _is_scale(*found[3:])):
            raise UserError(f"{where}: {key!r} must be {lengths[-1]} numbers, not {reprlib.repr(found)}")
        row[key] = found
    return row


def _is_scale(low: float | None, high: float | None) -> bool:
    return low is not None and high is not None and low < high


def _looking(record: Mapping[str, object], *, where: str) -> Row:
    """Return what mode=test adds about looking: nearest training text, rank, swapped subject, pointing."""
    row: Row = {"nearest": text_of(record, "nearest", where=where)} if record.get("nearest") is not None else {}
    if record.get("match") is not None:
        row["match"] = _ranks(record["match"], where=f"{where}: 'match'")
    if record.get("match_vle") is not None:
        match = object_of(record["match_vle"], where=f"{where}: 'match_vle'")
        row["match_vle"] = {"chosen": match.get("chosen") is True}
        for name in {"same", "random"} & match.keys():
            row["match_vle"][name] = _ranks(match[name], where=f"{where}: 'match_vle': {name!r}")
    if record.get("swap") is not None:
        swap = object_of(record["swap"], where=f"{where}: 'swap'")
        if not isinstance(swap.get("right"), bool):
            raise UserError(f"{where}: 'swap': 'right' must be true or false, not {reprlib.repr(swap.get('right'))}")
        row["swap"] = {"right": swap["right"], "blind": swap.get("blind") is True}
    if record.get("pointing") is not None:
        pointing = object_of(record["pointing"], where=f"{where}: 'pointing'")
        numbers = [pointing.get(key) for key in ("hit", "mean_map", "center", "area")]
        numbers += [pointing[key] for key in ("vle", "vle_other", "vle_area") if pointing.get(key) is not None]
        if not all(isinstance(n, bool) or (is_number(n) and 0 <= n <= 1) for n in numbers):
            raise UserError(f"{where}: 'pointing' needs hit, mean_map, center and area, not {reprlib.repr(pointing)}")
        row["pointing"] = pointing
    return row


def _ranks(value: object, *, where: str) -> dict[str, float]:
    """Return "rank", "people" if it is there, and "of", the number of pictures."""
    found = object_of(value, where=where)
    for key in ("rank", *({"people"} & found.keys())):
        rank, of = found.get(key), found.get("of")
        if not (is_number(rank) and is_number(of) and 1 <= rank <= of):
            raise UserError(f"{where} must have a {key!r} from 1 to 'of', not {reprlib.repr(found)}")
    return {key: found[key] for key in ("rank", "people", "of") if key in found}


def _expert(record: Mapping[str, object], labels: Sequence[str], *, where: str) -> Row:
    """Return the distributions of language model, expert and gates, the gate in use, and the model's own caption."""
    row: Row = {}
    for key in ("sources", "gates"):
        if record.get(key) is not None:
            found = object_of(record[key], where=f"{where}: {key!r}")
            named = {name: f"{where}: {key!r}: {name!r}" for name in found}
            row[key] = {name: shares_of(found[name], labels, where=place) for name, place in named.items()}
    if record.get("gate") is not None:
        gate = object_of(record["gate"], where=f"{where}: 'gate'")
        weights = object_of(gate.get("weights") or {}, where=f"{where}: 'gate': 'weights'")
        if wrong := [w for w in weights.values() if not (is_number(w) and 0 <= w <= 1)]:
            raise UserError(f"{where}: 'gate': 'weights' must be numbers from 0 to 1, not {reprlib.repr(wrong[0])}")
        row["gate"] = {"name": text_of(gate, "name", where=f"{where}: 'gate'"), "weights": weights}
    if record.get("own") is not None:
        own = object_of(record["own"], where=f"{where}: 'own'")
        text = _explanation(own, "explanation", required=False, where=f"{where}: 'own'")
        name = own.get("emotion")
        row["own"] = {"emotion": normalize_label(name) if isinstance(name, str) else None, "explanation": text}
    return row


def _explanation(record: Mapping[str, object], key: str, *, required: bool, where: str) -> str | None:
    """Return the text under `key`; null is allowed for a model that only names emotions, unless `required`."""
    return None if not required and record.get(key, "") is None else text_of(record, key, where=where)


def _labels(record: Mapping[str, object], *, where: str) -> tuple[str, ...]:
    if not record.get("labels"):
        return EMOTIONS
    return label_set(texts_of(record, "labels", where=where), where=f"{where}: 'labels'")


def split_all(texts: Sequence[str]) -> list[tuple[str | None, str]] | None:
    """Return (emotion, explanation) of every text if more than half of them begin with an emotion, else None.

    A text without " because " has no emotion and is the explanation itself.
    """
    split = []
    for text in texts:
        head, because, tail = (text or "").strip().removeprefix(PROMPT).partition(BECAUSE)
        split.append((normalize_label(head), tail.strip()) if because else (None, (text or "").strip()))
    return split if 2 * sum(emotion in INDEX for emotion, _ in split) > len(split) else None


def _check_emotions(rows: Mapping[str, Row], path: Path) -> list[str]:
    """Replace names that are none of the labels by None, and return a note with their number."""
    wrong = [row for row in rows.values() if not (isinstance(row["emotion"], str) and row["emotion"] in labels_of(row))]
    if not wrong or all(row["emotion"] is None for row in rows.values()):
        return []
    name = f" ({reprlib.repr(wrong[0]['emotion'])})" if wrong[0]["emotion"] else ""
    for row in wrong:
        row["emotion"] = None
    return [
        f"{path}: {len(wrong)} of {len(rows)} predictions name none of the {number_word(labels_of(wrong[0]))} emotions "
        f"and count as wrong, the first is that of image {wrong[0]['id']!r}{name}"
    ]


def with_references(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Return the rows with a reference text, or, if none has one, those with a histogram or ratings."""
    explained = {id: row for id, row in rows.items() if any(map(str.strip, row.get("references", ())))}
    return explained or {id: row for id, row in rows.items() if row.get("histogram") or row.get("ratings")}


def own_references(record: Mapping[str, object], *, where: str) -> Row:
    emotions = texts_of(record, "reference_emotions", where=where) if record.get("reference_emotions") else []
    histogram, labels = record.get("histogram"), _labels(record, where=where)
    row = {
        **labels_entry(labels),
        "references": texts_of(record, "references", where=where),
        "reference_emotions": [labels[emotion_index(name, where=where, labels=labels)] for name in emotions],
        "histogram": histogram and shares_of(histogram, labels, where=f"{where}: 'histogram'"),
    }
    return row | {key: record[key] for key in ("image", "language") if isinstance(record.get(key), str)}
