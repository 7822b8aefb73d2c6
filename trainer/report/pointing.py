"""The pointing game: is the map of the words that name the subject strongest inside the subject?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.frames import is_clip
from data.images import ImageError, open_image
from data.readers.facts import Box, Facts
from model.attention_maps import has_attention
from trainer.report.attention import every_token, visible_box, word_maps, words_of
from trainer.setup.parts import Parts

if TYPE_CHECKING:
    from PIL import Image

    from trainer.prediction.judge import Judge

IMAGES = 50  # in the game, at most
KIND = "subject"  # of the facts, to which the boxes belong


def add_pointing(
    rows: Sequence[dict[str, Any]],
    parts: Parts,
    facts: Facts,
    *,
    seed: int,
    max_pixels: int,
    judge: Judge | None = None,
) -> None:
    """Set "pointing" of up to IMAGES random rows that name their true subject, where its boxes are known.

    {"hit", "mean_map", "center", "area"}: whether the strongest cell lies in a box, by the map of the words for the
    subject and by that of the whole explanation; whether the picture's center does; and the share of cells that do.
    With a VLE that classifies regions also "vle", "vle_other" and "vle_area": whether its most probable patch does, for
    the explanation, and for that of another image which does not name the subject; and the share of its patches.

    Args:
        rows: as for `attention_examples`, with "id"; parts: as there.
    """
    known = (row for row in rows if row["explanation"] and facts.boxes.get(row["id"]))
    order = sorted(known, key=lambda row: row["id"])
    random.Random(f"{seed}/pointing").shuffle(order)
    played = 0
    for row in order if has_attention(parts.captioner) else ():
        words = words_of(row, parts)
        phrases = [phrase for value in facts.images[row["id"]].get(KIND, ())
                   for phrase in facts.phrases.get(KIND, {}).get(value, ())]  # fmt: skip
        named = _named(words, phrases)
        if played == IMAGES or not named or is_clip(Path(row["image"])):
            continue
        with suppress(ImageError):
            picture = open_image(Path(row["image"]), max_pixels=max_pixels)
            maps = word_maps(picture, row, parts, [named, every_token(words)])
            seen = visible_box(parts.captioner.vision.preprocess, picture.size)
            row["pointing"] = _game(*maps, seen=seen, boxes=facts.boxes[row["id"]])
            if judge is not None and judge.points:
                other = _text_without(phrases, order, random.Random(f"{seed}/pointing/{row['id']}"))
                texts = [row["explanation"], *other]
                row["pointing"] |= _vle_game(judge, texts, picture, facts.boxes[row["id"]])
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
    hits = _cells_inside(boxes, seen, word.shape)
    return {
        "hit": bool(hits.flat[word.argmax()]),
        "mean_map": bool(hits.flat[whole.argmax()]),
        "center": bool(_inside(boxes, 0.5, 0.5)),
        "area": round(float(hits.mean()), 4),
    }


def _vle_game(judge: Judge, texts: Sequence[str], picture: Image.Image, boxes: Sequence[Box]) -> dict[str, Any]:
    """Return "vle" and "vle_area", and "vle_other" if there is a second text."""
    maps, seen = judge.regions(texts, picture)
    hits = _cells_inside(boxes, seen, maps.shape[1:])
    found = {key: bool(hits.flat[grid.argmax()]) for key, grid in zip(("vle", "vle_other"), maps, strict=False)}
    return found | {"vle_area": round(float(hits.mean()), 4)}


def _text_without(phrases: Sequence[str], rows: Sequence[dict[str, Any]], r: random.Random) -> list[str]:
    """Return the first explanation in random order that has none of the phrases; none if each has one."""
    for row in r.sample(rows, len(rows)):
        if not any(phrase.lower() in row["explanation"].lower() for phrase in phrases):
            return [row["explanation"]]
    return []


def _cells_inside(boxes: Sequence[Box], seen: Box, shape: tuple[int, int]) -> np.ndarray:
    """Return (rows, columns): whether the center of each cell of a grid over `seen` lies in a box."""
    left, top, width, height = seen
    rows, columns = shape
    y, x = np.mgrid[:rows, :columns]
    return _inside(boxes, left + width * (x + 0.5) / columns, top + height * (y + 0.5) / rows)


def _inside(boxes: Sequence[Box], x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
    return np.any([(a <= x) & (x <= c) & (b <= y) & (y <= d) for a, b, c, d in boxes], axis=0)
