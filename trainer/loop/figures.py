"""Figures for TensorBoard: an image with emotion bars and caption, and confusion matrices."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from common.html.figures import INK, LINE, SOFT
from data.emotion_colors import colors_of, groups_of
from data.emotions import labels_of
from data.images import ImageError, open_image
from trainer.report.thumbnails import SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (5.4, 3.5)  # inches
DPI = 100
LONGEST_SIDE = 400  # pixels of an image in a figure
WIDTH, LINES = 72, 3  # characters and lines of the text under an image


def prediction_figure(image: Image.Image | Path | str, row: Mapping[str, Any]) -> np.ndarray:
    """Return a figure of an image with its prediction and annotations, legible in TensorBoard's cards; (H, W, 3) uint8.

    Args:
        image: opened, or its path; the place of an unreadable one stays empty.
        row: "explanation", and optionally "emotion" (name), "emotion_distribution" (share of each label), "histogram"
            (the annotators' shares), "references" (texts, of which the first is shown) and "labels", if not the nine.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI, facecolor="white")
    (place,) = figure.add_gridspec(1, 1, left=0.03, right=0.96, bottom=0, top=0.94)
    _draw(figure, place, _open(image), row)
    return _pixels(figure)


def confusion_figure(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> np.ndarray:
    """Return a figure of the confusion matrix, colored by shares of a row; (H, W, 3) uint8.

    Args:
        confusion: (C, C) counts, row = annotators' label, column = prediction.
    """
    from matplotlib.figure import Figure

    counts = np.asarray(confusion, dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.4 + 0.42 * len(labels)
    figure = Figure(figsize=(side, side), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if shares[row, column] > 0.6 else INK
        axes.text(column, row, f"{int(counts[row, column])}", ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(labels)), labels=labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels=labels)
    axes.set(xlabel="predicted", ylabel="annotators")
    axes.tick_params(labelsize=8, length=0, colors=SOFT)
    axes.spines[:].set_visible(False)
    return _pixels(figure)


def _pixels(figure: Figure) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # shown as boxes
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw(figure: Figure, place: Any, picture: Image.Image | None, row: Mapping[str, Any]) -> None:
    model, people = row.get("emotion_distribution"), row.get("histogram")
    bars = model is not None or people is not None
    widths = (1.1, 0.82) if bars else (1,)
    grid = place.subgridspec(2, len(widths), width_ratios=widths, height_ratios=(2.5, 1), hspace=0.1, wspace=0.45)
    _picture(figure.add_subplot(grid[0, 0]), picture)
    if bars:
        _bars(figure.add_subplot(grid[0, 1]), model, people, labels_of(row))
    _text(figure.add_subplot(grid[1, :]), row)


def _picture(axes: Axes, picture: Image.Image | None) -> None:
    axes.set_axis_off()
    axes.set_anchor("W")
    if picture is None:
        axes.text(0.5, 0.5, "no picture", ha="center", va="center", color=SOFT, fontsize=9)
    else:
        axes.imshow(np.asarray(picture), interpolation="nearest" if max(picture.size) <= SMALL else "antialiased")


def _bars(axes: Axes, model: Sequence[float] | None, people: Sequence[float] | None, labels: Sequence[str]) -> None:
    """Draw the bars, with gaps between positive, negative and other emotions; the thin bars are the annotators'."""
    shown = [(group, name) for group, (_, names) in enumerate(groups_of(labels)) for name in names]
    order = [labels.index(name) for _, name in shown]
    places = [-(i + 0.45 * group) for i, (group, _) in enumerate(shown)]
    model, people = (values and [values[i] for i in order] for values in (model, people))
    if model is not None:
        colors = colors_of(labels)
        axes.barh(places, model, height=0.5, color=[colors[name] for _, name in shown])
    if people is not None:
        axes.barh([y - 0.36 for y in places], people, height=0.18, color=SOFT)
    axes.set_xlim(0, 1)
    axes.set_ylim(places[-1] - 0.7, 0.6)
    axes.set_yticks(places, labels=[name for _, name in shown])
    axes.set_xticks([0, 0.5, 1], labels=["0", "50", "100"])
    axes.tick_params(labelsize=7.5, length=0, pad=2, colors=SOFT)
    axes.set_title("percent; thin: annotators" if people is not None else "percent", fontsize=7, color=SOFT, pad=2)
    best = int(np.argmax(model if model is not None else people))
    axes.get_yticklabels()[best].set(color=INK, fontweight="bold")
    axes.spines[:].set_visible(False)
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)


def _text(axes: Axes, row: Mapping[str, Any]) -> None:
    axes.set_axis_off()
    emotion, reason = row.get("emotion"), row.get("explanation", "")
    text = ": ".join(filter(None, [emotion, None if reason is None else reason or "(no words)"]))
    place = {"transform": axes.transAxes, "va": "top", "parse_math": False, "linespacing": 1.3}
    axes.text(0, 0.98, _wrap(text), color=INK, fontsize=9, **place)
    if references := row.get("references"):
        axes.text(0, 0.4, _wrap(f"annotator: {references[0]}", lines=2), color=SOFT, fontsize=8.5, **place)


def _wrap(text: str, *, lines: int = LINES) -> str:
    return "\n".join(textwrap.wrap(text, WIDTH, max_lines=lines, placeholder=" …"))


def _open(image: Image.Image | Path | str) -> Image.Image | None:
    try:
        picture = image.copy() if isinstance(image, Image.Image) else open_image(Path(image), about=2 * LONGEST_SIDE)
    except ImageError:
        return None
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return picture
