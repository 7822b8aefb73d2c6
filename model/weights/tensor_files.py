"""Tensors of a safetensors file, whoever wrote it."""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common.errors import UserError, in_short
from common.reading import require_file

ANOTHER_CHECKPOINT = "take another checkpoint of the run"


def read_tensors(path: Path, *, way_out: str | None = None) -> dict[str, Tensor]:
    """Tensors by name.

    Args:
        way_out: ends the complaint.

    Raises:
        UserError: it cannot be read as safetensors.
    """
    try:
        require_file(path, largest=sys.maxsize)
        return load_file(path)
    except (OSError, SafetensorError, KeyError) as error:  # KeyError: numbers of a type that torch does not have
        complaint = f"{path} cannot be read as safetensors ({in_short(error)})"
        raise UserError(complaint if way_out is None else f"{complaint}; {way_out}") from error
