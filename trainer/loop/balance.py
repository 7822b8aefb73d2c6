"""Balance the losses by their gradients at the bridge, the outputs of mapper and resampler.

The words come first: a loss whose gradient there exceeds a share of the caption loss's drowns what the words say about
the picture, and clipping and Adam's second moments are then set by its noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

CAPTION = "caption"
MEMORY = 0.9  # of the running means


def gradient_squares(losses: Mapping[str, Tensor], bridge: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the squared gradient norm of each loss at the bridge; the graph stays for the backward pass.

    Args:
        losses: scalars, by name.
        bridge: prefix and latents of the images, in the graph of the losses.
    """
    inputs, squares = [*bridge.values()], {}
    for name, loss in losses.items():
        found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True) if loss.requires_grad else ()
        squares[name] = sum((g.float().square().sum() for g in found if g is not None), loss.new_zeros(()).float())
    return squares


def update(ratios: dict[str, float], squares: Mapping[str, float]) -> None:
    """Update, in place, the running mean of each loss's squared gradient as a multiple of the caption loss's.

    The ratio and not the norm, which depends on the size of prefix and latents and so changes in training.
    """
    words = squares.get(CAPTION, 0.0)
    for name, square in squares.items():
        if name != CAPTION and words > 0 and math.isfinite(square / words):
            now = square / words
            ratios[name] = MEMORY * ratios[name] + (1 - MEMORY) * now if name in ratios else now


def scales(ratios: Mapping[str, float], limit: float | None) -> dict[str, float]:
    """Return the factor (at most 1) that keeps each loss's gradient below `limit` times the caption loss's."""
    if limit is None:
        return {}
    return {name: min(1.0, limit / ratio**0.5) if ratio > 0 else 1.0 for name, ratio in ratios.items()}


@torch.no_grad()
def variation(bridge: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the share of each output's mean square that differs between the pictures; 0: the same for all."""
    found = {}
    for name, tensor in bridge.items():
        values = tensor.detach().float()  # (B, …)
        between = (values - values.mean(dim=0)).square().mean()
        found[name] = float(between / values.square().mean().clamp(min=1e-12))
    return found
