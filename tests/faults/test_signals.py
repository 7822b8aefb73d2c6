"""A stop signal: the training finishes its step, writes a checkpoint and resumes bit for bit."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from common.cli import STOP_SIGNALS, STOPPED
from common.config.check import ROOT
from tests.helpers.launch import finish, launch, wait_for
from tests.helpers.runs import assert_same_run, leftovers, lines
from tests.helpers.tiny import arguments, write_splits
from trainer.loop.tracker import Tracker
from trainer.runtime.signals import Stoppable, Stopped, StopRequest

LONG = {
    "mode": "train",
    "name": "run",
    "trainer.resume": "auto",
    "dataset.train_ds.batch_size": 1,
    "model.text.trainable": True,
    "trainer.epochs": 3,
    "trainer.log_every_n_steps": 1,
    "trainer.checkpoint_callback_params.keep_last": 1,
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, object]:
    """8 training images, so 24 steps."""
    return {**write_splits(tmp_path_factory.mktemp("splits")), **LONG}


@pytest.fixture(scope="module")
def unbroken(keys) -> Path:
    root = Path(keys["trainer.exp_dir"]).parent
    finish(launch({**keys, "name": "unbroken"}, root / "log"), root / "log")
    return Path(keys["trainer.exp_dir"]) / "unbroken"


def signal_at(step: int, number: int) -> None:
    """Let this process receive the signal in that step."""
    write = Tracker.scalars

    def write_and_signal(tracker: Tracker, values: dict, at: int) -> None:
        write(tracker, values, at)
        if at == step:
            os.kill(os.getpid(), number)

    Tracker.scalars = write_and_signal


def is_waiting(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def has_steps(run: Path) -> bool:
    return (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > 0


# --- while a command starts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["hydra", "torch"])
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", STOPPED), ("SIGUSR1", STOPPED), ("SIGINT", 130)])
def test_signal_during_the_imports(keys, tmp_path, module, name, status):
    """A module of that name sends the signal when it is imported."""
    source = f"import os, signal, time\nos.kill(os.getpid(), signal.{name})\ntime.sleep(60)\n"
    (tmp_path / f"{module}.py").write_text(source)
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); import runpy; "
    code += "runpy.run_path('run.py', run_name='__main__')"
    command = [sys.executable, "-c", code, *arguments({**keys, "trainer.exp_dir": tmp_path})]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False, text=True)
    assert done.returncode == status, done.stderr
    assert done.stderr.strip() == ("interrupted" if name == "SIGINT" else f"{name}: stopped")


# --- in this process -------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def handlers():
    """Let unhandled signals fail the test instead of ending the process; restore the handlers afterwards."""
    before = {number: signal.signal(number, unheard) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def unheard(number: int, frame: object) -> None:
    pytest.fail(f"{signal.Signals(number).name} was not handled")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_signal_sets_the_flag_and_prints_a_line(name, capfd):
    stop = StopRequest()
    with stop.listening():
        assert not stop
        os.kill(os.getpid(), getattr(signal, name))
        assert stop and stop.name == name
    said = capfd.readouterr().err
    assert f"{name}: stopping after this step" in said and ("again to stop at once" in said) == (name == "SIGINT")


@pytest.mark.parametrize(
    ("processes", "promise"), [(1, "with a checkpoint\n"), (2, "if all processes are still running")]
)
def test_checkpoint_is_promised_only_if_it_is_certain(processes, promise, monkeypatch, capfd):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with StopRequest().listening():
        os.kill(os.getpid(), signal.SIGTERM)
    assert promise in capfd.readouterr().err


def test_handlers_are_restored_afterwards():
    with pytest.raises(ZeroDivisionError), StopRequest().listening():
        assert all(signal.getsignal(number) is not unheard for number in STOP_SIGNALS)
        raise ZeroDivisionError
    assert all(signal.getsignal(number) is unheard for number in STOP_SIGNALS)


def test_only_a_second_interrupt_stops_at_once():
    stop = StopRequest()
    with pytest.raises(KeyboardInterrupt), stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop
        os.kill(os.getpid(), signal.SIGINT)


def test_ignored_interrupts_stay_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop


def test_handlers_stay_unchanged_outside_the_main_thread():
    found = []

    def listen() -> None:
        with StopRequest().listening():
            found.extend(signal.getsignal(number) for number in STOP_SIGNALS)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [unheard] * len(STOP_SIGNALS)


def test_stop_request_ends_iteration():
    stop = StopRequest()
    batches = iter(Stoppable([1, 2, 3], stop))
    assert next(batches) == 1
    stop.name = "SIGTERM"
    with pytest.raises(Stopped):
        next(batches)
    stop.name = None
    assert list(Stoppable([1, 2], stop)) == [1, 2]


# --- a training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_stopped_training_resumes_bit_for_bit(keys, unbroken, tmp_path, name):
    settings, run, log = {**keys, "trainer.exp_dir": tmp_path}, tmp_path / "run", tmp_path / "log"
    process = launch(settings, log, first=partial(signal_at, 5, getattr(signal, name)))
    printed = finish(process, log, status=STOPPED)
    step = lines(run)[-1]["step"]
    assert step == 5
    folder = run / "checkpoints" / f"step-{step:08d}"
    assert json.loads((folder / "checkpoint.json").read_text())["state"]["step"] == step
    assert f"{name}: stopped after step {step} of 24, saved in {folder}. To resume:" in printed
    assert "Traceback" not in printed and leftovers(run) == []
    assert finish(launch(settings, log), log).count("training images") == 1
    assert_same_run(run, unbroken)


def test_second_interrupt_ends_training_within_a_step(keys, tmp_path):
    """The step cannot end, as its loader process is stopped."""
    run, log = tmp_path / "run", tmp_path / "log"
    process = launch({**keys, "trainer.exp_dir": tmp_path, "dataset.train_ds.num_workers": 1}, log)
    wait_for(lambda: has_steps(run), process)
    (worker,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    os.kill(worker, signal.SIGSTOP)
    waits = 0
    while waits < 10:  # some batches are loaded already
        time.sleep(0.03)
        waits = waits + 1 if is_waiting(process.pid) else 0
    os.kill(process.pid, signal.SIGINT)
    wait_for(lambda: "SIGINT: stopping after this step" in log.read_text(), process)
    process.join(0.2)
    assert process.is_alive(), "the step is not over"
    os.kill(process.pid, signal.SIGINT)
    os.kill(worker, signal.SIGCONT)
    printed = finish(process, log, status=130)
    assert "interrupted" in printed and "Traceback" not in printed


def test_sigterm_to_the_process_group_prints_the_command_that_resumes(keys, unbroken, tmp_path):
    """Like a cluster: SIGTERM to all processes of the job, including the loaders."""
    run, log = tmp_path / "my run", tmp_path / "log"
    own = {"trainer.exp_dir": tmp_path, "name": "my run", "dataset.train_ds.num_workers": 1, "trainer.resume": None}
    process = launch({**keys, **own}, log)
    wait_for(lambda: has_steps(run), process)
    os.killpg(process.pid, signal.SIGTERM)
    printed = finish(process, log, status=STOPPED)
    assert "Traceback" not in printed and "killed by signal" not in printed
    again = shlex.split(printed.splitlines()[-1])
    assert again[-1] == "trainer.resume=auto" and "name=my run" in again
    finish(launch(dict(word.split("=", 1) for word in again[2:]), log), log)
    assert_same_run(run, unbroken)
