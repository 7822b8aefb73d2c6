"""When a training validates, writes a checkpoint, and is over: questions about where it stands and its settings."""

from __future__ import annotations

import time

from omegaconf import DictConfig

from trainer.state import TrainState


def validation_due(state: TrainState, settings: DictConfig) -> bool:
    """Whether this step is to be validated and was not yet; also the answer for a checkpoint that was made in between.

    Args:
        settings: the section `trainer`.
    """
    if state.step in (0, state.validated):
        return False
    by_steps, by_epochs = settings.check_val_every_n_steps, settings.check_val_every_n_epoch
    if by_steps and state.step % by_steps == 0:
        return True
    epoch_ended = state.batches == 0
    return epoch_ended and (state.epoch == settings.epochs or bool(by_epochs and state.epoch % by_epochs == 0))


def worn_out(state: TrainState, settings: DictConfig) -> bool:
    """Whether validation has not improved for long enough."""
    patience = settings.early_stopping_patience
    return patience is not None and state.bad_validations >= patience


def finished(state: TrainState, settings: DictConfig) -> bool:
    return (state.epoch >= settings.epochs or worn_out(state, settings)) and not validation_due(state, settings)


class CheckpointClock:
    """Whether a checkpoint is due: so many steps, or so many minutes, after the last one.

    Minutes are those of a monotonic clock: the wall clock of a machine may be set back.
    """

    def __init__(self, *, steps: int | None, minutes: float | None) -> None:
        self.steps, self.minutes = steps, minutes
        self._since = time.monotonic()

    def due(self, step: int) -> bool:
        if self.steps is not None and step % self.steps == 0:
            return True
        return self.minutes is not None and time.monotonic() - self._since >= 60 * self.minutes

    def restart(self) -> None:
        """A checkpoint has been written."""
        self._since = time.monotonic()
