"""Progress bars."""

from __future__ import annotations

import multiprocessing
import signal
import time

import pytest
from tqdm import tqdm

from common.progress import progress

fork = multiprocessing.get_context("fork")


def test_rate_counts_what_was_done_since_resuming(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress(1000, "pictures", unit="image", initial=900) as bar:
        for _ in range(10):
            now += 30
            bar.update(6)
        assert bar.format_dict["rate"] == pytest.approx(0.2)


def test_killed_fork_does_not_block_other_bars():
    def draw(drawing) -> None:
        with tqdm.get_lock():
            drawing.set()
            signal.pause()

    def go_on() -> None:
        with progress(3, "pictures", unit="image") as bar:
            bar.update(3)

    go_on()  # creates what the bars share
    drawing = fork.Event()
    process = fork.Process(target=draw, args=(drawing,))
    process.start()
    assert drawing.wait(60)
    process.kill()
    process.join()
    other = fork.Process(target=go_on)
    other.start()
    other.join(60)
    stuck = other.exitcode is None
    other.kill()
    other.join()
    assert not stuck and other.exitcode == 0
