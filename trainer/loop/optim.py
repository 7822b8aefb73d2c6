"""Optimizer and learning rate schedule; the rate is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from omegaconf import DictConfig
from torch import nn

from common.errors import UserError

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


def build_optimizer(
    settings: DictConfig, parameters: Iterable[nn.Parameter], *, apart: nn.Module | None = None, fused: bool = False
) -> torch.optim.Optimizer:
    """Return the optimizer; weight decay applies to matrices only, so that gates, biases and norms keep their scale.

    Args:
        settings: the section `model.optimizer`.
        parameters: of the whole network; frozen ones are left out.
        apart: part of the network with the learning rate vad_lr, if that is set; its groups come last.

    Raises:
        UserError: every weight is frozen.
    """
    apart_ids = {id(p) for p in apart.parameters()} if apart is not None and settings.vad_lr is not None else set()
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {
            "params": [p for p in trained if (id(p) in apart_ids) == is_apart and (p.ndim >= 2) == decays],
            "lr": settings.vad_lr if is_apart else settings.lr,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for is_apart in (False, True)
        for decays in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise UserError(
            "no weight of the network is trained: set model.enable_mapper or model.enable_resampler_xattn to true, or "
            "model.vision.trainable or model.text.trainable"
        )
    return OPTIMIZERS[settings.name](groups, betas=tuple(settings.betas), eps=settings.eps, fused=fused)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping) -> None:
    """Raise an exception, of any class, if `state` does not fit this optimizer's parameters."""
    kinds = [{key: type(value) for key, value in group.items()} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, before in zip(optimizer.param_groups, kinds, strict=True):
        if wrong := [key for key, kind in before.items() if type(group.get(key)) not in (kind, float, type(None))]:
            raise TypeError(f"{wrong[0]} is {group.get(wrong[0])!r}")
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if value.shape not in (parameter.shape, ()):
                    raise ValueError(f"{name} has the shape {tuple(value.shape)}")


def learning_rate(step: int, settings: DictConfig, total_steps: int) -> float:
    """Return the rate of optimizer step `step` (from 0): linear warm-up, then linear, cosine or constant.

    Args:
        settings: the section `model.optimizer`.
        total_steps: of the whole training.
    """
    scheduler, peak = settings.scheduler, settings.lr
    warmup = scheduler.warmup_steps
    if warmup is None:
        warmup = int(scheduler.warmup_ratio * total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if scheduler.name == "constant":
        return peak
    done = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    share = 1.0 - done if scheduler.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return scheduler.min_lr + (peak - scheduler.min_lr) * share
