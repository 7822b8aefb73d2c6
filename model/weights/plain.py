"""Read other projects' files of weights: torch.save, safetensors, and the JSON next to them.

Pickles are read by `torch.load(weights_only=True)`, which builds tensors, containers and numbers only. Objects of other
classes are read only if a format needs them, and then as a `StandIn`.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch._weights_only_unpickler import _get_allowed_globals
from torch.serialization import safe_globals
from transformers.utils import logging

from common.errors import UserError
from common.reading import read_json
from model.weights.tensor_files import read_tensors

SHARD = re.compile(r"[\w-]+\.(safetensors|bin)")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in a folder that transformers' save_pretrained wrote


def read_object(path: Path, kind: type = dict) -> Any:
    """Return the object or list in a JSON file.

    Args:
        kind: dict or list.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        found = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(found, kind):
        raise UserError(f"{path} must hold a JSON {'object' if kind is dict else 'list'}")
    return found


class StandIn:
    """Placeholder for an object of another project's class, with the arguments and the state in the file.

    `type(found).__name__` is the full name of the class. No code of that class is imported or run.
    """

    __slots__ = ("args", "state")

    def __new__(cls, *args: Any) -> StandIn:
        found = super().__new__(cls)
        found.args, found.state = args, {}
        return found

    def __setstate__(self, state: Any) -> None:
        self.state = as_dict(state)


def stand_ins(names: Iterable[str]) -> list[tuple[type[StandIn], str]]:
    """Return a new class for each full name, for `read_torch`."""
    return [(type(name, (StandIn,), {"__slots__": ()}), name) for name in names]


def numpy_numbers() -> list[Any]:
    """Return what pickled numpy scalars refer to, for `read_torch`: their constructor (old and new name) and types.

    Types other than numbers may have any size.
    """
    constructor = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    names = ((constructor, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core"))
    return [*names, (_number_type, "numpy.dtype"), *kinds]


def _number_type(kind: str, *flags: Any) -> np.dtype:
    if kind not in ("f8", "f4", "i8"):
        raise pickle.UnpicklingError("a numpy type that is not a number")
    return np.dtype(kind, *flags)


def _latin1(text: str, encoding: str) -> bytes:
    """Replace `_codecs.encode`, which torch allows, but whose other encodings multiply the size or take minutes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError("bytes in another encoding")
    return text.encode(encoding)


def read_torch(path: Path, *, allowed: Iterable[Any] = (), mapped: bool = True) -> Any:
    """Return the content of a file that torch.save wrote; a dict at the top becomes a plain dict.

    Args:
        allowed: passed to `torch.serialization.safe_globals` while this file is read.
        mapped: memory-map the tensors, if the format allows that.

    Raises:
        UserError: the file cannot be read, or refers to something else; nothing in it was run.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        archive = zipfile.is_zipfile(path)
        if archive:
            _require_stored(path)
        with patch.dict(_get_allowed_globals(), {"_codecs.encode": _latin1}), safe_globals([*allowed]):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and archive)
    except UserError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise unreadable(path, error) from None
    return as_dict(found) if isinstance(found, dict) else found


def unreadable(path: Path, error: Exception, kind: str = "a file of torch.save") -> UserError:
    """Return the error for a pickle that could not be loaded."""
    name = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if name is None:
        return UserError(f"{path} cannot be read as {kind} ({type(error).__name__})")
    return UserError(f"{path} is refused, and nothing in it was run: it holds the name {name[1][:100]!r}")


def _require_stored(path: Path) -> None:
    """Raise UserError for an archive with compressed entries: torch.load would map their bytes as numbers."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise UserError(f"{path} is a compressed archive, which torch.save does not write; unpack it first")


def as_dict(found: Any) -> dict[Any, Any]:
    """Return `found` as a plain dict, or an empty dict for any other object.

    A pickled OrderedDict can have attributes that hide its methods.
    """
    return dict(dict.items(found)) if isinstance(found, dict) else {}


def weights_file(folder: Path) -> Path:
    """Return the file of weights in a folder that transformers wrote, or raise UserError if there is none."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder / WEIGHTS[1]} is missing (and {WEIGHTS[0]} too)")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors in a folder that transformers wrote, from one file or from the shards that an index lists.

    Raises:
        UserError: see `read_state`; there are none; or the index names something other than a shard next to it.
    """
    for index in (folder / f"{name}.index.json" for name in WEIGHTS):
        if index.is_file() and not any((folder / name).is_file() for name in WEIGHTS):
            places = read_object(index).get("weight_map")
            names = {str(name) for name in places.values()} if isinstance(places, dict) else {""}
            if wrong := sorted(name for name in names if not SHARD.fullmatch(name)):
                raise UserError(f"{index} names {wrong[0]!r}, which is no file of weights next to it")
            return {key: tensor for name in sorted(names) for key, tensor in read_state(folder / name).items()}
    return read_state(weights_file(folder))


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors by name in a safetensors file, or in a state dict that torch.save wrote.

    Raises:
        UserError: see `read_torch`; or the file holds something else.
    """
    return read_tensors(path) if path.suffix == ".safetensors" else as_state(read_torch(path), path)


def as_state(found: Any, what: object) -> dict[str, Tensor]:
    """Return a state dict as a plain dict; raise UserError, naming `what`, for sparse, quantized or nested tensors."""
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in dict.keys(found)):
        raise UserError(f"{what} holds no tensors by name")
    state = as_dict(found)
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise UserError(f"{what} holds no tensors by name: {name} is no ordinary tensor")
    return state


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress transformers' progress bars and its table of missing weights, which the callers check."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
