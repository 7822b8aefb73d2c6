"""Read safetensors files of any origin."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common.errors import UserError, shorten
from common.reading import require_file

ANOTHER_CHECKPOINT = "take another checkpoint of the run"


def read_tensors(path: Path, *, way_out: str | None = None) -> dict[str, Tensor]:
    """Return the tensors in a file by name.

    Raises:
        UserError: it cannot be read as safetensors; the message ends with `way_out`.
    """
    try:
        require_file(path, largest=sys.maxsize)
        return load_file(path)
    except (OSError, SafetensorError, KeyError) as error:  # KeyError: numbers of a type that torch does not have
        hint = f"; {way_out}" if way_out else ""
        raise UserError(f"{path} cannot be read as safetensors ({shorten(error)}){hint}") from error


def add_tensors(digest: hashlib._Hash, state: Mapping[str, Tensor]) -> None:
    """Update a digest of hashlib with a state dict, in the order of its names."""
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
