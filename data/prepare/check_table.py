"""The figures of a report as rows of words, one column per split: for the terminal and for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

from data.prepare.check_dataset import KINDS, Problem, Report, SplitReport

NONE = "–"
EXAMPLES = 3  # problems of a kind that the terminal shows
Row = tuple[str, list[str]]


def image_rows(splits: Iterable[SplitReport]) -> list[Row]:
    return _rows(
        splits,
        {
            "images listed": lambda s: _count(s.listed),
            "usable": lambda s: _count(s.usable),
            "missing": lambda s: _count(s.missing),
            "ambiguous name": lambda s: _count(s.ambiguous),
            "corrupt": lambda s: _count(s.corrupt),
            "under another name": lambda s: _count(s.renamed),
            "faulty entries": lambda s: _count(s.entries),
            "shorter side, median": lambda s: _pixels(s, min),
            "longer side, median": lambda s: _pixels(s, max),
        },
    )


def text_rows(splits: Iterable[SplitReport], *, max_length: int) -> list[Row]:
    return _rows(
        [split.texts for split in splits],
        {
            "texts": lambda t: _count(t.texts),
            "texts per image": lambda t: f"{t.texts / t.images:.2f}" if t.images else NONE,
            "tokens of a text, median": lambda t: _count(quantile(t.lengths, 0.5)),
            "tokens of the longest": lambda t: _count(max(t.lengths, default=None)),
            f"cut at {max_length} tokens": lambda t: _part(t.truncated, t.lengths.total()),
        },
    )


def vad_rows(splits: Iterable[SplitReport]) -> list[Row]:
    def share(key: str) -> Callable[[Any], str]:
        return lambda t: _share(t.coverage[key]) if t.coverage.get("lexicon_words") else NONE

    def of_words(t: Any) -> str:
        return _share(t.coverage["lexicon_words"] / t.coverage["words"]) if t.coverage.get("words") else NONE

    return _rows(
        [split.texts for split in splits],
        {
            "words that are in the lexicon": of_words,
            "tokens with a value": lambda t: _share(t.tokens_known / t.tokens) if t.coverage and t.tokens else NONE,
            "lexicon words with their own value": share("own"),
            "token by token: their own value": share("pieces_own"),
            "token by token: another word's": share("pieces_other"),
            "token by token: none": share("pieces_none"),
        },
    )


def emotion_rows(splits: Iterable[SplitReport]) -> list[Row]:
    """Share of the texts with each emotion, and of the images where it has the majority; nothing without emotions."""
    found = [split.texts for split in splits]
    if not any(texts and texts.votes for texts in found):
        return []

    def of(emotion: int | None) -> Callable[[Any], str]:
        def cell(texts: Any) -> str:
            votes = "" if emotion is None else _of(texts.votes, emotion)
            return f"{votes:>6}  {_of(texts.dominant, emotion):>6}" if texts.votes else NONE

        return cell

    labels = next(texts.labels for texts in found if texts)
    names = {name: of(i) for i, name in enumerate(labels)}
    return _rows(found, {**names, "no majority": of(None)})


def problem_counts(problems: Iterable[Problem]) -> dict[str, int]:
    """By kind, in the order of KINDS."""
    counts = Counter(problem.kind for problem in problems)
    return {kind: counts[kind] for kind in KINDS if counts[kind]}


def as_text(report: Report) -> str:
    """For the terminal."""
    splits = list(report.splits.values())
    parts = [
        image_rows(splits),
        text_rows(splits, max_length=report.settings["dataset.max_length"]),
        vad_rows(splits) if any(split.texts and split.texts.coverage for split in splits) else [],
    ]
    lines = _table(["", *report.splits], [row for rows in parts for row in rows])
    if emotions := emotion_rows(splits):
        heads = ["votes, dominant"] * len(splits)
        lines += ["", *_table(["emotion", *heads], emotions)]
    lines += ["", *report.omissions] if report.omissions else []
    for kind, count in problem_counts(report.problems).items():
        lines += ["", f"{count:,} {kind}: {KINDS[kind]}"]
        examples = [problem for problem in report.problems if problem.kind == kind][:EXAMPLES]
        lines += [f"  {example}" for example in map(sentence, examples)]
    return "\n".join(lines)


def sentence(problem: Problem) -> str:
    """Where and what, without saying the path twice."""
    where = [problem.split, problem.id, problem.path if problem.path not in problem.reason else ""]
    return f"{' '.join(part for part in where if part)}: {problem.reason}".removeprefix(": ")


def quantile(counts: Counter[int], share: float) -> int | None:
    """The smallest value that `share` of all counted ones do not exceed."""
    wanted, seen = share * counts.total(), 0
    for value, count in sorted(counts.items()):
        seen += count
        if seen >= wanted:
            return value
    return None


def _rows(splits: Iterable[Any], cells: dict[str, Callable[[Any], str]]) -> list[Row]:
    splits = list(splits)
    return [(name, [NONE if split is None else cell(split) for split in splits]) for name, cell in cells.items()]


def _table(heads: list[str], rows: list[Row]) -> list[str]:
    columns = list(zip(heads, *([name, *cells] for name, cells in rows), strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = zip(*columns, strict=True)
    first = f"{{:<{widths[0]}}}"
    return [
        "  ".join(
            [first.format(line[0]), *(f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _part(count: int, total: int) -> str:
    return f"{count:,} ({_share(count / total)})" if total else NONE


def _of(counts: Counter[int | None], key: int | None) -> str:
    return _share(counts[key] / counts.total()) if counts[key] else "0 %"


def _pixels(split: SplitReport, side: Callable[[int, int], int]) -> str:
    if split.images is None or not split.images.widths:
        return NONE
    return f"{median(map(side, split.images.widths, split.images.heights)):.0f} px"
