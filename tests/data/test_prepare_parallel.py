"""data/prepare/parallel.py: worker processes that may die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from data.prepare import parallel
from data.prepare.parallel import count, in_processes

ROOT = Path(__file__).resolve().parents[2]  # not from tests.helpers.tiny, with which every worker would import torch


def halved(number: int) -> float:
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
    if number < 0:
        raise OSError(28, "No space left on device")
    return number / 2


def test_other_items_survive_the_death_of_a_process(monkeypatch):
    monkeypatch.setattr(parallel, "AHEAD", 1)  # each unfinished item costs a new process
    results = dict(in_processes(halved, range(40), workers=2))
    assert results == {n: None if n == 13 else n / 2 for n in range(40)}


def test_items_are_taken_as_needed():
    taken = []

    def endless():
        while True:
            taken.append(len(taken) + 100)
            yield taken[-1]

    work = in_processes(halved, endless(), workers=1)
    assert all(half == number / 2 for number, half in (next(work) for _ in range(10)))
    assert 10 <= len(taken) < 20
    work.close()


def test_exceptions_of_the_function_are_raised():
    with pytest.raises(OSError, match="No space left"):
        list(in_processes(halved, [-1], workers=1))


PARENT = """
import multiprocessing, threading, time
from data.prepare.parallel import in_processes
def work():
    list(in_processes(time.sleep, [60], workers=1))
if __name__ == "__main__":
    threading.Thread(target=work, daemon=True).start()
    while not multiprocessing.active_children():
        time.sleep(0.05)
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(60)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        worker = int(parent.stdout.readline())
        time.sleep(1)  # until it has started
        parent.kill()
    deadline = time.monotonic() + 120
    while is_alive(worker):
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "two", "", "²"])
def test_count_accepts_positive_integers_only(text):
    assert count("3") == 3
    with pytest.raises(ArgumentTypeError, match="whole number"):
        count(text)
