"""Read JSON annotation files; every error names the file, the image id and the key."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError
from common.reading import read_bytes
from data.emotions import as_shares, number_word
from data.readers.resolver import relative_name

FORMATS = {
    "artemis": "an ArtEmis file is an object of image ids, each with image_name, emotions and explanations",
    "coco": "a COCO captions file is an object with the lists images and annotations, or images with sentences",
    "mlslt": "an MLSLT file is a list of objects, each with id and sign_list",
    "emotion_folder": "an EmoSet file is a list of lists, each with an emotion and the path of a picture",
}
TABLES = (".csv", ".tsv", ".jsonl")
HEAD_AGAIN = (
    "the names of the columns again, so two files were joined; delete this line, and the rows below it if they "
    "are there twice"
)
KINDS = {type(None): "null", bool: "true or false", str: "text", dict: "an object", list: "a list"}


def load_json(path: Path) -> object:
    """Return the value in a JSON file of UTF-8 text.

    Raises:
        UserError: missing, unreadable, empty, not UTF-8, not JSON (with line and column), or a repeated key.
    """
    if path.suffix.lower() in TABLES:
        raise UserError(
            f"{path} is a table, not JSON: set dataset.name=table to read your own table, or convert the raw ArtEmis "
            "CSV to JSON with `python -m data.prepare artemis`"
        )
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path}: the annotation file is empty")
    return parse_json(text, where=str(path))


def parse_json(text: str, *, where: str) -> object:
    """Return the value of a JSON text; raises UserError, beginning with `where`, for any other and a repeated key."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or nesting without end
        raise UserError(f"{where}: not JSON that can be read: {error}") from None


def read_text(path: Path, *, what: str = "annotation file", hint: str = "") -> str:
    """Return the content of a UTF-8 text file without its byte order mark.

    Args:
        what: what the file is, for messages.
        hint: the way out if there is no such file.

    Raises:
        UserError: missing, unreadable, not an ordinary file, too large, or not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: there is no such {what}{hint and f'; {hint}'}") from None
    except OSError as error:
        raise UserError(f"{path}: the {what} cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the {what} is not UTF-8 text (byte {error.start}); save it as UTF-8 text") from None


def wrong_format(path: Path, data: object, *, wanted: str) -> UserError:
    """Return the error for `data` that is not of the `wanted` format, with the format that it seems to have."""
    seems = guess_format(data)
    hint = f"; it looks like one for dataset.name={seems}" if seems not in (None, wanted) else ""
    found = kind(data)
    if isinstance(data, dict) and data:
        found += f" with {', '.join(map(reprlib.repr, list(data)[:3]))}{', …' if len(data) > 3 else ''}"
    return UserError(f"{path}: {FORMATS[wanted]}, but this is {found}{hint}")


def guess_format(data: object) -> str | None:
    """Return the key of FORMATS that `data` seems to match, judged by its first entry."""
    if isinstance(data, dict):
        images, first = data.get("images"), next(iter(data.values()), None)
        if isinstance(images, list):
            has_sentences = bool(images) and isinstance(images[0], dict) and "sentences" in images[0]
            if has_sentences or isinstance(data.get("annotations"), list):
                return "coco"
        return "artemis" if isinstance(first, dict) and {"emotions", "explanations"} & first.keys() else None
    first = data[0] if isinstance(data, list) and data else None
    if isinstance(first, dict):
        return "mlslt" if "sign_list" in first else None
    return "emotion_folder" if isinstance(first, list) else None


def kind(value: object) -> str:
    """Return what a JSON value is, in words."""
    if isinstance(value, dict | list) and not value:
        return f"an empty {'object' if isinstance(value, dict) else 'list'}"
    return KINDS.get(type(value), "a number")


def value_of(record: Mapping[str, object], key: str, *, where: str) -> object:
    """Return `record[key]`, or raise UserError if it is missing. `where` begins the message, here and below."""
    if key not in record:
        raise UserError(f"{where}: the key {key!r} is missing")
    return record[key]


def list_of(record: Mapping[str, object], key: str, *, where: str) -> list[object]:
    """Return the list under `key`."""
    value = value_of(record, key, where=where)
    if not isinstance(value, list):
        raise UserError(f"{where}: {key!r} must be a list, not {kind(value)}")
    return value


def object_of(value: object, *, where: str) -> dict[str, object]:
    """Return `value` if it is a JSON object, else raise UserError."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: must be an object, not {kind(value)}")
    return value


def text_of(record: Mapping[str, object], key: str, *, where: str) -> str:
    """Return the text under `key`."""
    return _text(value_of(record, key, where=where), key, where=where)


def texts_of(record: Mapping[str, object], key: str, *, where: str) -> list[str]:
    """Return the list of texts under `key`."""
    return [_text(value, f"{key}[{i}]", where=where) for i, value in enumerate(list_of(record, key, where=where))]


def id_of(record: Mapping[str, object], key: str, *, where: str) -> str:
    """Return the id under `key`, an integer or text, as text; pandas may have written 7 as 7.0, in JSON and CSV."""
    value = value_of(record, key, where=where)
    if isinstance(value, str) and value.strip():
        return re.sub(r"^(\d+)\.0$", r"\1", _text(value, key, where=where))
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:  # a larger one may have lost digits
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{where}: {key!r} must be a whole number or text, not {reprlib.repr(value)}")


def image_path(visual_dir: Path, name: str, *, where: str) -> Path:
    """Return the absolute path of the image `name`, which may not exist, or raise UserError for one outside."""
    try:
        return visual_dir.absolute() / relative_name(visual_dir, name)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def refuse_doubled(counts: Counter, path: Path) -> None:
    """Raise UserError if each of several rows occurs more than once.

    Args:
        counts: how often each row, or its hash, occurs in the file.
    """
    if len(counts) > 1 and min(counts.values()) > 1:
        raise UserError(
            f"{path}: each of its {len(counts):,} different rows occurs more than once, so the file seems to have been "
            "joined to itself; keep one copy of each row"
        )


@contextmanager
def collect_faults(faults: list[str] | None) -> Iterator[None]:
    """Append the message of a UserError raised inside to `faults`, or let it pass if `faults` is None."""
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
    except UnicodeEncodeError:  # JSON can escape one half of a character, which no tokenizer and no file name accepts
        raise UserError(f"{where}: {key!r} holds half of a surrogate pair: {reprlib.repr(value)}") from None
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse a repeated key, whose second value would silently replace the first."""
    result = dict(pairs)
    if len(result) < len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key!r} appears twice in one object; keep one of them")
    return result


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def shares_of(value: object, labels: Sequence[str], *, where: str) -> list[float]:
    """Return the shares of the emotions from shares or counts."""
    valid = isinstance(value, list) and len(value) == len(labels)
    if not valid or not all(is_number(v) and 0 <= v < math.inf for v in value):
        shown = reprlib.repr(value) if isinstance(value, list) else kind(value)
        raise UserError(
            f"{where} must be {number_word(labels)} numbers of at least 0, one for each emotion, not {shown}"
        )
    total = math.fsum(value)
    if total == 0:
        raise UserError(f"{where} sums to 0")
    return [*as_shares(value, total)]
