"""Read what each image shows, and the phrases that name it, from a JSON file such as the demo's facts.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError, shorten
from data.readers.annotations import list_of, load_json, object_of, text_of, texts_of, value_of

KEYS, BOXES = ("phrases", "images"), "boxes"
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Facts:
    """Phrases by kind and value, and the true values of images by id and kind.

    {"subject": {"boat": ("boat", "sailing boats")}}, {"17": {"subject": ("boat",)}}

    boxes: of the subject, by image id: left, top, right, bottom as shares of the picture. Images may lack them.
    """

    path: Path
    phrases: dict[str, dict[str, tuple[str, ...]]]
    images: dict[str, dict[str, tuple[str, ...]]]
    boxes: dict[str, tuple[Box, ...]] = field(default_factory=dict)


def read_facts(path: Path) -> Facts:
    """Return the facts in the file {"phrases": {KIND: {VALUE: [PHRASE, …]}}, "images": {ID: {KIND: VALUE, …}}}.

    An image may have a list of values of a kind, or lack the kind, and may have "boxes" of its subject; its other keys
    are ignored. A value without phrases cannot be named.

    Raises:
        UserError: not such a file; names the file and the key.
    """
    content = object_of(load_json(path), where=str(path))
    phrases, images = (object_of(value_of(content, key, where=str(path)), where=f"{path}: {key!r}") for key in KEYS)
    kinds = {kind: _phrases(values, where=f"{path}: 'phrases': {kind!r}") for kind, values in phrases.items()}
    if not kinds:
        raise UserError(f"{path}: 'phrases' is empty; give it a kind such as subject, with the phrases of each value")
    found, boxes = {}, {}
    for id, entry in images.items():
        where = f"{path}: image {id!r}"
        record = object_of(entry, where=where)
        found[id] = {kind: _values(record, kind, where=where) for kind in kinds if kind in record}
        if BOXES in record:
            boxes[id] = tuple(_box(box, where=f"{where}: {BOXES!r}") for box in list_of(record, BOXES, where=where))
    return Facts(path, kinds, found, boxes)


def _box(value: object, *, where: str) -> Box:
    numbers = value if isinstance(value, list) else ()
    if len(numbers) != 4 or not all(isinstance(number, int | float) for number in numbers):
        raise UserError(f"{where}: a box is [left, top, right, bottom], not {shorten(value)}")
    return tuple(numbers)


def _phrases(values: object, *, where: str) -> dict[str, tuple[str, ...]]:
    """Return the phrases of each value; raise UserError for an empty one, or one that names two values."""
    record, owners = object_of(values, where=where), dict[str, str]()
    found = {value: tuple(texts_of(record, value, where=where)) for value in record}
    for value, phrases in found.items():
        for phrase in phrases:
            words = " ".join(phrase.lower().split())
            if not words or (other := owners.setdefault(words, value)) != value:
                what = f"and {other!r} share the phrase {phrase!r}" if words else "has an empty phrase"
                raise UserError(f"{where}: {value!r} {what}; a phrase must name one value")
    return found


def _values(record: Mapping[str, object], kind: str, *, where: str) -> tuple[str, ...]:
    if isinstance(record[kind], list):
        return tuple(texts_of(record, kind, where=where))
    return (text_of(record, kind, where=where),)
