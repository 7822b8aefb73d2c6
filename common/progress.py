"""One line that says how far, how fast and how long still."""

from __future__ import annotations

import sys
import threading
import time

from tqdm import tqdm

# tqdm's own is a semaphore that forks of a process share: one that is killed while it draws stops all others for good.
tqdm.set_lock(threading.RLock())


class Bar(tqdm):
    """By a clock that is never set back: else it would stand still for as long as that was."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._time = time.monotonic
        self.start_t = self.last_print_t = time.monotonic()


def progress(total: int | None, description: str, *, unit: str, initial: int = 0, enabled: bool = True) -> tqdm:
    """A bar on a terminal; in a log file one line every half minute instead of thousands."""
    interactive = sys.stderr.isatty()
    return Bar(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        disable=not enabled,
        dynamic_ncols=interactive,
        ncols=None if interactive else 100,
        mininterval=0.2 if interactive else 30.0,
        smoothing=0.05,
    )
