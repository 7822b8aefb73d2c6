"""Balance the losses by their gradients at the bridge, the outputs of mapper and resampler.

The words come first: a loss whose gradient there exceeds a share of the caption loss's drowns what the words say about
the picture, and clipping and Adam's second moments are then set by its noise.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

CAPTION = "caption"
MEMORY = 0.9  # of the running mean of squared gradients


def gradient_squares(losses: Mapping[str, Tensor], bridge: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the squared gradient norm of each loss at the bridge; the graph stays for the backward pass.

    Args:
        losses: scalars, by name.
        bridge: prefix and latents of the images, in the graph of the losses.
    """
    inputs = [tensor for tensor in bridge.values() if tensor.requires_grad]
    squares = {}
    for name, loss in losses.items():
        found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True) if loss.requires_grad else ()
        squares[name] = sum((g.float().square().sum() for g in found if g is not None), loss.new_zeros(()).float())
    return squares


def update(running: dict[str, float], squares: Mapping[str, Tensor]) -> None:
    """Update the running means, in place; the first measurement counts whole."""
    for name, square in squares.items():
        running[name] = MEMORY * running[name] + (1 - MEMORY) * float(square) if name in running else float(square)


def scales(running: Mapping[str, float], limit: float | None) -> dict[str, float]:
    """Return the factor (at most 1) that keeps each loss's gradient below `limit` times the caption loss's."""
    words = running.get(CAPTION, 0.0)
    if limit is None or not words:
        return {}
    return {
        name: min(1.0, limit * (words / square) ** 0.5) if square > 0 else 1.0
        for name, square in running.items()
        if name != CAPTION
    }


@torch.no_grad()
def variation(bridge: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the share of each output's mean square that differs between the pictures; 0: the same for all."""
    found = {}
    for name, tensor in bridge.items():
        values = tensor.detach().float()  # (B, …)
        between = (values - values.mean(dim=0)).square().mean()
        found[name] = float(between / values.square().mean().clamp(min=1e-12))
    return found
