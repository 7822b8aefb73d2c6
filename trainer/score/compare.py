"""Two runs on the same images, figure by figure."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from errors import UserError
from trainer.metrics.table import FILTERED, WIDTHS, sections
from trainer.metrics.written import Figure, Section, interval, signed
from trainer.score.parts import Row

COLUMNS = ("", "A", "B", "B - A", "95 % interval", "p")


def refuse_other_references(first: Sequence[Row], second: Sequence[Row], *, paths: Sequence[Path]) -> None:
    """Raises UserError where the same image has other references, or another histogram, in one of the runs."""
    other = [a["id"] for a, b in zip(first, second, strict=True) if _judged_by(a) != _judged_by(b)]
    if other:
        raise UserError(
            f"image {other[0]!r} has other references in {paths[0]} than in {paths[1]} ({len(other)} such images); "
            "--references FILE holds both against the same"
        )


def _judged_by(row: Row) -> tuple[list[str], Sequence[float] | None]:
    return sorted(row["references"]), row.get("histogram")


def comparison_table(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    figures: Mapping[str, Mapping[str, Any]],
    *,
    names: Sequence[str],
) -> str:
    """Aligned plain text: A, B, their difference with its interval, and p, by the sections of metrics.json.

    Args:
        first, second: metrics.json of both.
        figures: as `trainer.metrics.bootstrap.paired` gives them, by key.
    """
    width = min(max(shutil.get_terminal_size((100, 24)).columns, WIDTHS[0]), WIDTHS[1])
    groups = [
        (_title(section, first, second), [_cells(figure, figures[figure.key]) for figure in compared])
        for section in sections(first)
        if (compared := [figure for figure in section.figures if figure.key in figures])
    ]
    columns = [
        max(map(len, column)) for column in zip(COLUMNS, *(row for _, rows in groups for row in rows), strict=True)
    ]
    lines = [f"A: {names[0]}", f"B: {names[1]}", "", _line(COLUMNS, columns)]
    for title, rows in groups:
        lines += [*textwrap.wrap(title, width), *(_line(row, columns) for row in rows), ""]
    return "\n".join([*lines, *(line for text in _words(first, second) for line in _wrapped(text, width))])


def _title(section: Section, first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    if section.title == FILTERED:
        counts = " of A and ".join(str(metrics["captions_filtered"]["count"]) for metrics in (first, second))
        return f"{section.title}: only the {counts} of B whose predicted emotion is the annotators'"
    return f"{section.title}: {section.about}" if section.about else section.title


def _cells(figure: Figure, found: Mapping[str, Any]) -> tuple[str, ...]:
    difference = signed(figure.written)(found["difference"])
    edges = interval(found["interval"], figure.written).replace("%", "pp")
    values = (figure.written(found[side]) for side in ("first", "second"))
    return (f"  {figure.name}", *values, difference, edges, f"{found['p']:.3f}")


def _line(cells: Sequence[str], columns: Sequence[int]) -> str:
    pairs = [*zip(cells, columns, strict=True)]
    return "  ".join(
        f"{text:<{width}}" if i in (0, 4) else f"{text:>{width}}" for i, (text, width) in enumerate(pairs)
    ).rstrip()


def _words(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What the columns mean, and the notes."""
    replicates = first["bootstrap"]["replicates"]
    notes = [*dict.fromkeys([*first["notes"], *second["notes"]])]
    whose = [[mark for mark, metrics in (("A", first), ("B", second)) if note in metrics["notes"]] for note in notes]
    return [
        f"the interval is of B - A, in {replicates} bootstrap samples of the {first['images']} images; p: how often "
        "chance alone would bring a difference as large; pp: percentage points",
        *(f"note on {' and '.join(marks)}: {note}" for marks, note in zip(whose, notes, strict=True)),
    ]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False)
