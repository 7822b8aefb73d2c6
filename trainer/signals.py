"""Signals that ask a training to stop: it finishes its step, writes a checkpoint and ends with a status of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from launcher import rank, world_size

STOPPED = 75  # status; sysexits.h calls it EX_TEMPFAIL: nothing is wrong, the same again will go on
# SIGUSR1 is what clusters send some minutes before the time is over.
ASKING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


class Broken(Exception):
    """What was going on is broken off, as a stop was asked for."""


class StopRequest:
    """Whether somebody asked to stop, and with which signal.

    Signals only leave a mark here: between two bytecodes, where Python delivers them, nothing may be saved or raised.
    The exception is a second SIGINT, for those who cannot wait: it is a KeyboardInterrupt, at once.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._interrupted = False

    def __bool__(self) -> bool:
        return self.name is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals in; afterwards they mean what they meant before.

        Only the main thread can, in others nothing is changed. A SIGINT that whoever started the process had ignored
        stays so (a shell does that for what it runs in the background).
        """
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            for number in ASKING:
                if not (ignored and number == signal.SIGINT):
                    before[number] = signal.signal(number, self._take)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _take(self, number: int, frame: FrameType | None) -> None:
        again = ""
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted, again = True, ", again to stop at once"
        self.name = signal.Signals(number).name
        # A launcher also sends SIGTERM to those that are left when a process has died, and they can write none.
        told = "with a checkpoint" if world_size() == 1 else "with a checkpoint if all processes are still there"
        text = f"\n{self.name}: stopping after this step, {told}{again}\n"
        if rank() == 0:
            os.write(sys.__stderr__.fileno(), text.encode())  # print would fail where it interrupts another print

    def breaking(self, batches: Iterable[Any]) -> Breakable:
        return Breakable(self, batches)


class Breakable:
    """`batches` until a stop is asked for; then `Broken` is raised instead of the next one."""

    def __init__(self, stop: StopRequest, batches: Iterable[Any]) -> None:
        self.stop, self.batches = stop, batches

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            if self.stop:
                raise Broken
            yield batch
