"""Predictions as a table on screen."""

from __future__ import annotations

import itertools
import shutil
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from common.html import percent
from common.html.tables import padded
from data.emotions import labels_of
from trainer.metrics.sources import STUDENT, combined_in, name_of

NAME_WIDTH = 40  # of a file name, whose end is kept
TEXT_WIDTH = 24  # of a generated emotion that is none of the labels
SHOWN_FAULTS = 10  # shards
VAD_HEAD = "V / A / D (−1..1)"  # valence, arousal, dominance


def table_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield lines with picture, emotion, VAD and reason of each row, aligned and wrapped at the terminal's width.

    If the likeliest emotion of a source of the gate differs from the fused one, those of all are shown beside it.
    Reasons for other emotions follow below, without the file name. Columns that are empty in all rows are left out. The
    rows are iterated several times and not stored, so any number fits in memory.
    """
    widths, names = [0, 0, 0, 0], combined_in(rows)
    for line in (line for row in rows for line in _lines(row, names)):
        widths = [max(width, cell_len(cell)) for width, cell in zip(widths, line, strict=False)]
    if not any(widths):
        yield "no picture"
        return
    sources = " / ".join("expert" if name == STUDENT else name_of(name) for name in names)
    head = ("", "", sources * bool(widths[2]), VAD_HEAD * bool(widths[3]), "")
    widths = [max(width, len(cell)) for width, cell in zip(widths, head, strict=False)]
    indent = sum(width + 2 for width in widths if width)
    terminal = max(shutil.get_terminal_size((160, 24)).columns, indent + 30)
    for *cells, text in itertools.chain([head] * any(head), (line for row in rows for line in _lines(row, names))):
        before = "".join(f"{padded(cell, width)}  " for cell, width in zip(cells, widths, strict=True) if width)
        wrapped = textwrap.fill(text, terminal, initial_indent=" " * indent, subsequent_indent=" " * indent)
        yield before + wrapped[indent:] if text else before.rstrip()


def shards_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines with the counts over all shards, as trainer.prediction.shard_results gives them."""
    pictures, emotions = summary["pictures"], summary["emotions"]
    rate = summary["pictures_per_second"]
    yield f"{pictures:,} pictures of {summary['shards']:,} shards" + (f", {rate:,} a second" if rate else "")
    widths = [max(map(len, emotions), default=0), len(f"{pictures:,}")]
    for name, count in emotions.items():
        yield f"  {name:<{widths[0]}}  {count:>{widths[1]},}  {percent(count / pictures)} %"
    if summary["skipped"]:
        yield f"{summary['skipped']:,} pictures cannot be used; the folder skipped/ lists them"
    if summary["unfamiliar"]:
        yield f"{summary['unfamiliar']:,} pictures are unlike those of the training: their emotions are guesses"
    faults = [*((name, reasons[0]) for name, reasons in summary["faults"].items()), *summary["not read"].items()]
    if faults:
        yield f"{len(faults):,} shards are damaged, missing or left out; summary.json lists them:"
        yield from (f"  {name}: {reason}" for name, reason in faults[:SHOWN_FAULTS])


def unfamiliar_warning(rows: Collection[Mapping[str, Any]]) -> str | None:
    """Return a sentence about the pictures that are unlike the training pictures; None if there are none."""
    names = [Path(row["image"]).name for row in rows if row.get("unfamiliar")]
    if not names:
        return None
    verb, its, first = ("is", "its", "") if len(names) == 1 else ("are", "their", "the first: ")
    return (
        f"warning: {len(names)} of {len(rows)} pictures {verb} unlike those that the network was trained on "
        f"({first}{names[0]}): {its} emotions and explanations are guesses"
    )


def _lines(row: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield picture, emotion, sources, VAD and reason of the row, then of its reasons for other emotions."""
    name = Path(row["image"]).name
    name = name if len(name) <= NAME_WIDTH else f"…{name[1 - NAME_WIDTH :]}"
    yield name, _emotion(row), _sources(row, names), _signed(row.get("vad")), row["explanation"] or ""
    for reason in row.get("reasons", ())[1:]:  # the first is the row's own
        emotion = f"{reason['emotion']} {percent(reason['probability'])}%"
        yield "", emotion, "", _signed(reason.get("vad")), reason["explanation"] or ""


def _emotion(row: Mapping[str, Any]) -> str:
    if row["emotion"] is not None:
        return f"{row['emotion']} {percent(max_share(row))}%"
    text = row.get("emotion_text")
    return "" if text is None else f'"{textwrap.shorten(text, TEXT_WIDTH, placeholder="…")}"'


def _sources(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the likeliest emotions of these sources, if any differs from the row's; – for a source without entry."""
    given = row.get("sources") or {}
    found = [
        (labels_of(row)[given[name].index(max(given[name]))], max(given[name])) if given.get(name) else None
        for name in names
    ]
    if len(found) < 2 or {pair[0] for pair in found if pair} <= {row["emotion"]}:
        return ""
    return " / ".join(f"{pair[0]} {percent(pair[1])}%" if pair else "–" for pair in found)


def _signed(vad: Sequence[float] | None) -> str:
    return "" if vad is None else " ".join(f"{round(value, 2) + 0.0:+.2f}" for value in vad)  # no -0.00


def max_share(row: Mapping[str, Any]) -> float:
    """Return the probability of the explained emotion."""
    return row["emotion_distribution"][labels_of(row).index(row["emotion"])]
