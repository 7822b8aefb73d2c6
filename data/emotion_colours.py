"""Colours and groups in which emotions are shown, on pages and in figures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from data.emotions import EMOTIONS, by_valence, number_of, valence

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
    """Return the colour of each label: the nine have their own, others get what is free, of their valence first.

    Past all of them, which are fifteen, the colours repeat.
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
    """Return (sign, names) of each group: by valence, or all together where a group is too small for its sign."""
    groups = by_valence(labels)
    if any(sign and len(names) < LEAST_SIGNED for sign, names in groups):
        return (("", tuple(labels)),)
    return groups


def page_values(labels: Sequence[str] = EMOTIONS) -> dict[str, Any]:
    """Return what templates need to colour `labels`: their tones, and `other`, the index of that of anything else."""
    tones = colours_of(labels)
    if OTHER not in tones.values():
        tones[""] = OTHER
    return {"tones": tones, "emotions": labels, "other": [*tones.values()].index(OTHER), "number": number_of(labels)}
