"""What a loader process does with signals: nothing; they are for the process that started it to answer.

A terminal sends Ctrl-C to all processes of a command, a cluster its warnings and SIGTERM. A loader process that died of
one would take the training with it, in the middle of a step.
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
    """For `worker_init_fn`: ignore SIGINT and SIGUSR1 from anybody, and SIGTERM from all but the parent."""
    sys.excepthook = _unless_the_parent_is_gone
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux; elsewhere there is no telling from whom a signal comes
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_parent_says_so, args=(os.getppid(),), daemon=True).start()


def _unless_the_parent_is_gone(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A batch that nobody waits for any more is nothing to tell: multiprocessing would print the broken pipe."""
    if not isinstance(error, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _end_when_parent_says_so(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


@contextmanager
def deaths_wait() -> Iterator[None]:
    """What torch does when a loader process dies, it does at the end: it raises wherever this process happens to be.

    In the middle of a step that would leave weights half updated, in the middle of a checkpoint half of a file. Who
    waits for a batch meanwhile is told all the same: torch's loader looks every few seconds.
    """
    died = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal died
        died = True

    can = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if can else None
    if not callable(before):  # nobody would be told
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
