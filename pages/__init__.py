"""HTML pages of one look: a file each, everything inside, nothing loaded from elsewhere; light, dark, phone, print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from data.emotions import EMOTIONS
from files import write_text

# Mutually distinguishable with normal sight and with simulated deuteranopia, protanopia and tritanopia (smallest
# CIELAB distance about 20), on white and on near-black. Colour never stands alone: every bar carries its name.
EMOTION_COLOURS: dict[str, str] = {
    "amusement": "#dfa824",
    "awe": "#5d9ff0",
    "contentment": "#1f7d63",
    "excitement": "#f1744f",
    "anger": "#a8133a",
    "disgust": "#7f5500",
    "fear": "#bf5da7",
    "sadness": "#3f4cad",
    "something else": "#a9a9a5",
}
EMOTION_GROUPS = (("positive", EMOTIONS[:4]), ("negative", EMOTIONS[4:8]), ("", EMOTIONS[8:]))


def write_page(
    path: Path,
    template: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    skipped: Sequence[tuple[str, str]] = (),
    **values: Any,
) -> None:
    """Render `template` (a file that extends `base.html.j2`) with everything escaped, and write it in one piece.

    Args:
        facts: how the page came about, shown at its end.
        skipped: (path, reason) of images that could not be used, shown before the facts.
        values: what the template asks for; a name that it does not get is an error.

    Raises:
        UserError: the page cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent / "templates"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    values |= {"title": title, "facts": facts, "skipped": skipped, "colours": EMOTION_COLOURS, "emotions": EMOTIONS}
    page = environment.get_template(template.name).render(values)
    write_text(Path(path), page)


def percent(share: float) -> str:
    """Whole percents; what is there but rounds to nothing is shown as "<1"."""
    rounded = f"{100 * share:.0f}"
    return "<1" if rounded == "0" and share > 0 else rounded
