"""Files that hold nothing but tensors, containers and numbers: safetensors, torch.save, JSON.

torch itself reads the pickle of such a file without running anything in it (`weights_only`); names of numpy's numbers,
which it does not know by default, are allowed for one file and not for the process.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from errors import UserError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of a folder that transformers' save_pretrained wrote


def read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object")
    return found


def read_torch(path: Path) -> Any:
    """What torch.save wrote, of plain data; tensors lie in the file until they are used, where its form allows that.

    Raises:
        UserError: the file cannot be read, or names what plain data does not need; nothing of it was run.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        with torch.serialization.safe_globals(_numpy_numbers()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        if name := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{path} is refused, and nothing in it was run: it holds the name {name[1]!r}, which such a file does "
                "not need"
            ) from None
        raise UserError(f"{path} cannot be read as a file of torch.save ({type(error).__name__})") from None


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


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name, of a safetensors file or of a state dict that torch.save wrote.

    Raises:
        UserError: as read_torch; or the file holds something else.
    """
    if path.suffix != ".safetensors":
        return as_state(read_torch(path), path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error})") from None


def as_state(found: Any, what: object) -> dict[str, Tensor]:
    """`found`, where it is a state dict; `what` says in the complaint where it comes from."""
    if not isinstance(found, Mapping) or not all(isinstance(k, str) and _plain(v) for k, v in found.items()):
        raise UserError(f"{what} holds no tensors by name")
    return dict(found)


def _plain(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )
