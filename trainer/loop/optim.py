"""Optimizer and learning rate; the rate is a pure function of the step, the same for all groups up to a factor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from omegaconf import DictConfig
from torch import nn

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    *,
    name: str,
    lr: float,
    betas: Sequence[float],
    weight_decay: float,
    eps: float = 1e-8,
    apart: nn.Module | None = None,
    apart_lr: float | None = None,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """Weight decay for matrices only: gates, biases and norms keep their scale.

    Args:
        parameters: of the whole network; frozen ones are left out.
        apart: a part of the network with its own learning rate; its groups come last.
        apart_lr: that rate; None = lr.
    """
    own = {id(p) for p in apart.parameters()} if apart is not None and apart_lr is not None else set()
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {
            "params": [p for p in trained if (id(p) in own) == is_own and (p.ndim >= 2) == decays],
            "lr": apart_lr if is_own else lr,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for is_own in (False, True)
        for decays in (True, False)
    ]
    return OPTIMIZERS[name]([g for g in groups if g["params"]], betas=tuple(betas), eps=eps, fused=fused)


def configured_optimizer(
    settings: DictConfig,
    parameters: Iterable[nn.Parameter],
    *,
    apart: nn.Module | None = None,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """Build the optimizer of the section `model.optimizer`; its vad_lr is the rate of `apart`."""
    return build_optimizer(
        parameters,
        name=settings.name,
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        apart=apart,
        apart_lr=settings.vad_lr,
        fused=fused,
    )


def load_state(optimizer: torch.optim.Optimizer, state: Mapping) -> None:
    """Raise an exception, of any class, if `state` does not fit this optimizer's parameters."""
    kinds = [{key: type(value) for key, value in group.items()} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, before in zip(optimizer.param_groups, kinds, strict=True):
        if wrong := [key for key, kind in before.items() if type(group.get(key)) not in (kind, float, type(None))]:
            raise TypeError(f"{wrong[0]} is {group.get(wrong[0])!r}")
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if value.shape not in (parameter.shape, ()):
                    raise ValueError(f"{name} is of the shape {tuple(value.shape)}")


def warmup_steps(scheduler: Mapping, total_steps: int) -> int:
    """Steps of warm-up: as given, else the ratio of all steps."""
    given = scheduler["warmup_steps"]
    return int(given) if given is not None else int(scheduler["warmup_ratio"] * total_steps)


def lr_at(step: int, *, lr: float, min_lr: float, name: str, warmup: int, total: int) -> float:
    """Learning rate of optimizer step `step` (from 0): linear warm-up, then linear, cosine or constant."""
    if step < warmup:
        return lr * (step + 1) / warmup
    if name == "constant":
        return lr
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    share = 1.0 - done if name == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return min_lr + (lr - min_lr) * share
