"""Weights of linear layers in 8 bits: files of a quarter of the size, and products of integers where the CPU has them.

A weight is stored as integers and a scale for each output. Loading multiplies them, so any device and precision can
compute with the result; `optimize_for_generation` finds the same integers again.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

SCALE = ".int8_scale"  # after the name of a weight
LARGEST = 127
SMALLEST = 1 << 14  # weights; smaller layers gain nothing
TINY = 1e-30  # instead of the scale of zeros


def quantize(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return int8 of the shape of `values` (2-D), and the float32 scale of each of their slices along `axis`."""
    values = values.detach().float()
    scale = values.abs().amax(dim=axis, keepdim=True).clamp(min=TINY) / LARGEST
    return (values / scale).round_().to(torch.int8), scale


def in_int8(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with the weights of large linear layers as integers, and their scales.

    Args:
        state: of the network, or a part of it; the tensors are the network's own.
    """
    axes = {}
    for module in network.modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            axes[module.in_proj_weight.data_ptr()] = 1
        elif isinstance(module, nn.Linear | Conv1D):
            axes[module.weight.data_ptr()] = 0 if isinstance(module, Conv1D) else 1
    found = dict(state)
    for name, tensor in state.items():
        if tensor.data_ptr() in axes and tensor.numel() >= SMALLEST:
            found[name], found[name + SCALE] = quantize(tensor, axes[tensor.data_ptr()])
    return found


def from_int8(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with float32 in place of the integers that have a scale.

    Raises:
        ValueError: a scale does not fit its integers.
    """
    found = dict(state)
    for name in [name for name, tensor in state.items() if tensor.dtype == torch.int8 and name + SCALE in state]:
        scale = found.pop(name + SCALE)
        if scale.ndim != found[name].ndim or any(
            n not in (1, m) for n, m in zip(scale.shape, found[name].shape, strict=True)
        ):
            raise ValueError(f"the scale of {name} has another shape")
        found[name] = found[name].float() * scale
    return found


@cache
def can_multiply() -> bool:
    """Return whether torch has exact products of 8-bit integers here: CPUs without VNNI clip sums of two products."""
    x = torch.full((5, 64), LARGEST, dtype=torch.int8)
    try:
        return bool((torch._int_mm(x, x[:1].expand(64, 64).contiguous().T) == 64 * LARGEST**2).all())
    except (AttributeError, NotImplementedError, RuntimeError):
        return False


class Int8Linear(nn.Module):
    """x → x·Wᵀ + b in integers: each weight's row and each row of x are rounded to 8 bits of their largest value."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        integers, scale = quantize(weight, 1)
        self.integers, self.scale = integers.T, scale[:, 0]  # (in, out), (out,)
        self.bias = None if bias is None else bias.detach()

    @property
    def weight(self) -> Tensor:
        """A copy in fp32, for modules that use the weight of a layer without calling it (BEiT)."""
        return self.integers.T * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantize(x.reshape(-1, len(self.integers)), 1)
        product = torch._int_mm(rows, self.integers) * scale * self.scale
        return (product if self.bias is None else product + self.bias).view(*x.shape[:-1], len(self.scale))
