"""Cards of the report pages: one image with its prediction, and maps of the attention to it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.html.tables import percent
from data.emotion_colors import groups_of
from data.emotions import labels_of
from trainer.metrics.emotions import dominant_label
from trainer.metrics.sources import combined_in
from trainer.report.attention import AttentionExample, Box, View
from trainer.report.plots import DIMENSIONS
from trainer.report.thumbnails import data_uri, thumbnail

HEAT = ((150, 20, 20, 0), (255, 196, 40, 225))  # red, green, blue, opacity of the least and the most attention
EVEN = 3.0  # times the even share at which a patch has full brightness, at least
SHOWN_REFERENCES = 5  # the others are collapsed
NAMES = {"language_model": "language model", "student": "expert"}  # of sources on the page; others keep theirs

Row = Mapping[str, Any]


def _card(row: Row, name: str, people: Sequence[float] | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "picture": thumbnail(Path(row["image"])),
        "emotion": row.get("emotion"),
        "emotion_text": row.get("emotion_text"),
        "groups": _bars(row, people),
        "people": people is not None,
        "sources": _legend(row, people),
        "reason": row.get("explanation"),
    }


def predicted_card(row: Row, name: str) -> dict[str, Any]:
    """Return the card of a prediction; the first of its reasons is the main one."""
    return {
        **_card(row, name),
        "chosen": bool(row.get("asked_emotion")),
        "unfamiliar": bool(row.get("unfamiliar")),
        "vad": _vad(row.get("vad")),
        "point": row.get("vad"),
        "others": [{**reason, "vad": _vad(reason.get("vad"))} for reason in row.get("reasons", ())[1:]],
    }


def _vad(values: Sequence[float] | None) -> list[dict[str, Any]]:
    """Return each dimension with its bar on a line from −1 to 1, in percent of the line."""
    found = []
    for name, value in zip(DIMENSIONS, values or (), strict=False):
        number = f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")
        found.append({"name": name, "number": number, "start": 50 + min(50 * value, 0), "width": abs(50 * value)})
    return found


def example_card(row: Row, name: str, rule: str | None) -> dict[str, Any]:
    """Return the card of a tested image, with the annotations beside the prediction."""
    people = row.get("histogram") if rule else None
    label = dominant_label(people, rule, labels=labels_of(row)) if rule else None
    texts, emotions = list(row.get("references") or ()), list(row.get("reference_emotions") or ())
    pairs = [(emotions[i] if i < len(emotions) else None, text) for i, text in enumerate(texts)]
    return {
        **_card(row, name, people),
        "id": str(row.get("id") or ""),
        "label": None if label is None else labels_of(row)[label],
        "point": row.get("vad"),
        "rated": rated_vad(row),
        "references": pairs[:SHOWN_REFERENCES],
        "more": pairs[SHOWN_REFERENCES:],
    }


def rated_vad(row: Row) -> list[float | None] | None:
    """Return people's ratings in −1..1, None for a dimension without; None for a picture that nobody rated."""
    if not row.get("ratings"):
        return None
    *values, low, high = row["ratings"]
    return [None if value is None else 2 * (value - low) / (high - low) - 1 for value in values]


def _sources(row: Row) -> dict[str, Sequence[float]]:
    """Return the distributions shown beside the fused one: those it combines; without a gate the student's."""
    names = combined_in([row]) if row.get("gate") else ("student",)
    return {name: row["sources"][name] for name in names if name in (row.get("sources") or {})}


def _legend(row: Row, people: Sequence[float] | None) -> dict[str, Any] | None:
    """Return the likeliest emotion and the weight of each source; None without sources."""
    sources, gate = _sources(row), row.get("gate") or {}
    if not sources or not row.get("emotion_distribution"):
        return None
    every = {"fused": row["emotion_distribution"], **sources} | ({} if people is None else {"people": people})
    names = {"fused": "fused" if gate else NAMES["language_model"], "people": "annotators", **NAMES}
    best = [
        {
            "kind": key if key in names else "other",
            "nth": [*every].index(key) - 1,
            "name": names.get(key, key),
            "emotion": labels_of(row)[int(np.argmax(shares))],
            "share": max(shares),
        }
        for key, shares in every.items()
    ]
    weights = [(NAMES.get(name, name), weight) for name, weight in (gate.get("weights") or {}).items()]
    return {"best": best, "weights": weights, "more": max(0, len(sources) - len(NAMES))}


def _bars(row: Row, people: Sequence[float] | None) -> list[dict[str, Any]]:
    """Return the bars by group; empty without a distribution of the model or the annotators."""
    model, sources, labels = row.get("emotion_distribution"), _sources(row), labels_of(row)
    ranking = people if model is None else model
    if ranking is None:
        return []
    best = max(range(len(labels)), key=ranking.__getitem__)

    def bar(i: int) -> dict[str, Any]:
        shares = {"model": None if model is None else model[i], "people": None if people is None else people[i]}
        shares["sources"] = [
            {"kind": key if key in NAMES else "other", "nth": nth, "share": distribution[i]}
            for nth, (key, distribution) in enumerate(sources.items())
        ]
        return {"name": labels[i], "best": i == best, **shares}

    return [{"sign": sign, "bars": [bar(labels.index(name)) for name in names]} for sign, names in groups_of(labels)]


def attention_card(example: AttentionExample, name: str, index: int) -> dict[str, Any]:
    """Return an image with heat maps over the part of it that the network sees."""
    return {
        "id": f"picture-{index}",
        "name": name,
        "picture": thumbnail(Path(example.row["image"])),
        "cropped": is_cropped(example),
        "box": _box(example.box),
        "emotion": example.row.get("emotion"),
        "reason": example.row.get("explanation") or "",
        "views": [_view(view) for view in example.views],
    }


def is_cropped(example: AttentionExample) -> bool:
    return min(example.box[2:]) < 0.99


def _box(box: Box) -> dict[str, float]:
    return dict(zip(("x", "y", "width", "height"), box, strict=True))


def _view(view: View) -> dict[str, Any]:
    """Return a map as an image; VLE's probabilities are not scaled."""
    even = view.grid.max() * view.grid.size
    return {
        "word": view.word,
        "uri": heat_map(view.grid, scaled=view.box is None),
        "box": view.box and _box(view.box),
        "peak": f"{even:.1f} times the even share" if view.box is None else f"at most {percent(view.grid.max())}",
    }


def heat_map(grid: np.ndarray, *, scaled: bool = True) -> str:
    """Return a map (rows, columns) as the data URI of a translucent PNG with a pixel per part.

    Args:
        scaled: to its strongest part, or to EVEN if it is nearly even; otherwise from 0 to 1.
    """
    strength = grid / max(grid.max(), EVEN / grid.size) if scaled else grid
    pixels = np.zeros((*strength.shape, 4), dtype=np.uint8)
    for channel, (low, high) in enumerate(zip(*HEAT, strict=True)):
        pixels[..., channel] = np.rint(low + (high - low) * strength)
    return data_uri(Image.fromarray(pixels, "RGBA"), "PNG")


def display_names(rows: Iterable[Row]) -> list[str]:
    """Return paths relative to the common folder: short, and without the folders above it."""
    paths = [Path(row["image"]) for row in rows]
    try:
        root = Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:  # no images, or images on several drives
        return [path.name for path in paths]
    return [path.relative_to(root).as_posix() for path in paths]
