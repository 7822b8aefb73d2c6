"""Bounded reads of untrusted files, and checks before a library receives their content; see SECURITY.md."""

from __future__ import annotations

import errno
import json
import os
import re
import reprlib
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import shorten

CHUNK = 1 << 20  # bytes per read call, which allocates its whole argument
LARGEST_TEXT = 1 << 30  # bytes: annotations, tables, lexicons
LARGEST_JSON = 1 << 26  # bytes: small files next to the weights
LARGEST_YAML = 1 << 18  # bytes; config.yaml has 1 << 14
ROOT = Path(__file__).resolve().parents[1]
GPT2_NAMES = ("gpt2", "distilgpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # as published on the hub
BACKBONES = Path("data/demo/backbones")  # pretrained CLIP and GPT-2 of the demo
TOKENIZER_SETTINGS = frozenset(("clean", "strip_sep_token", "language"))


class Refused(ValueError):
    """The content of a file is not accepted; the message continues a sentence that starts with the file's name."""


def expand_user(path: Path | str) -> Path:
    """Return `path` with a leading ~ expanded; unchanged if there is no such home folder, as for a file ~foo.jpg.

    BACKBONES, which belongs to EmoScribe itself, is found from any working directory.
    """
    path = Path(os.path.expanduser(path))  # noqa: PTH111 -- Path.expanduser raises RuntimeError
    return ROOT / path if path.is_relative_to(BACKBONES) and not path.exists() else path


def require_file(path: Path, *, largest: int) -> None:
    """Raise OSError for a folder, for a device or pipe (which may never end), or for more than `largest` bytes."""
    try:
        info = path.stat()
    except ValueError as error:  # a name that no file system accepts
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "it is not an ordinary file", str(path))
    if info.st_size > largest:
        raise OSError(errno.EFBIG, f"it has {info.st_size:,} bytes, and the limit is {largest:,}", str(path))


def read_bytes(path: Path, *, largest: int = LARGEST_TEXT) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: it cannot be read, or see `require_file`.
    """
    require_file(path, largest=largest)
    content = bytearray()
    with path.open("rb") as file:  # in chunks: files of /proc report a size of 0
        while len(content) <= largest and (chunk := file.read(CHUNK)):
            content += chunk
    if len(content) > largest:
        raise OSError(errno.EFBIG, f"it has more than {largest:,} bytes", str(path))
    return bytes(content)


def model_type(folder: Path) -> str | None:
    """Return the model_type of a folder's config.json, such as "gpt2"; None if there is none."""
    try:
        return dict(read_json(folder / "config.json")).get("model_type")
    except (OSError, TypeError, ValueError):
        return None


def read_json(path: Path, *, largest: int = LARGEST_JSON) -> Any:
    """Return the value in a JSON file.

    Raises:
        OSError: see `read_bytes`.
        ValueError: not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return json.loads(read_bytes(path, largest=largest).decode("utf-8"))
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def require_plain_clip(config: object) -> None:
    """Check a model_cfg that came with weights.

    open_clip passes `tokenizer_kwargs` to transformers, where `trust_remote_code` executes code from the repository,
    and it downloads what `hf_model_name` and `timm_model_name` name.

    Raises:
        Refused: a setting names another repository, or is not one of open_clip's own tokenizer.
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
            raise Refused(f"its {name}.tokenizer_kwargs {reprlib.repr(settings)} are not tokenizer settings")


@contextmanager
def refuse_panics() -> Iterator[None]:
    """Raise Refused in place of a panic of the tokenizers library, which is a BaseException."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise Refused(f"its library fails ({shorten(error, 100)})") from None
