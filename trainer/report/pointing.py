"""The pointing game: is the map of the words that name the subject strongest inside the subject?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from data.frames import is_clip
from data.images import ImageError, open_image
from data.readers.facts import Box, Facts
from model.attention_maps import has_attention
from trainer.report.attention import every_token, token_words, visible_box, word_maps
from trainer.setup.parts import Parts

IMAGES = 50  # in the game, at most
KIND = "subject"  # of the facts, to which the boxes belong


def add_pointing(rows: Sequence[dict[str, Any]], parts: Parts, facts: Facts, *, seed: int, max_pixels: int) -> None:
    """Set "pointing" of up to IMAGES random rows that name their true subject, where its boxes are known.

    {"hit", "mean_map", "center", "area"}: whether the strongest cell lies in a box, by the map of the words for the
    subject and by that of the whole explanation; whether the picture's center does; and the share of cells that do.

    Args:
        rows: as for `attention_examples`, with "id"; parts: as there.
    """
    known = (row for row in rows if row["explanation"] and facts.boxes.get(row["id"]))
    order = sorted(known, key=lambda row: row["id"])
    random.Random(f"{seed}/pointing").shuffle(order)
    played = 0
    for row in order if has_attention(parts.captioner) else ():
        words = token_words(row["explanation"], row.get("emotion"), parts)
        named = _named(words, [phrase for value in facts.images[row["id"]].get(KIND, ())
                               for phrase in facts.phrases.get(KIND, {}).get(value, ())])  # fmt: skip
        if played == IMAGES or not named or is_clip(Path(row["image"])):
            continue
        with suppress(ImageError):
            picture = open_image(Path(row["image"]), max_pixels=max_pixels)
            maps = word_maps(picture, row, parts, [named, every_token(words)])
            seen = visible_box(parts.captioner.vision.preprocess, picture.size)
            row["pointing"] = _game(*maps, seen=seen, boxes=facts.boxes[row["id"]])
            played += 1


def _named(words: Sequence[tuple[str, list[int]]], phrases: Sequence[str]) -> list[int]:
    """Return the positions of the words of the longest phrase in the text, at its first place; empty without any."""
    text = [word.lower() for word, _ in words]
    for phrase in sorted((phrase.lower().split() for phrase in phrases), key=len, reverse=True):
        for start in range(len(text) - len(phrase) + 1):
            if text[start : start + len(phrase)] == phrase:
                return every_token(words[start : start + len(phrase)])
    return []


def _game(word: np.ndarray, whole: np.ndarray, *, seen: Box, boxes: Sequence[Box]) -> dict[str, Any]:
    left, top, width, height = seen
    rows, columns = word.shape
    y, x = np.mgrid[:rows, :columns]
    x, y = left + width * (x + 0.5) / columns, top + height * (y + 0.5) / rows  # of the cells' centers

    def inside(x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
        return np.any([(a <= x) & (x <= c) & (b <= y) & (y <= d) for a, b, c, d in boxes], axis=0)

    hits = inside(x, y)
    return {
        "hit": bool(hits.flat[word.argmax()]),
        "mean_map": bool(hits.flat[whole.argmax()]),
        "center": bool(inside(0.5, 0.5)),
        "area": round(float(hits.mean()), 4),
    }
