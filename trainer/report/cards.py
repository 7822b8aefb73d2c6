"""What the pages show of one picture: its card, and the maps of what its words looked at."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.emotion_colours import groups_of
from data.emotions import EMOTIONS, labels_of
from trainer.metrics.emotions import dominant_label
from trainer.report.attention import Looked, View
from trainer.report.plots import DIMENSIONS
from trainer.report.thumbnails import thumbnail

HEAT = ((150, 20, 20, 0), (255, 196, 40, 225))  # red, green, blue, opacity: where nothing and where most is looked at
EVEN = 3.0  # times the even share: what a patch needs to be as bright as can be
SHOWN_REFERENCES = 5  # the others of a card are folded away
SOURCES = {"language_model": "language model", "student": "expert"}  # of the model's distribution, as they are called

Row = Mapping[str, Any]


def _card(row: Row, name: str, people: Sequence[float] | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "picture": thumbnail(Path(row["image"])),
        "emotion": row.get("emotion"),
        "said": row.get("emotion_text"),
        "groups": _bars(row.get("emotion_distribution"), people, _sources(row), labels=labels_of(row)),
        "people": people is not None,
        "sources": _said(row, people),
        "reason": row.get("explanation"),
    }


def predicted_card(row: Row, name: str) -> dict[str, Any]:
    """A card with what only predictions have; the first of its reasons is its own."""
    return {
        **_card(row, name),
        "asked": bool(row.get("asked_emotion")),
        "vad": _vad(row.get("vad")),
        "others": [{**reason, "vad": _vad(reason.get("vad"))} for reason in row.get("reasons", ())[1:]],
    }


def _vad(values: Sequence[float] | None) -> list[dict[str, Any]]:
    """Each dimension with its place on a line from −1 to 1, in percent of the line."""
    if values is None:
        return []
    found = []
    for name, value in zip(DIMENSIONS, values, strict=True):
        start, end = sorted((50.0, 50.0 + 50.0 * value))
        number = f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")
        found.append({"name": name, "number": number, "start": start, "width": end - start})
    return found


def example_card(row: Row, name: str, rule: str | None) -> dict[str, Any]:
    """A card with the annotators beside the model."""
    people = row.get("histogram") if rule else None
    label = dominant_label(people, rule, labels=labels_of(row)) if rule else None
    texts, emotions = list(row.get("references") or ()), list(row.get("reference_emotions") or ())
    pairs = [(emotions[i] if i < len(emotions) else None, text) for i, text in enumerate(texts)]
    return {
        **_card(row, name, people),
        "id": str(row.get("id") or ""),
        "label": None if label is None else labels_of(row)[label],
        "references": pairs[:SHOWN_REFERENCES],
        "more": pairs[SHOWN_REFERENCES:],
    }


def _sources(row: Row) -> dict[str, Sequence[float]]:
    """What stands beside the model's distribution: language model and expert, or the expert alone without a gate."""
    sources = row.get("sources") or {}
    return {key: sources[key] for key in SOURCES if key in sources and (row.get("gate") or key != "language_model")}


def _said(row: Row, people: Sequence[float] | None) -> dict[str, Any] | None:
    """The likeliest emotion of each, and the language model's weight; None where there are no sources."""
    sources, gate = _sources(row), row.get("gate")
    if not sources or not row.get("emotion_distribution"):
        return None
    whole = ("fused", "fused") if gate else ("fused", SOURCES["language_model"])
    every = [(*whole, row["emotion_distribution"]), *((key, SOURCES[key], shares) for key, shares in sources.items())]
    every += [] if people is None else [("people", "annotators", people)]
    best = [
        {"key": key, "name": name, "emotion": labels_of(row)[int(np.argmax(shares))], "share": max(shares)}
        for key, name, shares in every
    ]
    return {"best": best, "weight": (gate or {}).get("weight")}


def _bars(
    model: Sequence[float] | None,
    people: Sequence[float] | None = None,
    sources: Mapping[str, Sequence[float]] | None = None,
    *,
    labels: Sequence[str] = EMOTIONS,
) -> list[dict[str, Any]]:
    """Bars by group; empty where neither the model nor the annotators say anything."""
    if model is None and people is None:
        return []
    best = max(range(len(labels)), key=lambda i: (model if model is not None else people)[i])

    def bar(i: int) -> dict[str, Any]:
        shares = {"model": None if model is None else model[i], "people": None if people is None else people[i]}
        shares["sources"] = {key: distribution[i] for key, distribution in (sources or {}).items()}
        return {"name": labels[i], "best": i == best, **shares}

    return [{"sign": sign, "bars": [bar(labels.index(name)) for name in names]} for sign, names in groups_of(labels)]


def looked_at_card(looked: Looked, name: str, index: int) -> dict[str, Any]:
    """A picture, and heat over the part of it that the network sees."""
    left, top, width, height = looked.box
    return {
        "id": f"picture-{index}",
        "name": name,
        "picture": thumbnail(Path(looked.row["image"])),
        "cropped": is_cropped(looked),
        "box": {"x": left, "y": top, "width": width, "height": height},
        "emotion": looked.row.get("emotion"),
        "reason": looked.row.get("explanation") or "",
        "views": [_view(view) for view in looked.views],
    }


def is_cropped(looked: Looked) -> bool:
    return min(looked.box[2:]) < 0.99


def _view(view: View) -> dict[str, Any]:
    """Each map by itself: its strongest patch is the brightest, save where all have much the same."""
    strength = view.grid / max(view.grid.max(), EVEN / view.grid.size)
    pixels = np.zeros((*strength.shape, 4), dtype=np.uint8)
    for channel, (low, high) in enumerate(zip(*HEAT, strict=True)):
        pixels[..., channel] = np.rint(low + (high - low) * strength)
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, "PNG")
    return {
        "word": view.word,
        "uri": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        "peak": float(view.grid.max() * view.grid.size),
        "share": view.share,
    }


def display_names(rows: Iterable[Row]) -> list[str]:
    """Paths below the folder that all pictures share: short, and silent about the rest of the disk."""
    paths = [Path(row["image"]) for row in rows]
    try:
        root = Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:  # no pictures, or pictures on several drives
        return [path.name for path in paths]
    return [path.relative_to(root).as_posix() for path in paths]
