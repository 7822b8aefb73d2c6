"""HTML pages of results: one file each, pictures inside, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import io
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.emotions import EMOTIONS, INDEX
from pages import EMOTION_GROUPS, write_page
from trainer.attention import WORD_RULE, Looked, View
from trainer.metrics.emotions import dominant_label
from trainer.metrics.table import RULE_WORDS, interval_words
from trainer.plots import DIMENSIONS, MOST_POINTS, reliability_diagrams, vad_scatter
from trainer.score_tables import score_tables
from trainer.thumbnails import thumbnail

TEMPLATES = Path(__file__).parent / "templates"
GALLERY_LIMIT = 500  # cards: about 15 MB of page
EXAMPLES = {"best": 6, "worst": 6, "mistaken": 6, "random": 9}
BEST_BY = ("CIDEr", "METEOR", "ROUGE-L", "BLEU-4")  # the first of these that the images have ranks the explanations
ATTENTION_EXAMPLES = 6  # of the random ones
HEAT = ((150, 20, 20, 0), (255, 196, 40, 225))  # red, green, blue, opacity: where nothing and where most is looked at
EVEN = 3.0  # times the even share: what a patch needs to be as bright as can be
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
    """Gallery of predictions: picture, emotion, reason and nine bars of each, and what else there is.

    Args:
        rows: "image" (absolute path), "emotion" (name or None), "emotion_distribution" (nine floats or None),
            "explanation", optionally "asked_emotion" (True: the emotion was the user's choice), "vad", "reasons",
            "emotion_text" and "emotion_temperature" as in trainer.predictor.
        facts: settings, checkpoint and versions, shown at the end.
        skipped: (path, reason) of images that could not be used.

    Raises:
        UserError: the page cannot be written.
    """
    shown = rows[:GALLERY_LIMIT]
    names = _display_names(shown)
    cards = [_predicted(row, name) for row, name in zip(shown, names, strict=True)]
    heated = {row.get("emotion_temperature") for row in rows}
    temperature = heated.pop() if len(heated) == 1 else None
    template = TEMPLATES / "predictions.html.j2"
    values = {"cards": cards, "count": len(rows), "temperature": temperature}
    write_page(path, template, title=title, facts=facts, skipped=skipped, **values)


def write_test_report(
    rows: Sequence[Row],
    metrics: Mapping[str, Any],
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    per_image: Sequence[Row] = (),
    attention: Sequence[Looked] = (),
    skipped: Sequence[tuple[str, str]] = (),
    seed: int = 0,
) -> None:
    """Report of a test: scores, where the emotions go wrong, calibration, VAD, examples, and what the words looked at.

    What the data does not have leaves no gap.

    Args:
        rows: as in `write_predictions_page`, and "id", "references" (texts), "reference_emotions" (their names, or
            empty), "histogram" (the annotators' nine shares, or None).
        metrics: as in metrics.json.
        per_image: as in per_image.jsonl, for the best and the worst examples and the VAD of each image.
        attention: of a few of the rows, such as `drawn` chooses.
        seed: decides what is drawn at random.

    Raises:
        UserError: the page cannot be written.
    """
    emotion = metrics.get("emotion") or None
    rule = emotion["rule"] if emotion else None
    chosen = _choose(rows, {row["id"]: row for row in per_image}, seed)
    shown = [row for section in chosen for row in section["rows"]] + [looked.row for looked in attention]
    names = {row["image"]: name for row, name in zip(shown, _display_names(shown), strict=True)}
    for section in chosen:
        section["cards"] = [_example(row, names[row["image"]], rule) for row in section.pop("rows")]
    scatter = [plot for name in DIMENSIONS if (plot := vad_scatter(per_image, name, seed=seed)) is not None]
    write_page(
        path,
        TEMPLATES / "test_report.html.j2",
        title=title,
        sections=chosen,
        count=len(rows),
        tables=score_tables(metrics),
        intervals=interval_words(metrics),
        notes=list(dict.fromkeys(metrics.get("notes") or ())),
        decoding=metrics.get("decoding") or {},
        rule=RULE_WORDS.get(rule, rule),
        confusion=_heat_map(emotion),
        by_emotion=_by_emotion(emotion),
        reliability=reliability_diagrams(emotion or {}),
        temperature=(emotion or {}).get("temperature"),
        scatter=scatter,
        most_points=MOST_POINTS,
        attention=[_looked(looked, names[looked.row["image"]], i) for i, looked in enumerate(attention)],
        cropped=any(_is_cropped(looked) for looked in attention),
        word_rule=WORD_RULE,
        facts={**facts, **_instruments(metrics)},
        skipped=skipped,
    )


def drawn(rows: Sequence[Row], count: int, *, seed: int) -> list[Row]:
    """`count` of the rows at random, or all; in their order. Of fewer rows, the same seed draws a part of the same."""
    order = sorted(range(len(rows)), key=lambda i: str(rows[i].get("id")))
    random.Random(seed).shuffle(order)
    return [rows[i] for i in sorted(order[:count])]


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


def _predicted(row: Row, name: str) -> dict[str, Any]:
    """A card with what only predictions have; the first of its reasons is its own."""
    return {
        **_card(row, name),
        "asked": bool(row.get("asked_emotion")),
        "said": row.get("emotion_text"),
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


def _choose(rows: Sequence[Row], measured: Mapping[str, Row], seed: int) -> list[dict[str, Any]]:
    """Sections of examples: their key, rows, what ranks them and each row's value of it; empty ones are left out."""
    values = {row["id"]: measured.get(row.get("id")) or {} for row in rows if "id" in row}
    name = next((name for name in BEST_BY if any(found.get(name) is not None for found in values.values())), None)

    def ranked(key: str, figure: str, *, highest: bool, part: int) -> dict[str, Any]:
        """No more than a `part`th of the images."""
        found = [row for row in rows if values.get(row.get("id"), {}).get(figure) is not None]
        found.sort(key=lambda row: (values[row["id"]][figure] * (-1 if highest else 1), str(row["id"])))
        return {"key": key, "rows": found[: min(EXAMPLES[key], len(found) // part)], "by": figure, "total": len(found)}

    ends = (("best", True), ("worst", False)) if name else ()
    sections = [ranked(key, name, highest=highest, part=2) for key, highest in ends]  # no image is among both
    sections.append(ranked("mistaken", "nll_label", highest=True, part=1))
    for section in sections:
        section["worth"] = [values[row["id"]][section["by"]] for row in section["rows"]]
    random_rows = drawn(rows, EXAMPLES["random"], seed=seed)
    sections.append({"key": "random", "rows": random_rows, "by": None, "total": len(rows), "worth": []})
    return [section for section in sections if section["rows"]]


def _instruments(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What the scores were measured with, beside the network and its settings."""
    found = {"tokenizer of the scores": metrics.get("tokenizer"), "CLIP of the scores": metrics.get("clip")}
    if metrics.get("intervals") and metrics.get("bootstrap"):
        found["intervals"] = "bootstrap, {replicates} samples, seed {seed}".format(**metrics["bootstrap"])
    if novelty := (metrics.get("explanations") or {}).get("novelty"):
        found["novelty"] = "{captions} explanations and {training_texts} training texts, seed {seed}".format(**novelty)
    if classifier := (metrics.get("alignment") or {}).get("classifier"):
        named = (classifier.get(key) for key in ("network", "folder", "source"))
        found["text classifier"] = ", ".join(str(value) for value in named if value)
    return {key: str(value) for key, value in found.items() if value}


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


def _by_emotion(emotion: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Recall and precision of each emotion, by group."""
    if not emotion or not emotion["count"]:
        return []
    figures = zip(EMOTIONS, emotion["recall"], emotion["precision"], emotion["support"], strict=True)
    found = {
        name: {"name": name, "recall": recall, "precision": precision, "support": support}
        for name, recall, precision, support in figures
    }
    return [{"sign": sign, "bars": [found[name] for name in names]} for sign, names in EMOTION_GROUPS]


def _looked(looked: Looked, name: str, index: int) -> dict[str, Any]:
    """A picture, and heat over the part of it that the network sees."""
    left, top, width, height = looked.box
    return {
        "id": f"picture-{index}",
        "name": name,
        "picture": thumbnail(Path(looked.row["image"])),
        "cropped": _is_cropped(looked),
        "box": {"x": left, "y": top, "width": width, "height": height},
        "emotion": looked.row.get("emotion"),
        "reason": looked.row.get("explanation") or "",
        "views": [_view(view) for view in looked.views],
    }


def _is_cropped(looked: Looked) -> bool:
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


def _display_names(rows: Iterable[Row]) -> list[str]:
    """Paths below the folder that all pictures share: short, and silent about the rest of the disk."""
    paths = [Path(row["image"]) for row in rows]
    try:
        root = Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:  # no pictures, or pictures on several drives
        return [path.name for path in paths]
    return [path.relative_to(root).as_posix() for path in paths]
