"""Two commands for the same folder: the message names the holder, and a stale lock blocks nothing."""

from __future__ import annotations

import multiprocessing
import socket
from pathlib import Path

import pytest

from common.errors import UserError
from common.faults import explain_errors
from common.locks import holder_file, locked
from tests.helpers.launch import finish, launch, server, wait_for
from tests.helpers.tiny import write_splits
from trainer.runs.start import LOCK, run_lock


def hold(path: Path, purpose: str, host: str, held, done) -> None:
    """Hold the lock like a process of `host`."""
    socket.gethostname = lambda: host
    with locked(path, purpose=purpose):
        held.set()
        done.wait(300)


@pytest.fixture
def held_by(tmp_path):
    """Let another process hold the lock of the folder; call with the name of its machine."""
    context = multiprocessing.get_context("forkserver")
    held, done = context.Event(), context.Event()
    processes = []

    def call(host: str):
        process = server.Process(target=hold, args=(tmp_path / LOCK, "training", host, held, done))
        process.start()
        processes.append(process)
        assert held.wait(300)
        return process

    yield call
    done.set()
    for process in processes:
        process.join(300)


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught, run_lock(folder):
        pass
    return str(caught.value)


def test_holder_on_this_machine_is_named(tmp_path, held_by):
    process = held_by(socket.gethostname())
    said = refusal(tmp_path)
    assert said.startswith(f"{tmp_path} is in use by process {process.pid} on {socket.gethostname()}, training since ")
    assert said.endswith(": wait for it, or choose another name=…"), "the lock is freed at its end"


def test_stale_lock_of_another_machine_can_be_deleted(tmp_path, held_by):
    """On a network file system, until the server notices that a machine is gone."""
    held_by("node17")
    said = refusal(tmp_path)
    assert " on node17, training since " in said and said.endswith(f"if that machine is down, delete {tmp_path / LOCK}")
    (tmp_path / LOCK).unlink()
    with run_lock(tmp_path):
        assert f" on {socket.gethostname()}, training since" in holder_file(tmp_path / LOCK).read_text()


def test_left_over_lock_file_is_ignored(tmp_path):
    (tmp_path / LOCK).touch()
    holder_file(tmp_path / LOCK).write_text("process 4 on node17, training since 2020-01-01 00:00:00")
    with run_lock(tmp_path):
        pass
    assert not any(tmp_path.iterdir())


def test_test_may_run_during_training_but_not_during_another_test(tmp_path):
    keys = {**write_splits(tmp_path / "splits"), "trainer.exp_dir": tmp_path, "trainer.test.metrics": "[rouge_l]"}
    training = {**keys, "mode": "train", "name": "run", "trainer.resume": "auto"}
    finish(launch(training, tmp_path / "log"), tmp_path / "log")
    first = launch({**training, "trainer.epochs": 99_999, "trainer.check_val_every_n_epoch": None}, tmp_path / "log")
    wait_for(lambda: "training images" in (tmp_path / "log").read_text(), first)
    used = {key: value for key, value in keys.items() if not key.startswith("model.")}
    del used["trainer.exp_dir"]
    used |= {"mode": "test", "pretrained_name": tmp_path / "run", "trainer.test.limit_batches": 1}
    with locked(tmp_path / "run" / "test" / LOCK, purpose="test"):
        said = finish(launch(used, tmp_path / "second"), tmp_path / "second", status=2)
    assert f"error: {tmp_path / 'run' / 'test'} is in use by process " in said and ", test since " in said
    finish(launch(used, tmp_path / "third"), tmp_path / "third")
    assert first.is_alive() and (tmp_path / "run" / "test" / "report.html").exists()
    first.kill()
    first.join()


def test_checkpoint_replaced_by_the_training_is_one_sentence(tmp_path):
    missing = tmp_path / "run" / "checkpoints" / "step-00000004" / "model.safetensors"
    with (
        pytest.raises(UserError, match=r"step-00000004/model\.safetensors no longer exists: .*repeat"),
        explain_errors(),
    ):
        missing.open("rb")
