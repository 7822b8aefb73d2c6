"""One process at a time: the others wait, say for whom, and go on when it ends in whatever way."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from common.locks import Busy, holder_of, locked

fork = multiprocessing.get_context("fork")


def hold(path: Path, held, seconds: float) -> None:
    with locked(path, purpose="counting"):
        fork.Process(target=time.sleep, args=(3,)).start()  # a helper that outlives it for a while
        held.set()
        time.sleep(seconds)


@pytest.fixture
def holder(tmp_path):
    """A process that has the lock."""
    held = fork.Event()
    process = fork.Process(target=hold, args=(tmp_path / "lock", held, 60))
    process.start()
    assert held.wait(10)
    yield process
    process.kill()
    process.join()


def test_who_waits_says_for_whom_and_goes_on_when_that_one_is_killed(tmp_path, holder, capfd):
    def kill() -> None:
        time.sleep(0.3)
        os.kill(holder.pid, signal.SIGKILL)

    killer = fork.Process(target=kill)
    killer.start()
    started = time.monotonic()
    with locked(tmp_path / "lock", purpose="waiting"):
        assert 0.2 < time.monotonic() - started < 2.5
        assert f"process {os.getpid()} on" in holder_of(tmp_path / "lock").read_text()
    killer.join()
    said = capfd.readouterr().err
    assert f"waiting for process {holder.pid} on" in said and "counting since" in said
    assert str(tmp_path / "lock") in said and len(said.splitlines()) == 1


def test_a_free_lock_is_taken_in_silence_again_and_again(tmp_path, capfd):
    for _ in range(3):
        with locked(tmp_path / "lock", purpose="writing"):
            pass
    with pytest.raises(KeyError), locked(tmp_path / "lock", purpose="failing"):
        raise KeyError
    with locked(tmp_path / "lock", purpose="writing"):
        pass
    assert capfd.readouterr().err == ""


def test_who_does_not_want_to_wait_is_told_who_has_it(tmp_path, holder):
    told = pytest.raises(Busy, match=rf"^process {holder.pid} on \S+, counting since 20")
    with told, locked(tmp_path / "lock", purpose="training", wait=False):
        pytest.fail("two at once")
    holder.kill()
    holder.join()
    with locked(tmp_path / "lock", purpose="training", wait=False):
        assert f"process {os.getpid()} on" in holder_of(tmp_path / "lock").read_text()
    assert not any(tmp_path.iterdir()), "nobody has it"


def test_a_lock_that_its_holder_took_away_is_made_anew(tmp_path, capfd):
    """Else two would hold it: one the file that is gone, one the file that came after it."""
    path, held = tmp_path / "folder" / "lock", fork.Event()

    def take_away() -> None:
        with locked(path, purpose="clearing"):
            held.set()
            time.sleep(0.3)
            path.unlink()

    process = fork.Process(target=take_away)
    process.start()
    assert held.wait(10)
    with locked(path, purpose="waiting"):
        assert f"process {os.getpid()} on" in holder_of(path).read_text()
    process.join()
    assert "waiting for process" in capfd.readouterr().err
