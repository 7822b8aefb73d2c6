"""The steps at which a training validates, writes a checkpoint and ends."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from trainer.runs.state import TrainState


def settings(**changes) -> SimpleNamespace:
    usual = {
        "epochs": 4,
        "check_val_every_n_epoch": 1,
        "check_val_every_n_steps": None,
        "early_stopping_patience": None,
        "checkpoint_every_n_steps": None,
        "checkpoint_every_n_minutes": None,
    }
    return SimpleNamespace(**{**usual, **changes})


@pytest.mark.parametrize(
    ("state", "changes", "due"),
    [
        (dict(step=0), {}, False),
        (dict(step=6, epoch=1, batches=0), {}, True),
        (dict(step=6, epoch=1, batches=0, validated=6), {}, False),
        (dict(step=6, epoch=0, batches=6), {}, False),
        (dict(step=6, epoch=1, batches=0), {"check_val_every_n_epoch": 2}, False),
        (dict(step=12, epoch=2, batches=0), {"check_val_every_n_epoch": 2}, True),
        (dict(step=24, epoch=4, batches=0), {"check_val_every_n_epoch": 3}, True),
        (dict(step=24, epoch=4, batches=0), {"check_val_every_n_epoch": None}, True),
        (dict(step=4, epoch=0, batches=4), {"check_val_every_n_steps": 4}, True),
        (dict(step=4, epoch=0, batches=5, validated=4), {"check_val_every_n_steps": 4}, False),
        (dict(step=5, epoch=0, batches=5), {"check_val_every_n_steps": 4}, False),
        (dict(step=6, epoch=1, batches=0), {"check_val_every_n_epoch": None, "check_val_every_n_steps": 3}, True),
        (dict(step=6, epoch=1, batches=0), {"check_val_every_n_epoch": None, "check_val_every_n_steps": 4}, False),
    ],
)
def test_validation_is_due_once_by_epochs_by_steps_and_at_the_end(state, changes, due):
    assert TrainState(**state).validation_due(settings(**changes)) is due


def test_training_ends_after_the_validation_of_the_last_epoch():
    assert not TrainState(step=24, epoch=4).finished(settings())
    assert TrainState(step=24, epoch=4, validated=24).finished(settings())
    assert not TrainState(step=18, epoch=3, validated=18).finished(settings())


def test_training_ends_when_patience_is_exhausted():
    state = TrainState(step=6, epoch=1, validated=6, bad_validations=2)
    assert not state.patience_exhausted(settings()) and not state.finished(settings())
    assert state.finished(settings(early_stopping_patience=2))
    assert not state.finished(settings(early_stopping_patience=3))


@pytest.mark.parametrize(
    ("monitor", "name", "sign"),
    [("val_loss", "validation/loss", 1), ("val_emotion_accuracy", "validation/emotion_accuracy", -1)],
)
def test_bad_validations_are_counted_since_the_best(monitor, name, sign):
    state = TrainState()
    values = [(1.0, 0), (1.0, 1), (None, 2), (float("nan"), 3), (0.5, 0), (0.75, 1)]
    for step, (value, bad) in enumerate(values, start=1):
        state.step = step
        state.record_validation({} if value is None else {name: sign * value}, monitor)
        assert (state.bad_validations, state.validated) == (bad, step)
    assert (state.best, state.monitored) == (sign * 0.5, sign * 0.75)


def test_checkpoints_are_due_by_steps():
    every = settings(checkpoint_every_n_steps=3)
    assert [step for step in range(1, 10) if TrainState(step=step).checkpoint_due(every, 0.0)] == [3, 6, 9]
    assert not TrainState(step=3).checkpoint_due(settings(), 1e9)


def test_checkpoints_are_due_by_minutes():
    every = settings(checkpoint_every_n_minutes=2)
    assert [TrainState(step=1).checkpoint_due(every, elapsed) for elapsed in (119, 120)] == [False, True]


@pytest.mark.parametrize("change", [{"best": math.nan}, {"monitored": math.inf}, {"sums": {"loss": math.nan}}])
def test_stored_metrics_must_be_finite(change):
    with pytest.raises(ValueError, match="finite"):
        TrainState.from_dict({**TrainState().as_dict(), **change})
