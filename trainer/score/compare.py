"""Comparison of two runs on the same images, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.html.tables import Cell, Row, Table, screen_text, signed
from trainer.metrics.expert_sections import expert_tables
from trainer.score.looking_tables import blind_sentences, looking_tables
from trainer.score.scores import Row as Prediction
from trainer.score.tables import score_tables

COLUMNS = ("A", "B", "B - A", "p")


def refuse_other_references(
    first: Sequence[Prediction], second: Sequence[Prediction], *, paths: Sequence[Path]
) -> None:
    """Raise UserError if an image has other references, another histogram or other ratings in one of the runs."""
    other = [a["id"] for a, b in zip(first, second, strict=True) if _references(a) != _references(b)]
    if other:
        raise UserError(
            f"image {other[0]!r} has other references in {paths[0]} than in {paths[1]} ({len(other)} such images); "
            "give --references FILE for both"
        )


def _references(row: Prediction) -> tuple[list[str], Sequence[float] | None, Sequence[float | None] | None]:
    return sorted(row["references"]), row.get("histogram"), row.get("ratings")


def comparison_text(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    figures: Mapping[str, Mapping[str, Any]],
    *,
    names: Sequence[str],
) -> str:
    """Return the tables of metrics.json with the columns A, B, difference with interval, and p, for the terminal.

    Args:
        first, second: metrics.json of both.
        figures: by key, from `trainer.metrics.bootstrap.paired`.
    """
    of_second = {table.title: table.about for table in _all_tables(second)}
    tables = []
    for table in _all_tables(first):
        other = of_second.get(table.title, table.about)
        about = table.about if other == table.about else f"A: {table.about} B: {other}"
        if rows := list(_rows(table, figures)):
            tables.append(Table(table.title, about, COLUMNS, rows))
    blind = [f"{side}: {text}" for side, found in (("A", first), ("B", second)) if (text := blind_sentences(found))]
    return screen_text([f"A: {names[0]}", f"B: {names[1]}", *blind, "", *tables, *_legend_and_notes(first, second)])


def _all_tables(metrics: Mapping[str, Any]) -> list[Table]:
    return [*score_tables(metrics), *looking_tables(metrics), *expert_tables(metrics)]


def _rows(table: Table, figures: Mapping[str, Mapping[str, Any]]) -> Iterator[Row]:
    for i, column in enumerate(table.columns or ("",)):
        for row in table.rows:
            cell = row.cells[i]
            if cell.key not in figures:
                continue
            found, about = figures[cell.key], row.about if table.columns else ""
            name = ", ".join(filter(None, (row.name, about, column)))
            change = Cell(found["difference"], signed(cell.written), found["interval"])
            values = [Cell(cell.written(found[side])) for side in ("first", "second")]
            yield Row(name, [*values, change, Cell(f"{found['p']:.3f}")])


def _legend_and_notes(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    notes = dict.fromkeys([*first["notes"], *second["notes"]])
    sides = {"A": first["notes"], "B": second["notes"]}
    return [
        f"the interval is of B - A, in {first['bootstrap']['replicates']} bootstrap samples of the {first['images']} "
        "images; p: how often chance alone would bring a difference as large; pp: percentage points",
        *(f"note on {' and '.join(side for side in sides if note in sides[side])}: {note}" for note in notes),
    ]
