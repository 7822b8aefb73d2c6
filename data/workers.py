"""Signals and loader processes: the training handles them, and no loader process ends in the middle of a step.

A terminal sends Ctrl-C to all processes of a command, a cluster SIGUSR1 and SIGTERM. A loader process that died of one
would end the training with it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


def obey_parent_only(worker: int = 0) -> None:
    """For `worker_init_fn`: ignore SIGINT and SIGUSR1 from any process, and SIGTERM from all but the parent."""
    sys.excepthook = _ignore_broken_pipes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux; elsewhere the sender of a signal is unknown
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_sigterm_of, args=(os.getppid(),), daemon=True).start()


def _ignore_broken_pipes(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The parent no longer needs the batch; multiprocessing would print a traceback."""
    if not isinstance(error, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _exit_on_sigterm_of(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


@contextmanager
def deaths_wait() -> Iterator[None]:
    """Defer torch's handler of SIGCHLD, which raises wherever this process is when a loader process dies.

    Raised inside an optimizer step it would leave weights half updated, inside a checkpoint half a file. Waiting for a
    batch meanwhile still ends, because torch's loader checks its processes every few seconds.
    """
    died = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal died
        died = True

    can = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if can else None
    if not callable(before):  # torch has not installed it
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
