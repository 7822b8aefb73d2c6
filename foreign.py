"""Files that somebody else may have written: looked at before a library that trusts them reads them.

Nothing here runs anything that a file names, and nothing is read without a limit. See SECURITY.md.
"""

from __future__ import annotations

import errno
import json
import os
import re
import reprlib
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from errors import in_short

PIECE = 1 << 20  # bytes read at once: what is asked for is set aside, whatever there is to read
LARGEST_TEXT = 1 << 30  # bytes: annotations, tables, lexicons
LARGEST_JSON = 1 << 26  # of the small files that go with weights
LARGEST_YAML = 1 << 18  # config.yaml has 1 << 14
MOST_VALUES, DEEPEST = 10_000, 20  # of a YAML file, with every reference to an anchor written out
CORE_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map"))


class Refused(ValueError):
    """What a file holds that it must not; the message goes on after the file's name."""


# --- ordinary files of a bounded size ---------------------------------------------------------------------------------


def expanded(path: Path | str) -> Path:
    """`path` with its ~ written out, where there is such a home; else it is a name like any other, such as ~foo.jpg."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 -- Path.expanduser raises RuntimeError


def require_file(path: Path, *, largest: int) -> None:
    """Raises OSError: no ordinary file (a device never ends, a pipe waits for ever), or one of more bytes."""
    try:
        info = path.stat()
    except ValueError as error:  # a name that no file system can hold
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "it is not an ordinary file", str(path))
    if info.st_size > largest:
        raise OSError(errno.EFBIG, f"it has {info.st_size:,} bytes, and the limit is {largest:,}", str(path))


def read_bytes(path: Path, *, largest: int = LARGEST_TEXT) -> bytes:
    """Raises OSError: it cannot be read, or see `require_file`."""
    require_file(path, largest=largest)
    content = bytearray()
    with path.open("rb") as file:  # in pieces: the files of /proc say that they are empty
        while len(content) <= largest and (piece := file.read(PIECE)):
            content += piece
    if len(content) > largest:
        raise OSError(errno.EFBIG, f"it has more than {largest:,} bytes", str(path))
    return bytes(content)


def read_json(path: Path, *, largest: int = LARGEST_JSON) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: see `read_bytes`.
        ValueError: not JSON, not UTF-8, nested too deeply, or with a key that stands twice in one object, of which
            two libraries may each take another.
    """
    try:
        return json.loads(read_bytes(path, largest=largest).decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


# --- YAML -------------------------------------------------------------------------------------------------------------


def read_yaml(path: Path) -> str:
    """The text of a YAML file that is safe to be read: plain values, no tags, few of them.

    Raises:
        OSError: see `read_bytes`.
        Refused: tags, references to anchors that refer to themselves or multiply, or too many values.
        ValueError: not UTF-8, or (yaml.YAMLError is not one) not YAML.
    """
    text = read_bytes(path, largest=LARGEST_YAML).decode("utf-8")
    try:
        for values, depth in _sizes(text):
            if values > MOST_VALUES or depth > DEEPEST:
                raise Refused("more values than a configuration has, or deeper ones")
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    return text


def _sizes(text: str) -> Iterator[tuple[int, int]]:
    """After every event of the parser: the values so far in the innermost collection, and how deep that is."""
    anchored: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if getattr(event, "tag", None) not in (None, "!", *CORE_TAGS):
            raise Refused(f"the YAML tag {event.tag!r}")
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent | yaml.ScalarEvent | yaml.AliasEvent):
            anchor, size = open_.pop() if isinstance(event, yaml.CollectionEndEvent) else (event.anchor, 1)
            if isinstance(event, yaml.AliasEvent):
                if anchor not in anchored:
                    raise Refused(f"the YAML anchor {anchor!r}, which refers to itself or is not there")
                size = anchored[anchor]
            elif anchor is not None:
                anchored[anchor] = size
            outer, before = open_.pop()
            open_.append((outer, before + size))
        yield open_[-1][1], len(open_)


# --- weights ----------------------------------------------------------------------------------------------------------


