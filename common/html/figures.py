"""matplotlib figures as inline SVG in the page's colors and font, for light, dark and print."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colors of a figure, and the CSS variables of the page that replace them.
INK, SOFT, LINE = "#23211e", "#67625b", "#e2ded6"
VARIABLES = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)"}


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of `width` x `height` inches, without frame, with horizontal grid lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=SOFT, labelsize=9)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=SOFT, size=9)
    return figure, axes


def inline_svg(figure: Figure, *, label: str) -> Markup:
    """Return the figure as an <svg> element.

    Args:
        label: alternative text; also the seed of the ids, so it must be unique on a page.
    """
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):  # the salt makes the output reproducible
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=metadata)
    root = ElementTree.fromstring(text.getvalue())
    values = [(key, value) for element in root.iter() for key, value in element.items()]
    links = " ".join(value for key, value in values if key.endswith("href") or value.startswith("url(#"))
    used = set(re.findall(r"(?<=#)[\w.-]+", links))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # HTML has SVG's names without a namespace
        element.attrib = {key.rpartition("}")[2]: _themed(value) for key, value in element.attrib.items()}
        if element.get("id") not in used:  # figure_1, axes_1, …: the same in every figure
            element.attrib.pop("id", None)
    root.attrib |= {"role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _themed(value: str) -> str:
    value = re.sub(r"font-family: [^;]*(; )?", "", value)
    return re.sub("|".join(VARIABLES), lambda match: VARIABLES[match[0]], value)
