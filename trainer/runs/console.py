"""What commands print, and numbers as files hold them."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Print to stderr; stdout is for results."""
    print(text, file=sys.stderr)


def significant(value: float) -> float:
    """Six significant digits, as files hold it: the logarithm of a small probability is right too."""
    return float(f"{value:.6g}")
