"""HTML pages of results: one file each, pictures inside, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import io
import os
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image, ImageOps

from data.emotions import EMOTIONS, INDEX
from errors import UserError
from files import write_text
from trainer.metrics.emotions import dominant_label
from trainer.metrics.table import RULE_WORDS, caption_rows, emotion_rows

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

THUMBNAIL = 320  # longest side, pixels
SMALL = 160  # up to this side a picture is enlarged in whole pixels instead of being smoothed
GALLERY_LIMIT = 500  # cards: about 15 MB of page
EXAMPLES = {"right": 9, "wrong": 9, "unlabelled": 6}
PLAIN_EXAMPLES = 24  # cards where the data has no emotions
SHOWN_REFERENCES = 5  # the others of a card are folded away

Row = Mapping[str, Any]


def write_predictions_page(
    rows: Sequence[Row],
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    skipped: Sequence[tuple[str, str]] = (),
) -> None:
    """Gallery of predictions: picture, emotion, nine bars and reason of each.

    Args:
        rows: "image" (absolute path), "emotion" (name or None), "emotion_distribution" (nine floats or None),
            "explanation", optionally "asked_emotion" (True: the emotion was the user's choice).
        facts: settings, checkpoint and versions, shown at the end.
        skipped: (path, reason) of images that could not be used.

    Raises:
        UserError: the page cannot be written.
    """
    shown = rows[:GALLERY_LIMIT]
    names = _display_names(shown)
    cards = [
        {**_card(row, name), "asked": bool(row.get("asked_emotion"))} for row, name in zip(shown, names, strict=True)
    ]
    _write("predictions.html.j2", path, title=title, cards=cards, count=len(rows), facts=facts, skipped=skipped)


def write_test_report(
    rows: Sequence[Row],
    metrics: Mapping[str, Any],
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    skipped: Sequence[tuple[str, str]] = (),
    seed: int = 0,
) -> None:
    """Report of a test: scores, confusion, recall, and a seeded choice of right and wrong examples.

    Args:
        rows: as in `write_predictions_page`, and "id", "references" (texts), "reference_emotions" (their names, or
            empty), "histogram" (the annotators' nine shares, or None).
        metrics: {"emotion": EmotionScores as a dict | None, "captions": {name: score}, "tokenizer": str,
            "notes": [str], "images": int, "decoding": {name: value}}.
        seed: decides the examples.

    Raises:
        UserError: the page cannot be written.
    """
    emotion = metrics.get("emotion") or None
    rule = emotion["rule"] if emotion else None
    chosen = _choose(rows, rule, seed)
    names = iter(_display_names([row for _, group, _ in chosen for row in group]))
    sections = [(key, [_example(row, next(names), rule) for row in group], total) for key, group, total in chosen]
    _write(
        "test_report.html.j2",
        path,
        title=title,
        sections=sections,
        count=len(rows),
        emotion_rows=emotion_rows(metrics),
        caption_rows=caption_rows(metrics),
        notes=metrics.get("notes") or [],
        decoding=metrics.get("decoding") or {},
        rule=RULE_WORDS.get(rule, rule),
        confusion=_heat_map(emotion),
        recall=_recall(emotion),
        facts=facts,
        skipped=skipped,
    )


# --- what the templates show -----------------------------------------------------------------------------------


def _card(row: Row, name: str, people: Sequence[float] | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "picture": thumbnail(Path(row["image"])),
        "emotion": row.get("emotion"),
        "groups": _bars(row.get("emotion_distribution"), people),
        "people": people is not None,
        "reason": row.get("explanation") or "",
    }


def _example(row: Row, name: str, rule: str | None) -> dict[str, Any]:
    """A card with the annotators beside the model."""
    people = row.get("histogram") if rule else None
    label = dominant_label(people, rule) if rule else None
    texts, emotions = list(row.get("references") or ()), list(row.get("reference_emotions") or ())
    pairs = [(emotions[i] if i < len(emotions) else None, text) for i, text in enumerate(texts)]
    return {
        **_card(row, name, people),
        "id": str(row.get("id") or ""),
        "label": None if label is None else EMOTIONS[label],
        "references": pairs[:SHOWN_REFERENCES],
        "more": pairs[SHOWN_REFERENCES:],
    }


def _bars(model: Sequence[float] | None, people: Sequence[float] | None = None) -> list[dict[str, Any]]:
    """Bars by group; empty where neither the model nor the annotators say anything."""
    if model is None and people is None:
        return []
    best = max(range(len(EMOTIONS)), key=lambda i: (model if model is not None else people)[i])

    def bar(i: int) -> dict[str, Any]:
        shares = {"model": None if model is None else model[i], "people": None if people is None else people[i]}
        return {"name": EMOTIONS[i], "best": i == best, **shares}

    return [{"sign": sign, "bars": [bar(INDEX[name]) for name in names]} for sign, names in EMOTION_GROUPS]


def _choose(rows: Sequence[Row], rule: str | None, seed: int) -> list[tuple[str, list[Row], int]]:
    """Sections: key, a random sample of its rows in the original order, and how many rows it was drawn from."""
    groups: dict[str, list[int]] = {"right": [], "wrong": [], "unlabelled": []}
    if rule is None:
        groups, limits = {"examples": list(range(len(rows)))}, {"examples": PLAIN_EXAMPLES}
    else:
        limits = EXAMPLES
        for i, row in enumerate(rows):
            label = dominant_label(row.get("histogram"), rule)
            right = label is not None and row.get("emotion") == EMOTIONS[label]
            groups["unlabelled" if label is None else "right" if right else "wrong"].append(i)
    rng = random.Random(seed)
    picks = {key: sorted(rng.sample(found, min(len(found), limits[key]))) for key, found in groups.items()}
    return [(key, [rows[i] for i in found], len(groups[key])) for key, found in picks.items() if found]


def _heat_map(emotion: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Rows of the confusion matrix: counts, and each count's share of its row."""
    if not emotion or not emotion["count"]:
        return []
    rows = []
    for name, counts, total in zip(EMOTIONS, emotion["confusion"], emotion["support"], strict=True):
        pairs = zip(counts, EMOTIONS, strict=True)
        cells = [{"count": count, "share": count / total if total else 0.0, "guess": guess} for count, guess in pairs]
        rows.append({"name": name, "total": total, "cells": cells})
    return rows


def _recall(emotion: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if not emotion or not emotion["count"]:
        return []
    hits = [counts[i] for i, counts in enumerate(emotion["confusion"])]
    found = {
        name: {"name": name, "recall": emotion["recall"][i], "hits": hits[i], "total": emotion["support"][i]}
        for i, name in enumerate(EMOTIONS)
    }
    return [{"sign": sign, "bars": [found[name] for name in names]} for sign, names in EMOTION_GROUPS]


def _display_names(rows: Iterable[Row]) -> list[str]:
    """Paths below the folder that all pictures share: short, and silent about the rest of the disk."""
    paths = [Path(row["image"]) for row in rows]
    try:
        root = Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:  # no pictures, or pictures on several drives
        return [path.name for path in paths]
    return [path.relative_to(root).as_posix() for path in paths]


def thumbnail(path: Path) -> dict[str, Any] | None:
    """JPEG data URI, size, and whether it is small enough to be enlarged in whole pixels; None if unreadable."""
    try:
        with warnings.catch_warnings(), Image.open(path) as opened:
            warnings.simplefilter("ignore")  # a huge picture is only shrunk here
            opened.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
            picture = flatten(ImageOps.exif_transpose(opened))
            small = max(picture.size) <= SMALL
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=95 if small else 82, subsampling=0 if small else 2)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"uri": uri, "width": picture.width, "height": picture.height, "small": small}


def flatten(picture: Image.Image) -> Image.Image:
    """RGB, transparent parts on white."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


# --- writing ---------------------------------------------------------------------------------------------------


def _write(template: str, path: Path, **values: Any) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    page = environment.get_template(template).render(colours=EMOTION_COLOURS, emotions=EMOTIONS, **values)
    try:
        write_text(Path(path), page)
    except OSError as error:
        raise UserError(f"cannot write the page {path}: {error.strerror or error}") from error


def _percent(share: float) -> str:
    """Whole percents; what is there but rounds to nothing is shown as "<1"."""
    return "<1" if 0 < share < 0.005 else f"{100 * share:.0f}"
