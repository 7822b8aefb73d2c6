"""Optimiser and learning rate; the rate is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

OPTIMISERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    *,
    name: str,
    lr: float,
    betas: Sequence[float],
    weight_decay: float,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """Weight decay for matrices only: gates, biases and norms keep their scale."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return OPTIMISERS[name]([g for g in groups if g["params"]], lr=lr, betas=tuple(betas), fused=fused)


def warmup_steps(scheduler: Mapping, total_steps: int) -> int:
    """Steps of warm-up: as given, else the ratio of all steps."""
    given = scheduler["warmup_steps"]
    return int(given) if given is not None else int(scheduler["warmup_ratio"] * total_steps)


def lr_at(step: int, *, lr: float, min_lr: float, name: str, warmup: int, total: int) -> float:
    """Learning rate of the optimiser step `step` (from 0): linear warm-up, then linear, cosine or constant."""
    if step < warmup:
        return lr * (step + 1) / warmup
    if name == "constant":
        return lr
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    share = 1.0 - done if name == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return min_lr + (lr - min_lr) * share
