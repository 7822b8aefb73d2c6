"""Signals and loader processes: only the training process handles signals, and a dead loader waits for the step's end.

A terminal sends SIGINT to all processes of a command, a cluster SIGUSR1 and SIGTERM. If one killed a loader process,
training would fail.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


def ignore_foreign_signals(worker: int = 0) -> None:
    """Ignore SIGINT and SIGUSR1, and SIGTERM from any process but the parent; a `worker_init_fn`."""
    sys.excepthook = _ignore_broken_pipes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux; other systems do not report the sender
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_sigterm_of, args=(os.getppid(),), daemon=True).start()


def _ignore_broken_pipes(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print no traceback if the parent no longer needs the batch."""
    if not isinstance(error, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _exit_on_sigterm_of(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


@contextmanager
def defer_child_deaths() -> Iterator[None]:
    """Defer torch's SIGCHLD handler, which raises an exception at any point when a loader process dies.

    In an optimizer step, the weights would be left half updated. Waiting for a batch still fails in time, since torch's
    loader checks its processes every few seconds.
    """
    died = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal died
        died = True

    possible = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if possible else None
    if not callable(before):  # torch has not installed its handler
        yield
        return
    signal.signal(signal.SIGCHLD, note)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGCHLD) is note:
            signal.signal(signal.SIGCHLD, before)
    if died:
        before(signal.SIGCHLD, None)
