"""A check as tables with a column for each split (terminal and page), as text, and as the content of check.json."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

from common.html.tables import NONE, Cell, Row, Table, percent, screen_text
from data.prepare.check.dataset import KINDS, Problem, Report, SplitReport
from data.prepare.check.images import ImageStatistics
from data.prepare.check.texts import TextStatistics, most_frequent

EXAMPLES = 3  # problems of each kind on the terminal
COUNTS = ("listed", "usable", "missing", "ambiguous", "corrupt", "renamed")  # of images

Cells = dict[str, Callable[[Any], str]]  # name of a row → its cell, given a SplitReport or TextStatistics


def tables(report: Report) -> list[Table]:
    """Return the tables that have a value."""
    splits = list(report.splits.values())
    texts = [split.texts for split in splits]
    found = (
        ("Images", "", splits, _image_cells()),
        ("Texts", "", texts, _text_cells(report.settings["dataset.max_length"])),
        ("Emotions", "Share of the texts, and of the images where more than half of the annotators chose it.",
         texts, _emotion_cells(texts)),
        ("Valence, arousal, dominance",
         "Coverage by the lexicon, and what would remain if each token were looked up by itself.",
         texts, _vad_cells() if any(t and t.coverage for t in texts) else {}),
    )  # fmt: skip
    tables = []
    for title, about, items, cells in found:
        rows = [Row(name, [Cell(NONE if i is None else cell(i)) for i in items]) for name, cell in cells.items()]
        tables.append(Table(title, about, list(report.splits), rows))
    return [table for table in tables if table.rows]


def _image_cells() -> Cells:
    names = ("images listed", "usable", "missing", "ambiguous name", "corrupt", "under another name", "faulty entries")
    keys = dict(zip(names, (*COUNTS, "entries"), strict=True))
    return {name: lambda s, key=key: _count(getattr(s, key)) for name, key in keys.items()} | {
        "shorter side, median": lambda s: _median_side(s.images, min),
        "longer side, median": lambda s: _median_side(s.images, max),
    }


def _text_cells(max_length: int) -> Cells:
    return {
        "texts": lambda t: _count(t.texts),
        "texts per image": lambda t: f"{t.texts / t.images:.2f}" if t.images else NONE,
        "tokens of a text, median": lambda t: _count(quantile(t.lengths, 0.5)),
        "tokens of the longest": lambda t: _count(max(t.lengths, default=None)),
        f"cut at {max_length} tokens": lambda t: (
            f"{t.truncated:,} ({percent(t.truncated / t.lengths.total())})" if t.lengths else NONE
        ),
    }


def _emotion_cells(texts: Sequence[TextStatistics | None]) -> Cells:
    def cell(t: TextStatistics, emotion: int | None) -> str:
        votes = "" if emotion is None else _share(t.votes, emotion)
        return f"{votes:>6}  {_share(t.dominant, emotion):>6}" if t.votes else NONE

    labels = next((t.labels for t in texts if t and t.votes), None)
    emotions = {} if labels is None else {name: i for i, name in enumerate(labels)} | {"no majority": None}
    return {name: partial(cell, emotion=emotion) for name, emotion in emotions.items()}


def _vad_cells() -> Cells:
    def share(key: str) -> Callable[[TextStatistics], str]:
        return lambda t: percent(t.coverage[key]) if t.coverage.get("lexicon_words") else NONE

    return {
        "words that are in the lexicon": lambda t: (
            percent(t.coverage["lexicon_words"] / t.coverage["words"]) if t.coverage.get("words") else NONE
        ),
        "tokens with a value": lambda t: percent(t.tokens_known / t.tokens) if t.coverage and t.tokens else NONE,
        "lexicon words with their own value": share("own"),
        "token by token: their own value": share("pieces_own"),
        "token by token: another word's": share("pieces_other"),
        "token by token: none": share("pieces_none"),
    }


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def _share(counts: Counter[int | None], key: int | None) -> str:
    return percent(counts[key] / counts.total()) if counts[key] else "0 %"


def _median_side(images: ImageStatistics | None, side: Callable[[tuple[int, int]], int]) -> str:
    return f"{median(map(side, images.sizes)):.0f} px" if images and images.sizes else NONE


def quantile(counts: Counter[int], share: float) -> int | None:
    """Return the smallest value that at least `share` of the counted values do not exceed; None without values."""
    values = sorted(counts.elements())
    return values[max(math.ceil(share * len(values)), 1) - 1] if values else None


def as_text(report: Report) -> str:
    """Return the tables, omissions and first problems of each kind for the terminal."""
    lines = [screen_text(tables(report))]
    lines += ["", *report.omissions] if report.omissions else []
    for kind, count in report.counts.items():
        examples = [problem for problem in report.problems if problem.kind == kind][:EXAMPLES]
        lines += ["", f"{count:,} {kind}: {KINDS[kind]}", *(f"  {_sentence(problem)}" for problem in examples)]
    return "\n".join(lines)


def _sentence(problem: Problem) -> str:
    where = [problem.split, problem.id, problem.path if problem.path not in problem.reason else ""]
    return f"{' '.join(filter(None, where))}: {problem.reason}".removeprefix(": ")


def as_json(report: Report) -> dict[str, Any]:
    return {
        "wrong": report.faults > 0,
        "problems": report.counts,
        "splits": {name: _split_json(split) for name, split in report.splits.items()},
        "settings": report.settings,
    }


def _split_json(split: SplitReport) -> dict[str, Any]:
    values = {
        "json_path": split.json_path,
        "visual_dir": split.visual_dir,
        "faulty_entries": split.entries,
        "images": {key: getattr(split, key) for key in COUNTS},
        "sizes": _sizes(split.images) if split.images else None,
    }
    if (t := split.texts) is None:
        return values
    return values | {
        "texts": t.texts,
        "texts_per_image": dict(sorted(t.texts_per_image.items())),
        "votes": {name: t.votes[i] for i, name in enumerate(t.labels)} if t.votes else None,
        "dominant": {name: t.dominant[i] for i, name in enumerate(t.labels)} if t.dominant else None,
        "no_majority": t.dominant[None] if t.dominant else None,
        "tokens_of_a_text": dict(sorted(t.lengths.items())) or None,
        "truncated_texts": t.truncated if t.lengths else None,
        "tokens": t.tokens if t.lengths else None,
        "tokens_with_vad": t.tokens_known if t.coverage else None,
        "vad": t.coverage or None,
        "words_the_lexicon_lacks": dict(most_frequent(t.lacking)) if t.coverage else None,
    }


def _sizes(images: ImageStatistics) -> dict[str, dict[str, int]]:
    """Return minimum, median and maximum of width and height in pixels; empty without images."""
    sides = zip(("width", "height"), map(sorted, zip(*images.sizes, strict=True)), strict=False)
    return {name: {"min": s[0], "median": s[len(s) // 2], "max": s[-1]} for name, s in sides}
