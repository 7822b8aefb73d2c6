"""The page of `python -m data.prepare check`: tables, plots and every kind of problem."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from common.html import write_page
from common.html.figures import INK, LINE, SOFT, inline_svg, new_figure
from common.reading import expanded
from data.emotion_colours import colours_of, page_values
from data.prepare.check.dataset import KINDS, NOTES, Problem, Report, SplitReport
from data.prepare.check.images import ImageStatistics
from data.prepare.check.summary import problem_counts, quantile, tables
from data.prepare.check.texts import TextStatistics, most_frequent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 100  # problems of a kind; problems.csv has them all
SIZE = (5.0, 3.0)  # inches of a plot
BLUE, RED = "#4a7fb5", "#c0503a"  # readable on both papers
MOST_TEXTS = 20  # texts per image with a bar of their own
BARS = 60  # of a histogram of lengths
STEPS = 4  # bubbles per doubling of a side


def write_check_page(report: Report, path: Path) -> None:
    """Raises UserError: the page cannot be written."""
    counts = problem_counts(report.problems)
    write_page(
        path,
        Path(__file__).with_name("check.html.j2"),
        title="Report of the dataset",
        **page_values(),
        facts={key: str(value) for key, value in report.settings.items() if value is not None},
        splits=list(report.splits),
        files=report.splits,
        wrong=sum(count for kind, count in counts.items() if kind not in NOTES),
        omissions=report.omissions,
        problems=[_kind(kind, count, report) for kind, count in counts.items()],
        tables=tables(report),
        figures={
            name: figures(name, split, report.settings["dataset.max_length"]) for name, split in report.splits.items()
        },
        lacking=most_frequent(sum((split.texts.lacking for split in report.splits.values() if split.texts), Counter())),
    )


def _kind(kind: str, count: int, report: Report) -> dict[str, Any]:
    found = [problem for problem in report.problems if problem.kind == kind][:SHOWN]
    rows = [{**problem._asdict(), "path": _short(problem, report)} for problem in found]
    return {"kind": kind, "meaning": KINDS[kind], "count": count, "rows": rows, "note": kind in NOTES}


def _short(problem: Problem, report: Report) -> str:
    """An image's path below its folder; "" where the reason says it anyway."""
    split = report.splits.get(problem.split)
    root = expanded(split.visual_dir).resolve() if split else None
    path = Path(problem.path)
    if root is not None and path.is_relative_to(root):
        return str(path.relative_to(root))
    return "" if problem.path in problem.reason else problem.path


# --- plots -----------------------------------------------------------------------------------------------------------


def figures(name: str, split: SplitReport, max_length: int) -> list[tuple[str, Markup]]:
    """Caption and plot, as far as there is something to plot."""
    found: list[tuple[str, Markup | None]] = []
    if split.texts is not None:
        found += [
            (
                "Emotions: share of the texts; thin, of the images where the emotion has the majority",
                _emotions(name, split.texts),
            ),
            ("Texts per image", _texts_per_image(name, split.texts)),
            (
                f"Tokens of a text; what is longer than {max_length} loses its end",
                _lengths(name, split.texts, max_length),
            ),
        ]
    if split.images is not None:
        found.append(
            ("Width and height in pixels; the area of a dot is the number of images", _sizes(name, split.images))
        )
    return [(caption, figure) for caption, figure in found if figure is not None]


def _emotions(name: str, texts: TextStatistics) -> Markup | None:
    if not texts.votes:
        return None
    figure, axes = new_figure(*SIZE)
    places, colours = range(len(texts.labels), 0, -1), colours_of(texts.labels)
    shares = [100 * texts.votes[i] / texts.votes.total() for i in range(len(texts.labels))]
    axes.barh(places, shares, height=0.5, color=[*colours.values()])
    if texts.dominant:
        dominant = [100 * texts.dominant[i] / texts.dominant.total() for i in range(len(texts.labels))]
        axes.barh([y - 0.36 for y in places], dominant, height=0.18, color=SOFT)
    axes.set_yticks(places, labels=texts.labels, color=INK)
    _horizontal(axes, "percent")
    return inline_svg(figure, label=f"Emotions of {name}")


def _texts_per_image(name: str, texts: TextStatistics) -> Markup | None:
    if not texts.texts_per_image:
        return None
    figure, axes = new_figure(*SIZE)
    counts: Counter[int] = Counter()
    for number, images in texts.texts_per_image.items():
        counts[min(number, MOST_TEXTS)] += images
    axes.bar(list(counts), list(counts.values()), width=0.8, color=BLUE)
    axes.set_xlim(min(0.4, min(counts) - 0.6), max(10, *counts) + 0.6)
    ticks = sorted(counts) if len(counts) < 12 else [1, *range(5, MOST_TEXTS + 1, 5)]
    axes.set_xticks(ticks, labels=[f"{n}+" if n == MOST_TEXTS else str(n) for n in ticks])
    _counts(axes, "texts", "images")
    return inline_svg(figure, label=f"Texts per image of {name}")


def _lengths(name: str, texts: TextStatistics, max_length: int) -> Markup | None:
    if not texts.lengths:
        return None
    figure, axes = new_figure(*SIZE)
    last = max(quantile(texts.lengths, 0.999), max_length) + 1  # a single long text would squeeze all others
    width = max(1, math.ceil(last / BARS))
    inside, beyond = Counter(), Counter()
    for length, count in texts.lengths.items():
        (inside if length <= max_length else beyond)[min(length, last) // width * width] += count
    for counts, colour in ((inside, BLUE), (beyond, RED)):
        axes.bar(list(counts), list(counts.values()), width=0.9 * width, align="edge", color=colour)
    axes.axvline(max_length + 1, color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
    axes.set_xlim(0, last + width)
    _counts(axes, "tokens", "texts")
    return inline_svg(figure, label=f"Lengths of the texts of {name} in tokens")


def _sizes(name: str, images: ImageStatistics) -> Markup | None:
    if not images.widths:
        return None
    figure, axes = new_figure(*SIZE)
    pairs = zip(images.widths, images.heights, strict=True)
    bubbles = Counter((round(STEPS * math.log2(w)), round(STEPS * math.log2(h))) for w, h in pairs)
    most = max(bubbles.values())
    x, y = ([place[axis] / STEPS for place in bubbles] for axis in (0, 1))
    axes.scatter(x, y, s=[6 + 150 * count / most for count in bubbles.values()], color=BLUE, alpha=0.75, linewidths=0)
    axes.set_aspect("equal", adjustable="datalim")
    for values, set_ticks in ((x, axes.set_xticks), (y, axes.set_yticks)):
        powers = range(math.floor(min(values)), math.ceil(max(values)) + 1)
        set_ticks(list(powers), labels=[str(2**power) for power in powers])
    axes.grid(axis="both", color=LINE, linewidth=0.8)
    axes.set_xlabel("width")
    axes.set_ylabel("height")
    return inline_svg(figure, label=f"Sizes of the images of {name}")


def _horizontal(axes: Axes, label: str) -> None:
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.set_xlabel(label)


def _counts(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.get_major_locator().set_params(integer=True)
