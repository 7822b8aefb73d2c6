"""Figures of the test report that are no tables: calibration, and VAD against people's."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from common.html.figures import INK, LINE, SOFT, inline_svg, new_figure

BLUE = "#4a7fb5"  # to be seen on white and on near-black
MOST_POINTS = 800  # of a scatter plot: some 80 kB of page
DIMENSIONS = ("valence", "arousal", "dominance")


def reliability_diagram(bins: Sequence[Mapping[str, Any]], *, title: str = "") -> Markup | None:
    """People's share of the likeliest emotion (up) against its probability (right); None where no image counts.

    Args:
        bins: as in metrics.json, emotion.reliability_answers.
    """
    bins = [one for one in bins if one["count"]]
    if not bins:
        return None
    figure, axes = new_figure(3.6, 3.5)
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    confidence, accuracy, count = (np.array([one[key] for one in bins]) for key in ("confidence", "accuracy", "count"))
    axes.vlines(confidence, confidence, accuracy, color=BLUE, linewidth=1.2, alpha=0.5)
    axes.scatter(confidence, accuracy, s=12 + 260 * count / count.max(), color=BLUE, alpha=0.75, linewidths=0)
    _percents(axes.xaxis, axes.set_xlim)
    _percents(axes.yaxis, axes.set_ylim)
    axes.set_xlabel("probability of the likeliest emotion, percent")
    axes.set_ylabel("people who feel it, percent")
    axes.set_title(title, color=INK, fontsize=10)
    return inline_svg(figure, label=f"reliability diagram of the emotions {title}".rstrip())


def reliability_diagrams(emotion: Mapping[str, Any]) -> list[Markup]:
    """Of metrics.json, emotion: before and after calibration, or one where the temperature is 1."""
    bins = {"": emotion.get("reliability_answers") or ()}
    if emotion.get("temperature", 1) != 1:
        bins = {"before calibration": emotion.get("reliability_answers_uncalibrated") or (), "after": bins[""]}
    diagrams = [reliability_diagram(found, title=title) for title, found in bins.items()]
    return [diagram for diagram in diagrams if diagram is not None]


def vad_scatter(rows: Sequence[Mapping[str, Any]], dimension: str, *, seed: int = 0) -> Markup | None:
    """Mean `dimension` of the words that people wrote (right) and of the model's (up), a point for each image.

    Args:
        rows: as in per_image.jsonl: `dimension` and people_`dimension`, None where no word is known.
        seed: draws MOST_POINTS of more images.

    Returns None where no image has both.
    """
    pairs = [(row.get(f"people_{dimension}"), row.get(dimension)) for row in rows]
    points = [pair for pair in pairs if None not in pair]
    if not points:
        return None
    if len(points) > MOST_POINTS:
        points = random.Random(seed).sample(points, MOST_POINTS)
    people, model = np.array(points).T
    low, high = min(people.min(), model.min()), max(people.max(), model.max())
    margin = max(0.06 * (high - low), 0.02)
    edges = (low - margin, high + margin)
    figure, axes = new_figure(3.6, 3.5)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.plot(edges, edges, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    axes.scatter(people, model, s=11, color=BLUE, alpha=0.45, linewidths=0)
    axes.set(xlim=edges, ylim=edges, aspect="equal")
    axes.locator_params(nbins=5)
    axes.set_title(dimension, color=INK, fontsize=10)
    axes.set_xlabel("people's words")
    axes.set_ylabel("the model's words")
    return inline_svg(figure, label=f"scatter plot of {dimension}")


def _percents(axis, set_limits) -> None:
    axis.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "25", "50", "75", "100"])
    set_limits(-0.03, 1.03)
