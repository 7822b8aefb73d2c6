"""Where a training stands: everything that a resumed run must know besides the weights."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass(slots=True)
class TrainState:
    epoch: int = 0
    batches: int = 0  # of this epoch that are behind us
    step: int = 0  # optimiser steps so far
    images: int = 0  # seen so far
    best: float | None = None  # best value of the monitored figure
    bad_validations: int = 0  # validations since then
    skipped: list[list[str]] = field(default_factory=list)  # [image id, path, reason]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def random_states() -> dict[str, Any]:
    """The random generators that training draws from (dropout), as plain tensors."""
    states: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"].cpu())
    if "cuda" in states and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
