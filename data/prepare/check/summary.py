"""The figures of a check as tables with a column for each split, for the terminal and for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any

from common.html.tables import NONE, Cell, Row, Table, screen_text
from data.prepare.check.dataset import KINDS, Problem, Report, SplitReport

EXAMPLES = 3  # problems of a kind that the terminal shows


def tables(report: Report) -> list[Table]:
    """Return what is known of the images, texts, emotions and words of each split."""
    return [table for make in (_images, _texts, _emotions, _vad) if (table := make(report)).rows]


def _images(report: Report) -> Table:
    cells: dict[str, Callable[[Any], str]] = {
        "images listed": lambda s: _count(s.listed),
        "usable": lambda s: _count(s.usable),
        "missing": lambda s: _count(s.missing),
        "ambiguous name": lambda s: _count(s.ambiguous),
        "corrupt": lambda s: _count(s.corrupt),
        "under another name": lambda s: _count(s.renamed),
        "faulty entries": lambda s: _count(s.entries),
        "shorter side, median": lambda s: _pixels(s, min),
        "longer side, median": lambda s: _pixels(s, max),
    }
    return _table("Images", report, report.splits.values(), cells)


def _texts(report: Report) -> Table:
    cells: dict[str, Callable[[Any], str]] = {
        "texts": lambda t: _count(t.texts),
        "texts per image": lambda t: f"{t.texts / t.images:.2f}" if t.images else NONE,
        "tokens of a text, median": lambda t: _count(quantile(t.lengths, 0.5)),
        "tokens of the longest": lambda t: _count(max(t.lengths, default=None)),
        f"cut at {report.settings['dataset.max_length']} tokens": lambda t: _part(t.truncated, t.lengths.total()),
    }
    return _table("Texts", report, _texts_of(report), cells)


def _emotions(report: Report) -> Table:
    """Return the share of the texts with each emotion, and of the images where it has the majority."""
    found = _texts_of(report)

    def of(emotion: int | None) -> Callable[[Any], str]:
        def cell(texts: Any) -> str:
            votes = "" if emotion is None else _of(texts.votes, emotion)
            return f"{votes:>6}  {_of(texts.dominant, emotion):>6}" if texts.votes else NONE

        return cell

    with_votes = any(texts and texts.votes for texts in found)
    labels = next((texts.labels for texts in found if texts), ()) if with_votes else ()
    cells = {name: of(i) for i, name in enumerate(labels)} | ({"no majority": of(None)} if with_votes else {})
    about = "Share of the texts, and of the images where more than half of the annotators chose it."
    return _table("Emotions", report, found, cells, about)


def _vad(report: Report) -> Table:
    def share(key: str) -> Callable[[Any], str]:
        return lambda t: _share(t.coverage[key]) if t.coverage.get("lexicon_words") else NONE

    def of_words(t: Any) -> str:
        return _share(t.coverage["lexicon_words"] / t.coverage["words"]) if t.coverage.get("words") else NONE

    cells = {
        "words that are in the lexicon": of_words,
        "tokens with a value": lambda t: _share(t.tokens_known / t.tokens) if t.coverage and t.tokens else NONE,
        "lexicon words with their own value": share("own"),
        "token by token: their own value": share("pieces_own"),
        "token by token: another word's": share("pieces_other"),
        "token by token: none": share("pieces_none"),
    }
    found = _texts_of(report)
    about = "What the lexicon knows, and what would be left of it if each token were looked up by itself."
    with_vad = any(texts and texts.coverage for texts in found)
    return _table("Valence, arousal, dominance", report, found, cells if with_vad else {}, about)


def _table(
    title: str, report: Report, splits: Iterable[Any], cells: Mapping[str, Callable[[Any], str]], about: str = ""
) -> Table:
    splits = list(splits)
    rows = [
        Row(name, [Cell(NONE if split is None else cell(split)) for split in splits]) for name, cell in cells.items()
    ]
    return Table(title, about, list(report.splits), rows)


def _texts_of(report: Report) -> list[Any]:
    return [split.texts for split in report.splits.values()]


def as_text(report: Report) -> str:
    """Return tables, omissions and the first problems of each kind, for the terminal."""
    lines = [screen_text(tables(report))]
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


def problem_counts(problems: Iterable[Problem]) -> dict[str, int]:
    """By kind, in the order of KINDS."""
    counts = Counter(problem.kind for problem in problems)
    return {kind: counts[kind] for kind in KINDS if counts[kind]}


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
