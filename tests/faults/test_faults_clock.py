"""A wall clock that is set back during training affects only logged times."""

from __future__ import annotations

import json
import time

import pytest

from common.progress import progress
from tests.helpers.runs import assert_same_run
from tests.helpers.tiny import run_mode, write_splits
from trainer.runs.retention import entries

HOUR = 3600.0


@pytest.fixture
def set_back(monkeypatch):
    """From the first call on, set the wall clock back by an hour whenever it is read."""

    def now() -> float:
        now.time -= HOUR
        return now.time

    now.time = time.time()
    monkeypatch.setattr(time, "time", now)
    return now


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, object]:
    keys = write_splits(tmp_path_factory.mktemp("splits"))
    return {**keys, "name": "run", "trainer.resume": "auto", "trainer.log_every_n_steps": 1}


def test_clock_that_is_set_back_does_not_change_a_resumed_run(keys, tmp_path, set_back, monkeypatch):
    often = {"trainer.checkpoint_every_n_minutes": 1e-6, "trainer.checkpoint_callback_params.keep_last": 3}
    run_mode("train", {**keys, **often, "trainer.exp_dir": tmp_path, "trainer.epochs": 1})
    run_mode("train", {**keys, **often, "trainer.exp_dir": tmp_path, "trainer.epochs": 2})
    run = tmp_path / "run"
    assert [entry.step for entry in entries(run / "checkpoints")] == [4, 3, 2]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    times = [row["time"] for row in rows]
    assert times == sorted(times, reverse=True), "the clock went backwards"
    assert all(row.get("speed/images_per_second", 1) > 0 for row in rows)
    monkeypatch.undo()
    run_mode("train", {**keys, **often, "trainer.exp_dir": tmp_path / "steady", "trainer.epochs": 1})
    run_mode("train", {**keys, **often, "trainer.exp_dir": tmp_path / "steady", "trainer.epochs": 2})
    assert_same_run(run, tmp_path / "steady" / "run")


def test_progress_bar_shows_a_rate(set_back):
    with progress(10, "train", unit="step") as bar:
        for _ in range(5):
            time.sleep(0.01)
            bar.update()
        figures = bar.format_dict
        assert 0.05 <= figures["elapsed"] < 60 and figures["n"] == 5
