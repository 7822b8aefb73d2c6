"""Signals and loader processes: only the training process handles signals, and a loader's death waits for a step's end.

A terminal sends SIGINT to all processes of a command, a cluster SIGUSR1 and SIGTERM. If one killed a loader process,
training would fail.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from multiprocessing.queues import Queue
from types import FrameType, TracebackType

from torch.utils.data._utils.signal_handling import _set_SIGCHLD_handler


def ignore_foreign_signals(worker: int = 0) -> None:
    """Ignore SIGINT and SIGUSR1, and SIGTERM from any process but the parent; a `worker_init_fn`."""
    sys.excepthook = _ignore_broken_pipes
    Queue._on_queue_feeder_error = staticmethod(_exit_without_batch)
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


def _exit_without_batch(error: Exception, batch: object) -> None:
    """End this process where it has no memory left to send a batch: the parent would wait for the batch forever."""
    print(f"\na loader process cannot send a batch: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def _exit_on_sigterm_of(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class LoaderDeaths:
    """While entered, the death of a loader process raises nothing until `check` or torch's own wait for a batch does.

    torch's SIGCHLD handler raises at any point: in an optimizer step, which would leave the weights half updated, or
    while the exception of a broken connection to the same process is being handled. Waiting for a batch still fails in
    time, since torch's loader checks its processes every few seconds.
    """

    def __init__(self) -> None:
        self.error: RuntimeError | None = None  # torch's explanation of the first death

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def __enter__(self) -> LoaderDeaths:
        self._before = None
        if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            _set_SIGCHLD_handler()  # else torch's first loader would install it over this one
            self._before = signal.signal(signal.SIGCHLD, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if callable(self._before):
            try:
                self._before(number, frame)
            except RuntimeError as error:
                self.error = self.error or error

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGCHLD, self._before)
