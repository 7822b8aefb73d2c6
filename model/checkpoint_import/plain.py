"""Files that hold nothing but tensors, containers and numbers: safetensors, torch.save, JSON.

torch itself reads the pickle of such a file without running anything in it (`weights_only`), but takes as much memory
as it asks for; so it is looked through before, and what came of it is looked through afterwards. Names of numpy's
numbers, which torch does not know by default, are allowed for one file and not for the process.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

import foreign
from errors import UserError
from model.checkpoint_import.inert_pickle import Refused, look_through
from model.checkpoint_import.inert_torch import LARGEST_PICKLE, refusal
from model.tensor_files import read_tensors

LEGACY = 5  # pickles: of three numbers, the object, and the storages that follow it
MOST_VALUES, DEEPEST = 100_000, 20  # of one file
SHARD = re.compile(r"[\w-]+\.(safetensors|bin)")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of a folder that transformers' save_pretrained wrote


def read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        found = foreign.read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object")
    return found


def read_torch(path: Path, *, mapped: bool = True) -> Any:
    """What torch.save wrote, of plain data: dicts, lists, tuples, tensors and values.

    Args:
        mapped: tensors lie in the file until they are used, where its form allows that.

    Raises:
        UserError: the file cannot be read, or names what plain data does not need; nothing of it was run.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        foreign.require_no_bomb(path)
        for stream in _pickles(path):
            look_through(stream, _names())
        with torch.serialization.safe_globals(_numpy_numbers()):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
        return _plain_value(found, 0, count(1))
    except Refused as error:
        raise refusal(path, error) from None
    except foreign.Refused as error:
        raise UserError(f"{path} cannot be read as a file of torch.save ({error})") from None
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise UserError(f"{path} cannot be read as a file of torch.save ({type(error).__name__})") from None


def _pickles(path: Path) -> Iterator[BinaryIO]:
    """Those of an archive; of a file before torch 1.6 the five at its beginning."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            for _ in range(LEGACY):
                yield file
            return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith(".pkl"):
                if entry.file_size > LARGEST_PICKLE:
                    raise Refused(f"{entry.file_size:,} bytes of objects")
                yield io.BytesIO(archive.read(entry))


@cache
def _names() -> frozenset[str]:
    """Of tensors, numbers and containers: none of these takes memory for the asking."""
    storages = (
        name for name in dir(torch) if name.endswith("Storage") and name not in ("TypedStorage", "UntypedStorage")
    )
    names = {f"torch.{cuda}{name}" for name in storages for cuda in ("", "cuda.")}
    names |= {str(kind) for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
    names |= {f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "parameter")}
    names |= {f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")}
    names |= {f"{module}.complex" for module in ("builtins", "__builtin__")}
    return frozenset((*names, "torch.Size", "torch.device", "_codecs.encode", "numpy.dtype"))


def _plain_value(value: Any, depth: int, number: Iterator[int]) -> Any:
    """The same of dicts, lists and tuples without attributes; what stands at many places counts at each.

    Raises:
        Refused: too many values, or a tensor of more numbers than the file has for it.
    """
    if next(number) > MOST_VALUES or depth > DEEPEST:
        raise Refused("more values in each other")
    if isinstance(value, dict):
        return {key: _plain_value(inner, depth + 1, number) for key, inner in dict.items(value)}
    if type(value) in (list, tuple):
        return type(value)(_plain_value(inner, depth + 1, number) for inner in value)
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise Refused("a tensor of an unusual kind")
        if value.nbytes > value.untyped_storage().nbytes():
            raise Refused("a tensor that repeats its numbers")
    return value


def _numpy_numbers() -> list[Any]:
    """What a number of numpy is in a pickle: its constructor, as called before and since numpy 2, and its type."""
    constructor = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    return [*((constructor, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")), np.dtype, *kinds]


def weights_file(folder: Path) -> Path:
    """The file of weights in a folder that transformers wrote.

    Raises:
        UserError: there is none.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder / WEIGHTS[1]} is missing (and {WEIGHTS[0]} too)")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors in a folder that transformers wrote, from one file or from several that an index lists.

    Raises:
        UserError: as read_state; there are none; or the index names what is no file of weights beside it.
    """
    for index in (folder / f"{name}.index.json" for name in WEIGHTS):
        if index.is_file() and not any((folder / name).is_file() for name in WEIGHTS):
            places = read_json(index).get("weight_map")
            names = {str(name) for name in places.values()} if isinstance(places, dict) else {""}
            if wrong := sorted(name for name in names if not SHARD.fullmatch(name)):
                raise UserError(f"{index} names {wrong[0]!r}, which is no file of weights beside it")
            return {key: tensor for name in sorted(names) for key, tensor in read_state(folder / name).items()}
    return read_state(weights_file(folder))


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name, of a safetensors file or of a state dict that torch.save wrote.

    Raises:
        UserError: as read_torch; or the file holds something else.
    """
    if path.suffix != ".safetensors":
        return as_state(read_torch(path), path)
    return read_tensors(path)


def as_state(found: Any, what: object) -> dict[str, Tensor]:
    """`found`, where it is a state dict; `what` says in the complaint where it comes from."""
    if not isinstance(found, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()
    ):
        raise UserError(f"{what} holds no tensors by name")
    return dict(found)
