"""A fault in one of two processes: both end with a message, and what they leave is complete."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.jobs import finish_job, launch_job
from tests.helpers.launch import wait_for
from tests.helpers.tiny import write_splits
from tests.trainer.test_trainer import contents
from trainer.runs.retention import entries


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, object]:
    """Four steps an epoch for each of two processes."""
    keys = write_splits(tmp_path_factory.mktemp("splits"), train=16)
    keys |= {"mode": "train", "name": "run", "trainer.epochs": 2, "trainer.check_val_every_n_epoch": 2}
    return keys | {f"dataset.{split}_ds.batch_size": 2 for split in ("train", "validation", "test")}


def fail_at_step(step: int, rank: int, fault: Callable) -> None:
    """Run `fault` in one process, with the losses of its batch, at a step counted from 0."""
    from trainer.loop.steps import Stepper

    make = Stepper.__call__

    def call(self, batches, number, ratios):
        if number == step and os.environ["RANK"] == str(rank):
            sums = self.task.sums
            self.task.sums = lambda model, batch: fault(sums(model, batch))
        return make(self, batches, number, ratios)

    Stepper.__call__ = call


def run_out_of_memory(losses: dict) -> None:
    import torch

    torch.empty(2**48)


def make_nan(losses: dict) -> dict:
    return {name: loss * float("nan") if name == "vad" else loss for name, loss in losses.items()}


def kill(losses: dict) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def job(keys: dict, folder: Path, fault: Callable | None = None, *, rank: int = 1, step: int = 5) -> list:
    first = partial(fail_at_step, step, rank, fault) if fault else None
    return launch_job({**keys, "trainer.exp_dir": folder}, folder / "logs", first=first)


@pytest.fixture(scope="module")
def unbroken(keys, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    finish_job(job(keys, folder), folder / "logs")
    return folder / "run"


@pytest.mark.parametrize("rank", [0, 1])
def test_out_of_memory_in_one_process_saves_the_last_complete_step(keys, tmp_path, rank):
    processes = job(keys, tmp_path, run_out_of_memory, rank=rank)
    printed = finish_job(processes, tmp_path / "logs", status=2)
    assert [entry.step for entry in entries(tmp_path / "run/checkpoints")] == [5]
    assert "memory ran out in training" in printed[rank]
    assert "Traceback" not in "".join(printed)
    if rank == 0:
        finish_job(job({**keys, "trainer.resume": "auto"}, tmp_path), tmp_path / "logs")
        assert entries(tmp_path / "run/checkpoints")[0].step == 8


def test_nan_in_one_process_ends_both_with_its_images(keys, tmp_path):
    processes = job(keys, tmp_path, make_nan)
    printed = finish_job(processes, tmp_path / "logs", status=2)
    assert "the gradient norm is nan at step 6, in the batch of the images 10" in printed[0]
    assert "not finite: vad; nothing was updated" in printed[0] and printed[0].count("10") < 12, "of one batch only"
    assert not entries(tmp_path / "run/checkpoints")


def test_what_a_killed_process_leaves_goes_on_to_the_same_weights(keys, unbroken, tmp_path):
    own = {**keys, "trainer.checkpoint_every_n_steps": 2}
    processes = job(own, tmp_path, kill, step=5)
    processes[1].join(120)
    wait_for(lambda: processes[0].exitcode is not None, processes[1])
    assert [entry.step for entry in entries(tmp_path / "run/checkpoints")][:1] == [4]
    finish_job(job({**own, "trainer.resume": "auto"}, tmp_path), tmp_path / "logs")
    name = "checkpoints/step-00000008"
    assert contents(tmp_path / "run" / name)["model.safetensors"] == contents(unbroken / name)["model.safetensors"]
