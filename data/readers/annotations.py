"""JSON annotation files: read whole, and every fault in them told by file, image id and key."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError
from common.reading import read_bytes
from data.readers.resolver import relative_name

FORMATS = {
    "artemis": "an ArtEmis file is an object of image ids, each with image_name, emotions and explanations",
    "coco": "a COCO captions file is an object with the lists images and annotations, or images with sentences",
    "mlslt": "an MLSLT file is a list of objects, each with id and sign_list",
    "emotion_folder": "a list of pictures is, as EmoSet's, a list of lists, each of an emotion and a path",
}


TABLES = (".csv", ".tsv", ".jsonl")


class _DuplicateKey(Exception):
    """A key that stands twice in one JSON object: the second would silently replace the first."""


def load_json(path: Path) -> object:
    """The value in a JSON file of UTF-8 text.

    Raises:
        UserError: missing, unreadable, empty, not UTF-8, not JSON (with line and column), or a key given twice.
    """
    if path.suffix.lower() in TABLES:
        raise UserError(
            f"{path} is a table, not JSON: dataset.name=table reads a table of your own; for the raw ArtEmis CSV, "
            "`python -m data.prepare artemis` makes JSON files of it"
        )
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path}: the annotation file is empty")
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except _DuplicateKey as error:
        raise UserError(f"{path}: the key {error.args[0]!r} stands twice in one object; keep one of them") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested without end
        raise UserError(f"{path}: not JSON that can be read: {error}") from None


def read_text(path: Path, *, what: str = "annotation file") -> str:
    """What is in a file of UTF-8 text (`what`, in words), without its byte order mark.

    Raises:
        UserError: missing, unreadable, no ordinary file, too large, or not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such {what}") from None
    except OSError as error:
        raise UserError(f"{path}: the {what} cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def wrong_format(path: Path, data: object, *, wanted: str) -> UserError:
    """The error for a file that is not of the `wanted` format: what it should be, is, and may be."""
    seems = guess_format(data)
    hint = f"; it looks like one for dataset.name={seems}" if seems not in (None, wanted) else ""
    found = f"an object with {_keys(data)}" if isinstance(data, dict) and data else kind(data)
    return UserError(f"{path}: {FORMATS[wanted]}, but this is {found}{hint}")


def guess_format(data: object) -> str | None:
    """Which of the known formats `data` has at first sight."""
    if isinstance(data, dict):
        images = data.get("images")
        if isinstance(images, list) and (isinstance(data.get("annotations"), list) or _has_sentences(images)):
            return "coco"
        first = next(iter(data.values()), None)
        return "artemis" if isinstance(first, dict) and {"emotions", "explanations"} & first.keys() else None
    if isinstance(data, list) and data and isinstance(data[0], dict) and "sign_list" in data[0]:
        return "mlslt"
    if isinstance(data, list) and data and isinstance(data[0], list):
        return "emotion_folder"
    return None


def _has_sentences(images: list) -> bool:
    return bool(images) and isinstance(images[0], dict) and "sentences" in images[0]


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, dict):
        return "an object" if value else "an empty object"
    return "a list" if value else "an empty list"


def value_of(record: Mapping[str, object], key: str, *, where: str) -> object:
    """`record[key]`, or UserError saying that `where` lacks it."""
    if key not in record:
        raise UserError(f"{where}: the key {key!r} is missing")
    return record[key]


def list_of(record: Mapping[str, object], key: str, *, where: str) -> list[object]:
    """The list under `key`."""
    value = value_of(record, key, where=where)
    if not isinstance(value, list):
        raise UserError(f"{where}: {key!r} must be a list, not {kind(value)}")
    return value


def object_of(value: object, *, where: str) -> dict[str, object]:
    """`value`, which must be a JSON object."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: must be an object, not {kind(value)}")
    return value


def text_of(record: Mapping[str, object], key: str, *, where: str) -> str:
    """The text under `key`."""
    return _text(value_of(record, key, where=where), key, where=where)


def texts_of(record: Mapping[str, object], key: str, *, where: str) -> list[str]:
    """The list of texts under `key`."""
    return [_text(value, f"{key}[{i}]", where=where) for i, value in enumerate(list_of(record, key, where=where))]


def id_of(record: Mapping[str, object], key: str, *, where: str) -> str:
    """The id under `key`, whole number or text, as text."""
    value = value_of(record, key, where=where)
    if isinstance(value, str) and value.strip():
        return _text(value, key, where=where)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{where}: {key!r} must be a whole number or text, not {reprlib.repr(value)}")


def image_path(visual_dir: Path, name: str, *, where: str) -> Path:
    """Where the image called `name` should be, absolute. Errors (a name that leads out) begin with `where`."""
    try:
        return visual_dir.absolute() / relative_name(visual_dir, name)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


@contextmanager
def tolerated(faults: list[str] | None) -> Iterator[None]:
    """Adds a fault that is met inside to `faults`; without a list the first one stops the reading."""
    try:
        yield
    except UserError as error:
        if faults is None:
            raise
        faults.append(str(error))


def _text(value: object, key: str, *, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {key!r} must be text, not {kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can escape halves of characters, which no tokenizer and no file name can hold
        raise UserError(f"{where}: {key!r} holds half of a surrogate pair: {reprlib.repr(value)}") from None
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        raise _DuplicateKey(next(key for key, _ in pairs if key in seen or seen.add(key)))
    return result


def _keys(data: dict[str, object]) -> str:
    names = [reprlib.repr(key) for key in list(data)[:3]]
    return ", ".join(names) + (", …" if len(data) > 3 else "")
