"""Scores as they are written: a figure with its interval, differences, and numbers with their digits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

NONE = "–"  # where there is no value

Written = Callable[[float | None], str]


class Figure(NamedTuple):
    """One score and how it is written."""

    key: str  # in metrics.json and its intervals: emotion.accuracy, captions.BLEU-4, …
    name: str
    number: float | None
    written: Written
    bounds: Sequence[float] | None = None  # of the 95 % interval
    about: str = ""  # what it is, or what it was computed on

    @property
    def value(self) -> str:
        return self.written(self.number)

    @property
    def interval(self) -> str:
        return interval(self.bounds, self.written)


class Section(NamedTuple):
    title: str
    about: str  # what its figures were computed on, and by which rule
    figures: list[Figure]


class Cell(NamedTuple):
    value: str
    interval: str = ""
    about: str = ""


class Row(NamedTuple):
    name: str
    cells: Sequence[Cell]
    about: str = ""


class Table(NamedTuple):
    title: str
    about: str
    columns: Sequence[str]  # heads; empty: one column without a head, and words on each row
    rows: Sequence[Row]


def figures_of(metrics: Mapping[str, Any], values: Mapping[str, Any], section: str) -> Callable[..., Figure | None]:
    """Writes out the figures of one mapping of metrics.json; those that it lacks become None."""

    def figure(key: str, name: str, written: Written, about: str = "") -> Figure | None:
        if key not in values:
            return None
        bounds = (metrics.get("intervals") or {}).get(f"{section}.{key}")
        return Figure(f"{section}.{key}", name, values[key], written, bounds, about)

    return figure


def interval(bounds: Sequence[float] | None, written: Written) -> str:
    """Empty where there is none."""
    if not bounds:
        return ""
    low, high = (written(bound) for bound in bounds)
    return f"[{low.removesuffix(' %').removesuffix(' pp')}, {high}]"


def signed(written: Written) -> Written:
    """Writes a difference: with its sign, and in percentage points instead of percents; never -0.000."""

    def difference(value: float | None) -> str:
        if value is None:
            return NONE
        size = written(abs(value)).replace("%", "pp")
        return f"-{size}" if value < 0 and re.search("[1-9]", size) else f"+{size}"

    return difference


def count(value: float | None) -> str:
    return _rounded(value, 0)


def length(value: float | None) -> str:
    return _rounded(value, 1)


def percent(value: float | None) -> str:
    return NONE if value is None else f"{_rounded(100 * value, 1)} %"


def number(value: float | None) -> str:
    return _rounded(value, 3)


def _rounded(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: never -0.000
