"""HTML pages of one look: a file each, everything inside, nothing loaded from elsewhere; light, dark, phone, print."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from data.emotions import EMOTIONS, by_valence, number_of, valence
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
# As distinguishable from those and from one another (smallest distance about 18), for sets of more labels.
FURTHER_COLOURS = ("#9600ff", "#870069", "#00e187", "#9669ff", "#a5c3f0", "#5a00b4", "#ff0078")
OTHER = EMOTION_COLOURS["something else"]  # of what is none of the labels
LEAST_SIGNED = 3  # labels of a group that has room for its sign beside it


def colours_of(labels: Sequence[str] = EMOTIONS) -> dict[str, str]:
    """The colour of each label: the nine have their own, others what the nine leave free, of their valence first.

    Past all of them, which are fifteen, the colours come again.
    """
    free = [name for name in EMOTIONS if name not in labels and EMOTION_COLOURS[name] != OTHER]
    further = itertools.cycle(FURTHER_COLOURS)
    found = {}
    for label in labels:
        if label in EMOTION_COLOURS:
            found[label] = EMOTION_COLOURS[label]
            continue
        alike = [name for name in free if valence(name) == valence(label)] or free
        found[label] = EMOTION_COLOURS[alike[0]] if alike else next(further)
        free = [name for name in free if name not in alike[:1]]
    return found


def groups_of(labels: Sequence[str] = EMOTIONS) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The labels as they are shown, (sign, names): by valence, or together where a sign would stand beside too few."""
    groups = by_valence(labels)
    if any(sign and len(names) < LEAST_SIGNED for sign, names in groups):
        return (("", tuple(labels)),)
    return groups


def write_page(
    path: Path,
    template: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    skipped: Sequence[tuple[str, str]] = (),
    labels: Sequence[str] = EMOTIONS,
    **values: Any,
) -> None:
    """Render `template` (a file that extends `base.html.j2`) with everything escaped, and write it in one piece.

    Args:
        facts: how the page came about, shown at its end.
        skipped: (path, reason) of images that could not be used, shown before the facts.
        labels: the emotions, each of which has a tone-0, tone-1, …; `other` is the number of the tone of anything else.
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
    colours = [*colours_of(labels).values()]
    if OTHER not in colours:
        colours.append(OTHER)
    values |= {"title": title, "facts": facts, "skipped": skipped}
    values |= {"colours": colours, "emotions": labels, "other": colours.index(OTHER), "number": number_of(labels)}
    page = environment.get_template(template.name).render(values)
    write_text(Path(path), page)


def percent(share: float) -> str:
    """Whole percents; what is there but rounds to nothing is shown as "<1"."""
    rounded = f"{100 * share:.0f}"
    return "<1" if rounded == "0" and share > 0 else rounded
