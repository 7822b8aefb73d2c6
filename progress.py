"""One line that says how far, how fast and how long still."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress(total: int | None, description: str, *, unit: str, initial: int = 0, enabled: bool = True) -> tqdm:
    """A bar on a terminal; in a log file one line every half minute instead of thousands."""
    interactive = sys.stderr.isatty()
    return tqdm(
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
