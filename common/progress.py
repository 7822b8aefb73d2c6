"""Progress bars."""

from __future__ import annotations

import sys
import threading
import time

from tqdm import tqdm

# tqdm's default lock is shared by forked processes: one that is killed while drawing would block all others for good.
tqdm.set_lock(threading.RLock())


class Bar(tqdm):
    """Uses the monotonic clock: the bar does not freeze when the system clock is set back."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._time = time.monotonic
        self.start_t = self.last_print_t = time.monotonic()


def progress(total: int | None, description: str, *, unit: str, initial: int = 0, enabled: bool = True) -> tqdm:
    """Return a progress bar; in a log file it prints one line every 30 s."""
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