def require_no_bomb(path: Path) -> None:
    """An archive of torch.save holds its numbers as they are; a compressed one may unfold to more than memory holds.

    Raises:
        OSError: it cannot be read.
        Refused: an archive that is compressed, damaged, or says that it holds more than its own size.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return
    try:
        with zipfile.ZipFile(path) as archive:
            unfolded = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # a damaged archive fails in many ways
        raise Refused(f"it is a damaged archive ({type(error).__name__})") from None
    if unfolded > path.stat().st_size:
        raise Refused("it is a compressed archive, which torch.save does not write; unpack it and save it anew")


# --- configurations of networks ---------------------------------------------------------------------------------------

TOKENIZER_SETTINGS = frozenset(("clean", "strip_sep_token", "language"))
LARGEST_SIZE = 1 << 20
LARGEST = {
    ("layer", "layers", "depth"): 1000,
    ("image_size", "patch_size", "stride"): 4096,
}  # by the ends of their keys


def require_plain_clip(config: object) -> None:
    """A model_cfg that came with weights builds open_clip's own networks and names nothing else to be fetched.

    open_clip hands `tokenizer_kwargs` to transformers, where `trust_remote_code` runs what the repository holds; and
    `hf_model_name` and `timm_model_name` may name other repositories.

    Raises:
        Refused: such a setting.
    """
    if not isinstance(config, Mapping):
        raise Refused("its model_cfg is not an object")
    for name, part in ((key, value) for key, value in config.items() if key.endswith("_cfg")):
        if not isinstance(part, Mapping):
            raise Refused(f"its {name} is not an object")
        if part.get("hf_model_name") is not None:
            raise Refused(f"its {name}.hf_model_name names a network of another repository")
        timm = part.get("timm_model_name")
        if timm is not None and not re.fullmatch(r"\w+(\.\w+)?", str(timm)):
            raise Refused(f"its {name}.timm_model_name {timm!r} is not the name of an architecture")
        settings = part.get("tokenizer_kwargs") or {}
        if not isinstance(settings, Mapping) or not settings.keys() <= TOKENIZER_SETTINGS:
            raise Refused(f"its {name}.tokenizer_kwargs {reprlib.repr(settings)} are no settings of a tokenizer")
        require_sizes(part)


def require_sizes(settings: Mapping[str, Any]) -> None:
    """Raises Refused: a size, or a number of layers, that no network has, and that would be built without end."""
    for key, value in settings.items():
        most = next((most for ends, most in LARGEST.items() if str(key).endswith(ends)), LARGEST_SIZE)
        numbers = value if isinstance(value, list) else [value]
        if any(_is_beyond(number, most) for number in numbers):
            raise Refused(f"{key}={reprlib.repr(value)} is beyond every network (0 to {most:,})")


def _is_beyond(number: object, most: int) -> bool:
    """A share or a rate may be negative, a size may not."""
    if isinstance(number, float):
        return not abs(number) <= most
    return isinstance(number, int) and not 0 <= number <= most


# --- tokenizers -------------------------------------------------------------------------------------------------------

# What a tokenizers JSON may be made of. Left out are parts that make long texts of short ones (Replace, Prepend), that
# search for a regular expression of the file's own (Split), or that fail on damaged data (Precompiled).
PARTS = {
    "normalizer": {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "Nmt", "BertNormalizer"},
    "pre_tokenizer": {"ByteLevel", "Whitespace", "WhitespaceSplit", "Punctuation", "Digits", "BertPreTokenizer"}
    | {"UnicodeScripts", "Metaspace", "CharDelimiterSplit"},
    "decoder": {"ByteLevel", "WordPiece", "Metaspace", "BPEDecoder", "ByteFallback", "Fuse", "Strip"},
}
MOST_PARTS = 16


def require_plain_tokenizer(path: Path) -> None:
    """A tokenizers JSON whose parts take time and memory in proportion to the text, and whose ids are counted from 0.

    Raises:
        OSError: it cannot be read.
        Refused: such a part or id. ValueError: not JSON.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise Refused("it has no model")
    for place, allowed in PARTS.items():
        kinds = [*_kinds(content.get(place))]
        if len(kinds) > MOST_PARTS:
            raise Refused(f"its {place} has more than {MOST_PARTS} parts")
        if unknown := [kind for kind in kinds if str(kind) not in allowed]:
            raise Refused(f"its {place} is of the kind {unknown[0]!r}, which is not read")
    for place, setting in (("padding", "strategy"), ("truncation", "stride")):
        value = content.get(place)
        if value is not None and (not isinstance(value, dict) or value.get(setting) not in ("BatchLongest", 0)):
            raise Refused(f"its {place} is not that of single texts")
    _require_ids(content)


def _kinds(part: object, depth: int = 0) -> Iterator[object]:
    """The kinds of a part and of those that it is a sequence of."""
    if part is None:
        return
    if not isinstance(part, dict) or depth > MOST_PARTS:
        yield reprlib.repr(part)
    elif part.get("type") == "Sequence":
        for inner in (one for value in part.values() if isinstance(value, list) for one in value):
            yield from _kinds(inner, depth + 1)
    else:
        yield part.get("type")


def _require_ids(content: Mapping[str, Any]) -> None:
    vocabulary, added = content["model"].get("vocab"), content.get("added_tokens") or []
    if not isinstance(vocabulary, dict | list) or not isinstance(added, list):
        raise Refused("its vocabulary is neither a list nor an object")
    ids = [*range(len(vocabulary))] if isinstance(vocabulary, list) else [*vocabulary.values()]
    ids += [token.get("id") if isinstance(token, dict) else None for token in added]
    if not all(type(id) is int for id in ids) or sorted({*ids}) != list(range(len({*ids}))):
        raise Refused("the ids of its tokens are not counted from 0 without gaps")


@contextmanager
def panics_refused() -> Iterator[None]:
    """The tokenizers library fails with an exception that is no Exception where its own assumptions do not hold."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise Refused(f"its library fails ({in_short(error, 100)})") from None
