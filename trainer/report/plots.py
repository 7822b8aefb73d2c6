"""Plots of the test report: calibration, and VAD of the model's words against the annotators'."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from common.html.figures import INK, LINE, SOFT, inline_svg, new_figure

BLUE = "#4a7fb5"  # readable on white and on near-black
MOST_POINTS = 800  # of a scatter plot: about 80 kB of page
DIMENSIONS = ("valence", "arousal", "dominance")
WORDS = ("annotators' words", "the model's words")


def reliability_diagram(bins: Sequence[Mapping[str, Any]], title: str = "") -> Markup | None:
    """Return the annotators' share of the likeliest emotion (y) against its probability (x); None without images.

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
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "25", "50", "75", "100"])
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.set(xlabel="probability of the likeliest emotion, percent", ylabel="annotators who chose it, percent")
    axes.set_title(title, color=INK, fontsize=10)
    return inline_svg(figure, label=f"reliability diagram of the emotions {title}".rstrip())


def reliability_diagrams(emotion: Mapping[str, Any]) -> list[Markup]:
    """Return diagrams before and after calibration, or one if the temperature is 1; emotion: of metrics.json."""
    bins = {"": "reliability_answers"}
    if emotion.get("temperature", 1) != 1:
        bins = {"before calibration": "reliability_answers_uncalibrated", "after": "reliability_answers"}
    diagrams = (reliability_diagram(emotion.get(key) or (), title) for title, key in bins.items())
    return [diagram for diagram in diagrams if diagram is not None]


def vad_scatter(
    rows: Sequence[Mapping[str, Any]], dimension: str, *, seed: int = 0, words: tuple[str, str] = WORDS
) -> Markup | None:
    """Return a scatter plot of mean `dimension` of the annotators' words (x) and the model's (y), a point per image.

    Args:
        words: what x and y are.
        rows: as in per_image.jsonl: `dimension` and people_`dimension`, None if no word is in the lexicon.
        seed: selects MOST_POINTS if there are more images.

    Returns None if no image has both.
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
    axes.set(xlim=edges, ylim=edges, aspect="equal", xlabel=words[0], ylabel=words[1])
    axes.locator_params(nbins=5)
    axes.set_title(dimension, color=INK, fontsize=10)
    return inline_svg(figure, label=f"scatter plot of {dimension}{'' if words == WORDS else f', {words[1]}'}")
