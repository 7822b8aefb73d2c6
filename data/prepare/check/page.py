"""The page of `python -m data.prepare check`: tables, plots and problems."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from common.html import write_page
from common.html.figures import INK, LINE, SOFT, inline_svg, new_figure
from common.reading import expand_user
from data.emotion_colors import colors_of, page_values
from data.prepare.check.dataset import KINDS, NOTES, Problem, Report, SplitReport
from data.prepare.check.summary import quantile, tables
from data.prepare.check.texts import TextStatistics, most_frequent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 100  # problems of each kind; problems.csv has them all
SIZE = (5.0, 3.0)  # inches of a plot
BLUE, RED = "#4a7fb5", "#c0503a"  # readable on light and dark pages
MOST_TEXTS = 20  # texts per image with a bar of their own
BARS = 60  # of a histogram of lengths
STEPS = 4  # dots per doubling of a side


def write_check_page(report: Report, path: Path) -> None:
    """Raise UserError if the page cannot be written."""
    max_length = report.settings["dataset.max_length"]
    write_page(
        path,
        Path(__file__).with_name("check.html.j2"),
        title="Report of the dataset",
        **page_values(),
        facts={key: str(value) for key, value in report.settings.items() if value is not None},
        splits=report.splits,
        wrong=report.faults,
        omissions=report.omissions,
        problems=[_problems(kind, count, report) for kind, count in report.counts.items()],
        tables=tables(report),
        figures={name: _figures(name, split, max_length) for name, split in report.splits.items()},
        lacking=most_frequent(sum((split.texts.lacking for split in report.splits.values() if split.texts), Counter())),
    )


def _problems(kind: str, count: int, report: Report) -> dict[str, Any]:
    found = [problem for problem in report.problems if problem.kind == kind][:SHOWN]
    rows = [{**problem._asdict(), "path": _short_path(problem, report)} for problem in found]
    return {"kind": kind, "meaning": KINDS[kind], "count": count, "rows": rows, "note": kind in NOTES}


def _short_path(problem: Problem, report: Report) -> str:
    """Return an image's path relative to its folder; "" if the reason contains the path."""
    split, path = report.splits.get(problem.split), Path(problem.path)
    root = expand_user(split.visual_dir).resolve() if split else None
    if root is not None and path.is_relative_to(root):
        return str(path.relative_to(root))
    return "" if problem.path in problem.reason else problem.path


def _figures(name: str, split: SplitReport, max_length: int) -> list[tuple[str, Markup]]:
    """Return captions and plots of the statistics that are not empty."""
    texts, sizes = split.texts or TextStatistics(), split.images.sizes if split.images else []
    plots = (
        ("Emotions: share of the texts; thin, of the images where the emotion has the majority",
         f"Emotions of {name}", _plot_emotions, texts, texts.votes),
        ("Texts per image", f"Texts per image of {name}", _plot_texts_per_image, texts, texts.texts_per_image),
        (f"Tokens of a text; texts longer than {max_length} are cut",
         f"Lengths of the texts of {name} in tokens", partial(_plot_lengths, max_length=max_length),
         texts, texts.lengths),
        ("Width and height in pixels; the area of a dot is the number of images",
         f"Sizes of the images of {name}", _plot_sizes, sizes, sizes),
    )  # fmt: skip
    found = []
    for caption, label, plot, values, present in plots:
        if present:
            figure, axes = new_figure(*SIZE)
            plot(axes, values)
            found.append((caption, inline_svg(figure, label=label)))
    return found


def _plot_emotions(axes: Axes, texts: TextStatistics) -> None:
    places, indices = range(len(texts.labels), 0, -1), range(len(texts.labels))
    shares = [100 * texts.votes[i] / texts.votes.total() for i in indices]
    axes.barh(places, shares, height=0.5, color=[*colors_of(texts.labels).values()])
    if texts.dominant:
        dominant = [100 * texts.dominant[i] / texts.dominant.total() for i in indices]
        axes.barh([y - 0.36 for y in places], dominant, height=0.18, color=SOFT)
    axes.set_yticks(places, labels=texts.labels, color=INK)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.set_xlabel("percent")


def _plot_texts_per_image(axes: Axes, texts: TextStatistics) -> None:
    counts: Counter[int] = Counter()
    for number, images in texts.texts_per_image.items():
        counts[min(number, MOST_TEXTS)] += images
    axes.bar(list(counts), list(counts.values()), width=0.8, color=BLUE)
    axes.set_xlim(min(0.4, min(counts) - 0.6), max(10, *counts) + 0.6)
    ticks = sorted(counts) if len(counts) < 12 else [1, *range(5, MOST_TEXTS + 1, 5)]
    axes.set_xticks(ticks, labels=[f"{n}+" if n == MOST_TEXTS else str(n) for n in ticks])
    _label(axes, "texts", "images")


def _plot_lengths(axes: Axes, texts: TextStatistics, *, max_length: int) -> None:
    last = max(quantile(texts.lengths, 0.999), max_length) + 1  # a single long text would squeeze all others
    width = max(1, math.ceil(last / BARS))
    inside, beyond = Counter(), Counter()
    for length, count in texts.lengths.items():
        (inside if length <= max_length else beyond)[min(length, last) // width * width] += count
    for counts, colour in ((inside, BLUE), (beyond, RED)):
        axes.bar(list(counts), list(counts.values()), width=0.9 * width, align="edge", color=colour)
    axes.axvline(max_length + 1, color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
    axes.set_xlim(0, last + width)
    _label(axes, "tokens", "texts")


def _plot_sizes(axes: Axes, sizes: Sequence[tuple[int, int]]) -> None:
    dots = Counter((round(STEPS * math.log2(w)), round(STEPS * math.log2(h))) for w, h in sizes)
    most = max(dots.values())
    x, y = ([place[axis] / STEPS for place in dots] for axis in (0, 1))
    axes.scatter(x, y, s=[6 + 150 * count / most for count in dots.values()], color=BLUE, alpha=0.75, linewidths=0)
    axes.set_aspect("equal", adjustable="datalim")
    for values, set_ticks in ((x, axes.set_xticks), (y, axes.set_yticks)):
        powers = range(math.floor(min(values)), math.ceil(max(values)) + 1)
        set_ticks(list(powers), labels=[str(2**power) for power in powers])
    axes.grid(axis="both", color=LINE, linewidth=0.8)
    axes.set(xlabel="width", ylabel="height")


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.get_major_locator().set_params(integer=True)
