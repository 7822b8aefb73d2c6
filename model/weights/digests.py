"""A digest of weights: the same for the same names, types, shapes and numbers, wherever they lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


def add_tensors(digest: Digest, state: Mapping[str, Tensor]) -> None:
    """Take a state dict into a digest of hashlib, in the order of its names."""
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
