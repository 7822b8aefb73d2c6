"""Stop signals: the training finishes its step, writes a checkpoint and exits with status 75."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from common.cli import STOP_SIGNALS
from common.ranks import rank, world_size


class Stopped(Exception):
    """Raised between validation batches after a stop signal."""


class StopRequest:
    """True once a stop signal has arrived; `name` is that of the signal.

    The handler only sets this flag: Python delivers signals between any two bytecodes, where nothing may be saved or
    raised. The exception is a second SIGINT, which raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._interrupted = False

    def __bool__(self) -> bool:
        return self.name is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals in this context, and restore the old handlers afterwards.

        Only the main thread can; in others nothing changes. SIGINT stays ignored if it was at the start of the process,
        as in background jobs of a shell.
        """
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            for number in STOP_SIGNALS:
                if not (ignored and number == signal.SIGINT):
                    before[number] = signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = ""
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted, again = True, ", again to stop at once"
        self.name = signal.Signals(number).name
        # A launcher also sends SIGTERM to the remaining processes when one has died; they cannot write a checkpoint.
        checkpoint = "with a checkpoint" + ("" if world_size() == 1 else " if all processes are still running")
        text = f"\n{self.name}: stopping after this step, {checkpoint}{again}\n"
        if rank() == 0:
            os.write(sys.__stderr__.fileno(), text.encode())  # print would fail where it interrupts another print


class Stoppable:
    """Iterates over `batches`; after a stop signal raises `Stopped` instead of yielding the next one."""

    def __init__(self, batches: Iterable[Any], stop: StopRequest) -> None:
        self.batches, self.stop = batches, stop

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            if self.stop:
                raise Stopped
            yield batch
