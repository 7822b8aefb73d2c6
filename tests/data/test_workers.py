"""Loader processes and the signals that a terminal or a cluster sends to all processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time

import pytest
from torch.utils.data import DataLoader

from data.workers import ignore_foreign_signals

fork = multiprocessing.get_context("fork")


def work(ready) -> None:
    ignore_foreign_signals()
    ready.set()
    time.sleep(60)


@pytest.fixture
def worker():
    ready = fork.Event()
    process = fork.Process(target=work, args=(ready,))
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize("name", ["INT", "USR1", "TERM"])
def test_worker_ignores_signals_of_other_processes(worker, name, capfd):
    subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    worker.join(0.2)
    assert worker.is_alive()
    assert capfd.readouterr().err == ""


def test_worker_exits_on_sigterm_of_its_parent(worker):
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(60)
    assert worker.exitcode == 0


def test_worker_exits_on_sigterm_after_ignoring_others(worker):
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    for _ in range(200):  # a signal that finds another one of the same kind pending is lost
        worker.terminate()
        worker.join(0.3)
        if not worker.is_alive():
            break
    assert worker.exitcode == 0


class Unsendable:
    def __reduce__(self) -> str:
        raise RuntimeError("Cannot allocate memory")


def test_a_batch_that_cannot_be_sent_ends_the_loader(capfd) -> None:
    loader = DataLoader([Unsendable()], num_workers=1, collate_fn=list, worker_init_fn=ignore_foreign_signals)
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(loader)
    assert "a loader process cannot send a batch: Cannot allocate memory" in capfd.readouterr().err
