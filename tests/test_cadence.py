"""When a training validates, writes a checkpoint, and is over."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from trainer.cadence import CheckpointClock, finished, validation_due, worn_out
from trainer.state import TrainState


def settings(**changes) -> SimpleNamespace:
    usual = {
        "epochs": 4,
        "check_val_every_n_epoch": 1,
        "check_val_every_n_steps": None,
        "early_stopping_patience": None,
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
    ],
)
def test_a_step_is_validated_once_by_epochs_by_steps_and_at_the_end(state, changes, due):
    assert validation_due(TrainState(**state), settings(**changes)) is due


def test_it_is_over_after_the_last_epochs_validation_and_not_before():
    assert not finished(TrainState(step=24, epoch=4), settings())
    assert finished(TrainState(step=24, epoch=4, validated=24), settings())
    assert not finished(TrainState(step=18, epoch=3, validated=18), settings())


def test_it_is_over_when_validation_does_not_improve():
    tired = TrainState(step=6, epoch=1, validated=6, bad_validations=2)
    assert not worn_out(tired, settings()) and not finished(tired, settings())
    assert finished(tired, settings(early_stopping_patience=2))
    assert not finished(tired, settings(early_stopping_patience=3))


def test_checkpoints_come_by_steps():
    clock = CheckpointClock(steps=3, minutes=None)
    assert [step for step in range(1, 10) if clock.due(step)] == [3, 6, 9]
    assert not CheckpointClock(steps=None, minutes=None).due(3)


def test_checkpoints_come_by_minutes_whatever_becomes_of_the_time_of_day(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "time", lambda: pytest.fail("it may be set back"))
    clock = CheckpointClock(steps=None, minutes=2)
    now += 119
    assert not clock.due(1)
    now += 1
    assert clock.due(2)
    clock.restart()
    assert not clock.due(2)
    now += 120
    assert clock.due(3)
