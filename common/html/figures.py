"""matplotlib figures as a part of a page: they take its colours and its type, in light, dark and print."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What a figure is drawn with, and the page's variable that takes its place.
INK, SOFT, LINE = "#23211e", "#67625b", "#e2ded6"
VARIABLES = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)"}


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of `width` x `height` inches without frame, its horizontal grid behind what is drawn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=SOFT, labelsize=9)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.label.set(color=SOFT, size=9)
    axes.yaxis.label.set(color=SOFT, size=9)
    return figure, axes


def inline_svg(figure: Figure, *, label: str) -> Markup:
    """The figure as an <svg> element; `label` says what it shows, to those who cannot see it, and makes its ids."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):  # the salt: the same figure, the same text
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(text.getvalue())
    used = set(re.findall(r"(?<=#)[\w.-]+", " ".join(_references(root))))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # HTML knows SVG's names without their namespace
        element.attrib = {key.rpartition("}")[2]: _themed(value) for key, value in element.attrib.items()}
        if element.get("id") not in used:  # figure_1, axes_1, …: the same in every figure
            element.attrib.pop("id", None)
    root.attrib |= {"role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _references(root: ElementTree.Element) -> list[str]:
    values = (element.items() for element in root.iter())
    return [value for items in values for key, value in items if key.endswith("href") or value.startswith("url(#")]


def _themed(value: str) -> str:
    value = re.sub(r"font-family: [^;]*(; )?", "", value)
    for colour, variable in VARIABLES.items():
        value = value.replace(colour, variable)
    return value
