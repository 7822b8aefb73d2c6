"""Colors and groups of emotions on pages and in figures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from data.emotions import EMOTIONS, by_valence, number_word, valence

# Distinguishable with normal vision and with simulated deuteranopia, protanopia and tritanopia (minimum CIELAB distance
# about 20), on white and on near-black. Color is never the only cue: every bar has a label.
EMOTION_COLORS: dict[str, str] = {
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
# For further labels: as distinguishable from those and from each other (minimum distance about 18).
FURTHER_COLORS = ("#9600ff", "#870069", "#00e187", "#9669ff", "#a5c3f0", "#5a00b4", "#ff0078")
OTHER = EMOTION_COLORS["something else"]
MIN_GROUP = 3  # labels; a smaller group has no room for its sign


def colors_of(labels: Sequence[str] = EMOTIONS) -> dict[str, str]:
    """Return the color of each label: fixed for EMOTIONS; for others a free one, preferably of the same valence.

    Colors repeat after 15 labels that are not in EMOTIONS.
    """
    free = [name for name in EMOTIONS if name not in labels and EMOTION_COLORS[name] != OTHER]
    further = itertools.cycle(FURTHER_COLORS)
    found = {}
    for label in labels:
        if label in EMOTION_COLORS:
            found[label] = EMOTION_COLORS[label]
            continue
        alike = [name for name in free if valence(name) == valence(label)] or free
        found[label] = EMOTION_COLORS[alike[0]] if alike else next(further)
        free = [name for name in free if name not in alike[:1]]
    return found


def groups_of(labels: Sequence[str] = EMOTIONS) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return groups (sign, labels): by valence, or a single one if a group would be too small for its sign."""
    groups = by_valence(labels)
    if any(sign and len(names) < MIN_GROUP for sign, names in groups):
        return (("", tuple(labels)),)
    return groups


def page_values(labels: Sequence[str] = EMOTIONS) -> dict[str, Any]:
    """Return template variables: `tones`, the colors of `labels`, and `other`, the index of the color for the rest."""
    tones = colors_of(labels)
    if OTHER not in tones.values():
        tones[""] = OTHER
    return {"tones": tones, "emotions": labels, "other": [*tones.values()].index(OTHER), "number": number_word(labels)}
