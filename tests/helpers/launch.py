"""Run `python run.py …` in a separate process that a test can kill; a fork server has done the slow imports."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import yaml

from tests.helpers.tiny import ROOT, arguments

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["tests.helpers.preload"])
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")  # audited by Python


def launch(
    keys: Mapping[str, object],
    log: Path,
    *,
    die_at: int | None = None,
    below: Path | None = None,
    first: Callable[[], object] | None = None,
):
    """Start `python run.py KEY=VALUE …` with its output in `log`, and return the process.

    Args:
        die_at: number of the file change below `below` at which it is killed, see `killed_at_change`.
        first: called in the new process before anything else.
    """
    log.write_text("")
    process = server.Process(target=_run, args=(arguments(keys), log, die_at, below, first))
    process.start()
    return process


def _run(words: list[str], log: Path, die_at: int | None, below: Path | None, first: Callable | None) -> None:
    import run
    from trainer.metrics import captions

    os.chdir(ROOT)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.fsync = lambda file: None  # see conftest.py
    captions.find_java = lambda: None
    yaml.SafeLoader = yaml.CSafeLoader  # see run_mode
    faulthandler.enable()  # a crash in native code leaves its stack in the log
    os.setpgid(0, 0)  # its own process group, like a command started by a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run with it ignored
    multiprocessing.set_start_method(None, force=True)  # for loaders, as in an ordinary process: not the server's
    torch.set_num_threads(1)
    sys.argv = sys.orig_argv = ["run.py", *words]
    if die_at is not None:
        killed_at_change(die_at, below)
    if first is not None:
        first()
    run.main()


def killed_at_change(number: int, below: Path) -> None:
    """Kill this process (SIGKILL) right before its n-th creation, renaming or removal of a file or folder."""
    count = 0

    def audit(event: str, args: tuple) -> None:
        nonlocal count
        changes = bool(args[2] & WRITING) if event == "open" and isinstance(args[2], int) else event in CHANGES
        path = os.fsdecode(args[0]) if changes and isinstance(args[0], (str, bytes, os.PathLike)) else ""
        if path and (not path.startswith("/") or Path(path).is_relative_to(below)):  # rmtree passes file names only
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)


def died_at_change(number: int, below: Path, work: Callable[[], object]) -> bool:
    """Run `work` in a fork; return True if it was killed at that change, False if it finished before."""

    def life() -> None:
        killed_at_change(number, below)
        work()
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=life)
    process.start()
    process.join(300)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def wait_for(condition: Callable[[], object], process, *, seconds: float = 300) -> None:
    """Wait until `condition` holds or the process has ended."""
    end = time.monotonic() + seconds
    while not condition() and process.is_alive():
        assert time.monotonic() < end, "timeout"
        time.sleep(0.002)


def finish(process, log: Path, *, status: int = 0) -> str:
    """Wait for the process to end with `status`, and return its output."""
    process.join(300)
    printed = log.read_text(errors="replace")
    assert process.exitcode == status, printed[-3000:]
    return printed
