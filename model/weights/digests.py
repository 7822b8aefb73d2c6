"""A digest of weights that depends on their names, types, shapes and values, and not on their device."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def add_tensors(digest: hashlib._Hash, state: Mapping[str, Tensor]) -> None:
    """Update a digest of hashlib with a state dict, in the order of its names."""
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
