"""Loader processes that die and images that vanish during training."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.reductions import rebuild_storage_fd
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as MultiprocessingIterator

from common.errors import UserError
from common.faults import explain_error, loader_died
from data.workers import LoaderDeaths
from tests.helpers.launch import finish, launch, wait_for
from tests.helpers.runs import leftovers, lines
from tests.helpers.tiny import run_mode, write_splits
from trainer.loop.steps import Stepper
from trainer.runs.retention import entries

LONG = {
    "mode": "train",
    "name": "run",
    "trainer.resume": "auto",
    "trainer.epochs": 40,
    "trainer.log_every_n_steps": 1,
    "trainer.check_val_every_n_epoch": None,
    "dataset.train_ds.batch_size": 2,
}


@pytest.fixture
def keys(tmp_path) -> dict[str, object]:
    """12 training images, 6 steps per epoch."""
    return {**write_splits(tmp_path / "splits", train=12), **LONG, "trainer.exp_dir": tmp_path}


def has_steps(run: Path, count: int = 1) -> bool:
    return (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_bytes().splitlines()) >= count


def children(process) -> list[int]:
    """Return no ids once the process has ended, which may be at any moment."""
    try:
        return list(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))
    except (FileNotFoundError, ProcessLookupError):
        return []


def kill_loaders(process) -> list[int]:
    """Kill loader processes, also of the next epochs, until the training has ended; return their ids."""
    killed = []
    while process.is_alive():
        for worker in children(process):
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
                killed.append(worker)
        time.sleep(0.002)
    return killed


# --- loader processes ------------------------------------------------------------------------------------------------


def test_killed_loader_process_leaves_a_checkpoint_to_resume_from(keys, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    process = launch({**keys, "dataset.train_ds.num_workers": 1}, log)
    wait_for(lambda: has_steps(run), process)
    killed = kill_loaders(process)
    said = finish(process, log, status=2)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    how = r"(was killed by a signal \(Killed\)|ended unexpectedly)"  # as torch has noticed it
    assert re.match(f"error: (the loader process ({'|'.join(map(str, killed))})|a loader process) {how}; ", line)
    assert "dataset.…_ds.num_workers" in line and "Traceback" not in said
    last = entries(run / "checkpoints")[0]
    assert last.step == lines(run)[-1]["step"] and f"{last.folder} holds the training; to resume:" in line
    assert " trainer.resume=auto" in said.splitlines()[-1] and leftovers(run) == []
    finish(launch({**keys, "trainer.epochs": last.step // 6 + 1, "trainer.check_val_every_n_epoch": 1}, log), log)
    assert [line["step"] for line in lines(run) if "train/lr" in line] == list(range(1, 6 * (last.step // 6 + 1) + 1))


def test_killed_loader_process_of_the_validation(keys, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    settings = {**keys, "trainer.check_val_every_n_steps": 1, "dataset.validation_ds.num_workers": 1}
    process = launch(settings, log)
    wait_for(lambda: has_steps(run, 2), process)
    kill_loaders(process)
    said = finish(process, log, status=2)
    assert re.search("error: (the|a) loader process ", said) and "Traceback" not in said
    last = entries(run / "checkpoints")[0]
    assert f"{last.folder} holds the training" in said and last.step == lines(run)[-1]["step"]


def test_later_death_of_a_loader_process_prints_no_traceback(keys, tmp_path, monkeypatch):
    """Its connections end before torch's handler is called, which may be while torch waits for its end."""

    def fail(stepper, batches: list, *_: object) -> None:
        (worker,) = multiprocessing.active_children()
        threading.Timer(0.3, worker.kill).start()
        raise RuntimeError(f"DataLoader worker (pid(s) {worker.pid}) exited unexpectedly")

    monkeypatch.setattr(Stepper, "__call__", fail)
    monkeypatch.setattr(MultiprocessingIterator, "_mark_worker_as_unavailable", lambda *args, **keys: None)  # it stays
    own = {key: value for key, value in keys.items() if key != "mode"}
    with pytest.raises(UserError, match=r"the loader process .* ended unexpectedly"):  # pytest fails on a traceback
        run_mode("train", {**own, "dataset.train_ds.num_workers": 1})


def test_death_of_a_loader_process_is_raised_where_it_is_checked(monkeypatch):
    """torch takes a child for a loader's process; another test may have removed its handler."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    first, deaths = signal.getsignal(signal.SIGCHLD), LoaderDeaths()
    signal_handling._set_SIGCHLD_handler()
    before = signal.getsignal(signal.SIGCHLD)
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    signal_handling._set_worker_pids(id(deaths), (child.pid,))
    try:
        with deaths:
            deaths.check()
            child.kill()
            end = time.monotonic() + 60
            while deaths.error is None and time.monotonic() < end:
                time.sleep(0.01)
            with pytest.raises(RuntimeError, match=rf"\(pid {child.pid}\) is killed by signal: Killed"):
                deaths.check()
        assert signal.getsignal(signal.SIGCHLD) is before
    finally:
        signal_handling._remove_worker_pids(id(deaths))
        signal.signal(signal.SIGCHLD, first)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit.",
            ("the loader process 7 ran out of shared memory (/dev/shm", "--shm-size", "num_workers=0"),
        ),
        (
            "DataLoader worker (pid 7) is killed by signal: Killed. ",
            ("the loader process 7 was killed by a signal (Killed)", "memory ran out"),
        ),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", ("the loader process 7, 8 ended unexpectedly",)),
        ("unable to write to file </torch_12_34_5>: No space left on device (28)", ("--shm-size",)),
    ],
)
def test_errors_of_loader_processes_are_explained(text, parts):
    said = loader_died(RuntimeError(text))
    assert said == explain_error(RuntimeError(text)) and all(part in said for part in parts)


@pytest.mark.parametrize("fault", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_loader_process_that_dies_while_tensors_are_fetched_is_explained(fault):
    class Gone:
        def detach(self):
            raise fault

    with pytest.raises(type(fault)) as caught:
        rebuild_storage_fd(torch.UntypedStorage, Gone(), 8)
    assert explain_error(caught.value).startswith("a loader process ended unexpectedly; ")
    assert explain_error(type(fault)("of another origin")) is None


def test_other_errors_are_not_explained():
    for error in (RuntimeError("size mismatch"), KeyError("DataLoader worker (pid 7) exited"), FileNotFoundError("a")):
        assert explain_error(error) is None


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
def test_images_that_vanish_or_break_during_training(keys, tmp_path, strict):
    """Both images of one batch in six are gone; it makes no step."""
    run, log = tmp_path / "run", tmp_path / "log"
    settings = {**keys, "dataset.strict": strict, "trainer.epochs": 12, "dataset.train_ds.shuffle": False}
    process = launch(settings, log)
    wait_for(lambda: has_steps(run, 7), process)
    pictures = Path(keys["dataset.train_ds.visual_dir"]) / "Style"
    (pictures / "picture-002.png").unlink()
    (pictures / "picture-003.png").write_bytes((pictures / "picture-004.png").read_bytes()[:60])
    said = finish(process, log, status=2 if strict else 0)
    listed = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()] if not strict else []
    if strict:
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert "picture-00" in line and "dataset.strict=false skips it" in line
    else:
        assert "2 images were skipped; the list is in" in said
        assert {Path(row["image"]).name: row["reason"].split(" (")[0] for row in listed} == {
            "picture-002.png": "there is no such file",
            "picture-003.png": "it is damaged",
        }
        done = [line["step"] for line in lines(run) if "train/lr" in line]
        assert done == list(range(1, len(done) + 1)) and 60 <= len(done) < 72
    assert "Traceback" not in said
