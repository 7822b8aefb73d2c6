"""Predictions as a table on screen."""

from __future__ import annotations

import itertools
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.emotions import labels_of
from pages import percent

NAME_WIDTH = 40  # of a picture's name on screen; its end is what differs
SAID_WIDTH = 24  # of a text in the emotion's place that is none of the labels
SOURCES_HEAD = "language model / expert"  # where they do not say the same
VAD_HEAD = "V / A / D (−1..1)"  # valence, arousal, dominance: as wide as three signed numbers


def table(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Picture, emotion, VAD and reason of each row, aligned, the reasons wrapped at the width of the terminal.

    Where language model and expert do not both say the emotion that was made of them, what they say stands beside it.
    Reasons for other emotions stand below, without the picture's name. What no row has leaves no column. `rows` are
    gone through twice, and no more than one is kept.
    """
    widths = [0, 0, 0, 0]
    for line in (line for row in rows for line in _lines(row)):
        widths = [max(width, len(cell)) for width, cell in zip(widths, line, strict=False)]
    if not any(widths):
        yield "no picture"
        return
    head = [_Line("", "", SOURCES_HEAD * bool(widths[2]), VAD_HEAD * bool(widths[3]), "")] if any(widths[2:]) else []
    widths = [max(width, len(cell)) for width, cell in zip(widths, head[0], strict=False)] if head else widths
    indent = sum(width + 2 for width in widths if width)
    terminal = max(shutil.get_terminal_size((160, 24)).columns, indent + 30)
    for line in itertools.chain(head, (line for row in rows for line in _lines(row))):
        cells = "".join(f"{cell:<{width}}  " for cell, width in zip(line, widths, strict=False) if width)
        text = textwrap.fill(line.text, terminal, initial_indent=cells, subsequent_indent=" " * indent)
        yield text or cells.rstrip()


class _Line(NamedTuple):
    name: str
    emotion: str
    sources: str
    vad: str
    text: str


def _lines(row: Mapping[str, Any]) -> Iterator[_Line]:
    name = Path(row["image"]).name
    name = name if len(name) <= NAME_WIDTH else f"…{name[1 - NAME_WIDTH :]}"
    yield _Line(name, _emotion(row), _sources(row), _signed(row.get("vad")), row["explanation"] or "")
    for reason in row.get("reasons", ())[1:]:  # the first is the row's own
        emotion = f"{reason['emotion']} {percent(reason['probability'])}%"
        yield _Line("", emotion, "", _signed(reason.get("vad")), reason["explanation"] or "")


def _emotion(row: Mapping[str, Any]) -> str:
    if row["emotion"] is not None:
        return f"{row['emotion']} {percent(max_share(row))}%"
    said = row.get("emotion_text")
    return "" if said is None else f'"{textwrap.shorten(said, SAID_WIDTH, placeholder="…")}"'


def _sources(row: Mapping[str, Any]) -> str:
    """The likeliest emotions of language model and expert, where either is another than the row's."""
    said = []
    for name in ("language_model", "student"):
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
