"""Locks between processes: the others wait, print the holder, and continue however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from common.locks import Busy, holder_file, locked

fork = multiprocessing.get_context("fork")


def hold(path: Path, held, child) -> None:
    with locked(path, purpose="counting"):
        process = fork.Process(target=time.sleep, args=(900,))  # outlives this process: the test stops it
        process.start()
        child.value = process.pid
        held.set()
        time.sleep(900)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock."""
    held, child = fork.Event(), fork.Value("i")
    process = fork.Process(target=hold, args=(tmp_path / "lock", held, child))
    process.start()
    assert held.wait(60)
    yield process
    process.kill()
    process.join()
    os.kill(child.value, signal.SIGKILL)


def test_waiting_process_names_the_holder_and_continues_when_it_is_killed(tmp_path, holder, capfd):
    def kill() -> None:
        time.sleep(1)  # until the other waits
        os.kill(holder.pid, signal.SIGKILL)

    killer = fork.Process(target=kill)
    killer.start()
    with locked(tmp_path / "lock", purpose="waiting"):
        assert f"process {os.getpid()} on" in holder_file(tmp_path / "lock").read_text()
    killer.join()
    printed = capfd.readouterr().err
    assert f"waiting for process {holder.pid} on" in printed and "counting since" in printed
    assert str(tmp_path / "lock") in printed and len(printed.splitlines()) == 1


def test_free_lock_prints_nothing(tmp_path, capfd):
    for _ in range(3):
        with locked(tmp_path / "lock", purpose="writing"):
            pass
    with pytest.raises(KeyError), locked(tmp_path / "lock", purpose="failing"):
        raise KeyError
    with locked(tmp_path / "lock", purpose="writing"):
        pass
    assert capfd.readouterr().err == ""


def test_without_waiting_busy_names_the_holder(tmp_path, holder):
    error = pytest.raises(Busy, match=rf"^process {holder.pid} on \S+, counting since 20")
    with error, locked(tmp_path / "lock", purpose="training", wait=False):
        pytest.fail("two at once")
    holder.kill()
    holder.join()
    with locked(tmp_path / "lock", purpose="training", wait=False):
        assert f"process {os.getpid()} on" in holder_file(tmp_path / "lock").read_text()
    assert not any(tmp_path.iterdir()), "no lock file is left"


def test_deleted_lock_file_is_created_again(tmp_path, capfd):
    """Else two processes would hold it: one the deleted file, one the new file."""
    path, held = tmp_path / "folder" / "lock", fork.Event()

    def take_away() -> None:
        with locked(path, purpose="clearing"):
            held.set()
            time.sleep(1)
            path.unlink()

    process = fork.Process(target=take_away)
    process.start()
    assert held.wait(60)
    with locked(path, purpose="waiting"):
        assert f"process {os.getpid()} on" in holder_file(path).read_text()
    process.join()
    assert "waiting for process" in capfd.readouterr().err
