"""What each demo picture shows, and the phrases that name it: the truth that explanations are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data.demo.paint import Box
from data.demo.scenes import Scene
from data.demo.sentences import COLORS, NOUNS, PLACES, STROKES, WHERE

PHRASES: dict[str, Mapping[str, Sequence[str]]] = {
    "subject": {name: list(dict.fromkeys(one + many)) for name, (one, many) in NOUNS.items()},
    "palette": COLORS,
    "composition": WHERE,
    "brushwork": STROKES,
    "place": PLACES,
}


def facts_of(scene: Scene, boxes: Sequence[Box]) -> dict[str, Any]:
    """Return the value of each kind of PHRASES in `scene`, and the boxes of its subjects."""
    return {
        "subject": scene.subject,
        "palette": scene.palette,
        "composition": scene.composition,
        "brushwork": scene.brush,
        "place": scene.place,
        "boxes": [*boxes],
    }
