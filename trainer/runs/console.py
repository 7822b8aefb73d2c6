"""Status lines on screen, and the rounding of numbers in files."""

from __future__ import annotations

import sys


def print_status(text: str) -> None:
    """Print to stderr; stdout is for results."""
    print(text, file=sys.stderr)


def round_significant(value: float) -> float:
    """Round to six significant digits, which is accurate enough for the logarithm of a small probability too."""
    return float(f"{value:.6g}")
