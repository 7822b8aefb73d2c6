"""Predictions as a table on screen."""

from __future__ import annotations

import itertools
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.html import percent
from data.emotions import labels_of
from trainer.metrics.sources import SINGLE

NAME_WIDTH = 40  # of a picture's name on screen; its end is what differs
SAID_WIDTH = 24  # of a text in the emotion's place that is none of the labels
SOURCES_HEAD = "language model / expert"  # where they do not say the same
VAD_HEAD = "V / A / D (−1..1)"  # valence, arousal, dominance: as wide as three signed numbers


def table(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield lines with picture, emotion, VAD and reason of each row, aligned and wrapped at the terminal's width.

    Where language model and expert do not both name the fused emotion, theirs stand beside it. Reasons for other
    emotions stand below, without the picture's name. Columns that are empty in all rows are left out. The rows are
    iterated twice and never held together, so that any number fits in memory.
    """
    widths = [0, 0, 0, 0]
    for line in (line for row in rows for line in _lines(row)):
        widths = [max(width, len(cell)) for width, cell in zip(widths, line, strict=False)]
    if not any(widths):
        yield "no picture"
        return
    head = ("", "", SOURCES_HEAD * bool(widths[2]), VAD_HEAD * bool(widths[3]), "")
    widths = [max(width, len(cell)) for width, cell in zip(widths, head, strict=False)]
    indent = sum(width + 2 for width in widths if width)
    terminal = max(shutil.get_terminal_size((160, 24)).columns, indent + 30)
    for *cells, text in itertools.chain([head] * any(head), (line for row in rows for line in _lines(row))):
        before = "".join(f"{cell:<{width}}  " for cell, width in zip(cells, widths, strict=True) if width)
        yield textwrap.fill(text, terminal, initial_indent=before, subsequent_indent=" " * indent) or before.rstrip()


def _lines(row: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield picture, emotion, sources, VAD and reason of the row, then of its reasons for other emotions."""
    name = Path(row["image"]).name
    name = name if len(name) <= NAME_WIDTH else f"…{name[1 - NAME_WIDTH :]}"
    yield name, _emotion(row), _sources(row), _signed(row.get("vad")), row["explanation"] or ""
    for reason in row.get("reasons", ())[1:]:  # the first is the row's own
        emotion = f"{reason['emotion']} {percent(reason['probability'])}%"
        yield "", emotion, "", _signed(reason.get("vad")), reason["explanation"] or ""


def _emotion(row: Mapping[str, Any]) -> str:
    if row["emotion"] is not None:
        return f"{row['emotion']} {percent(max_share(row))}%"
    said = row.get("emotion_text")
    return "" if said is None else f'"{textwrap.shorten(said, SAID_WIDTH, placeholder="…")}"'


def _sources(row: Mapping[str, Any]) -> str:
    """The likeliest emotions of language model and expert, where either is another than the row's."""
    said = []
    for name in SINGLE:
        shares = (row.get("sources") or {}).get(name)
        if not shares:
            return ""
        said.append((labels_of(row)[shares.index(max(shares))], max(shares)))
    if {emotion for emotion, _ in said} == {row["emotion"]}:
        return ""
    return " / ".join(f"{emotion} {percent(share)}%" for emotion, share in said)


def _signed(vad: Sequence[float] | None) -> str:
    return "" if vad is None else " ".join(f"{round(value, 2) + 0.0:+.2f}" for value in vad)  # no -0.00


def max_share(row: Mapping[str, Any]) -> float:
    """Probability of the emotion that the reason was written for."""
    return row["emotion_distribution"][labels_of(row).index(row["emotion"])]
