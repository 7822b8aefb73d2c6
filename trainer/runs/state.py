"""The state of a training: what a resumed run needs besides the weights and the optimizer."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

MONITORED = {  # of checkpoint_callback_params.monitor, the name in TensorBoard
    "val_loss": "validation/loss",
    "train_loss": "epoch/loss",
    "val_emotion_accuracy": "validation/emotion_accuracy",
}


@dataclass(slots=True)
class TrainState:
    epoch: int = 0
    batches: int = 0  # of this epoch so far, in each process
    step: int = 0  # optimizer steps so far
    images: int = 0
    overflows: int = 0  # steps that the loss scaler of fp16 skipped
    validated: int = 0  # step of the last validation
    monitored: float | None = None  # value of the monitored metric there
    best: float | None = None
    bad_validations: int = 0  # validations since the best
    sums: dict[str, float] = field(default_factory=dict)  # of losses and "steps" since the last validation
    balance: dict[str, float] = field(default_factory=dict)  # gradients at the bridge (trainer.loop.balance)
    skipped: list[list[str]] = field(default_factory=list)  # [image id, path, reason]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainState:
        """Raise TypeError or ValueError if `values` are not those of `as_dict`."""
        state = cls(**values)
        counts = (state.epoch, state.batches, state.step, state.images, state.validated, state.bad_validations)
        metrics = (0.0 if value is None else value for value in (state.monitored, state.best))
        if not all(type(count) is int and 0 <= count < 1 << 53 for count in (*counts, state.overflows)):
            raise ValueError("expected non-negative integers as counts")
        if not all(
            type(value) in (float, int) and abs(value) < math.inf
            for value in (*metrics, *dict(state.sums).values(), *dict(state.balance).values())
        ):
            raise ValueError("expected finite numbers as metrics")
        if not all(isinstance(text, str) for id, path, reason in state.skipped for text in (id, path, reason)):
            raise ValueError("expected three texts for each skipped image")
        return state

    def record_validation(self, metrics: Mapping[str, float], monitor: str) -> None:
        """Record the validation of this step and the value of the monitored metric."""
        value = metrics.get(MONITORED[monitor], math.nan)
        self.validated, self.monitored = self.step, value if math.isfinite(value) else None
        self.bad_validations += 1
        better = self.best is None or (value < self.best if monitor.endswith("loss") else value > self.best)
        if self.monitored is not None and better:
            self.best, self.bad_validations = value, 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def validation_due(self, settings: DictConfig) -> bool:
        """Return whether this step has to be validated and was not yet; `settings` is the section `trainer`."""
        if self.step in (0, self.validated):
            return False
        by_steps, by_epochs = settings.check_val_every_n_steps, settings.check_val_every_n_epoch
        if by_steps and self.step % by_steps == 0:
            return True
        return self.batches == 0 and (self.epoch == settings.epochs or bool(by_epochs and self.epoch % by_epochs == 0))

    def checkpoint_due(self, settings: DictConfig, elapsed: float) -> bool:
        """elapsed: seconds since the last checkpoint."""
        steps, minutes = settings.checkpoint_every_n_steps, settings.checkpoint_every_n_minutes
        return bool(steps and self.step % steps == 0) or (minutes is not None and elapsed >= 60 * minutes)

    def patience_exhausted(self, settings: DictConfig) -> bool:
        patience = settings.early_stopping_patience
        return patience is not None and self.bad_validations >= patience

    def finished(self, settings: DictConfig) -> bool:
        over = self.epoch >= settings.epochs or self.patience_exhausted(settings)
        return over and not self.validation_due(settings)


def random_states() -> dict[str, Any]:
    """Return the state of every random generator of this process, as tensors and plain values."""
    kind, keys, *rest = np.random.get_state()
    version, numbers, gauss = random.getstate()
    states: dict[str, Any] = {
        "python": [version, torch.tensor(numbers, dtype=torch.int64), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Restore `random_states`; those of the GPUs only if there are as many."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if "cuda" in states and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
