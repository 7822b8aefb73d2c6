"""Sample the scene of a demo picture and the emotions of its annotators from (seed, split, index).

Each of the nine emotions prefers some palettes, subjects, compositions and brushworks but shares them with other
emotions, so that one attribute is rarely enough to recognize the emotion and their combination mostly is.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from random import Random

from data.emotions import EMOTIONS, INDEX

SPLITS = ("train", "val", "test")
GENERATOR_VERSION = 2  # increase it with every change of the files that are written

# Weights per emotion, about in percent, raised to the power SHARPNESS; all other values have the weight LEAK.
PALETTE_ODDS = {
    "amusement": "candy 40, pastel 18, violet 14, fire 8, meadow 8, sea 6, earth 6",
    "awe": "luminous 42, sea 18, violet 12, pastel 8, night 9, ash 5, fire 6",
    "contentment": "meadow 40, pastel 20, luminous 14, sea 14, earth 7, candy 5",
    "excitement": "fire 42, violet 18, candy 14, luminous 10, blood 8, sea 8",
    "anger": "blood 44, fire 22, night 11, ash 8, earth 8, murk 7",
    "disgust": "murk 44, earth 17, violet 8, meadow 11, blood 10, candy 10",
    "fear": "night 44, blood 13, ash 14, violet 11, murk 10, sea 8",
    "sadness": "ash 42, sea 17, night 14, earth 13, pastel 7, luminous 7",
    "something else": "earth 34, ash 14, pastel 14, candy 11, sea 10, murk 10, violet 7",
}
SUBJECT_ODDS = {
    "amusement": "cat 30, balloons 26, flowers 10, rings 8, burst 8, blobs 6, cottage 5, eyes 4, fruit 3",
    "awe": "mountain 28, sun 22, boat 18, burst 9, storm 9, figure 10, horse 4",
    "contentment": "cottage 28, flowers 26, boat 14, sun 10, cat 8, mountain 8, balloons 3, fruit 3",
    "excitement": "burst 30, horse 28, balloons 12, slashes 10, sun 6, storm 6, boat 4, rings 4",
    "anger": "slashes 34, storm 26, jagged 12, horse 7, burst 7, eyes 8, tree 3, blobs 3",
    "disgust": "blobs 36, fruit 34, eyes 8, flowers 8, cat 5, grid 4, rings 5",
    "fear": "eyes 28, jagged 28, storm 12, tree 10, cottage 7, slashes 6, figure 5, boat 4",
    "sadness": "tree 30, figure 30, boat 14, flowers 8, cottage 7, sun 6, storm 5",
    "something else": "grid 34, rings 28, blobs 11, slashes 8, figure 6, eyes 4, fruit 4, jagged 5",
}
COMPOSITION_ODDS = {
    "amusement": "scattered 36, centered 24, close 20, diagonal 12, high 8",
    "awe": "vast 50, centered 16, diagonal 12, high 10, close 12",
    "contentment": "centered 34, high 30, vast 18, scattered 18",
    "excitement": "diagonal 46, scattered 24, close 16, centered 8, vast 6",
    "anger": "diagonal 36, close 36, centered 14, scattered 14",
    "disgust": "close 40, scattered 28, high 20, centered 12",
    "fear": "close 40, vast 15, diagonal 15, centered 15, high 15",
    "sadness": "vast 32, high 30, centered 24, close 6, scattered 8",
    "something else": "scattered 30, centered 30, close 20, diagonal 20",
}
BRUSH_ODDS = {
    "amusement": "dabs 36, smooth 24, swirls 20, broad 20",
    "awe": "smooth 34, swirls 30, broad 22, dabs 14",
    "contentment": "dabs 34, broad 32, smooth 28, swirls 6",
    "excitement": "swirls 36, hatching 30, dabs 24, broad 10",
    "anger": "hatching 50, drips 20, swirls 20, broad 10",
    "disgust": "drips 44, swirls 20, broad 16, dabs 10, smooth 10",
    "fear": "hatching 32, drips 24, smooth 24, swirls 20",
    "sadness": "drips 28, broad 36, smooth 30, hatching 6",
    "something else": "smooth 30, broad 20, hatching 20, dabs 15, drips 15",
}
LEAK = 0.4
SHARPNESS = 2.7  # the higher, the easier the emotions are to distinguish

# The emotions of an annotator who disagrees with the emotion of the picture, with weights.
CONFUSIONS = {
    "amusement": "excitement 40, contentment 30, something else 15, awe 8, disgust 7",
    "awe": "contentment 45, excitement 25, fear 12, sadness 6, something else 12",
    "contentment": "awe 45, amusement 25, sadness 12, excitement 8, something else 10",
    "excitement": "amusement 40, awe 30, fear 10, anger 8, something else 12",
    "anger": "fear 38, disgust 32, excitement 12, sadness 8, something else 10",
    "disgust": "anger 32, fear 26, sadness 14, amusement 10, something else 18",
    "fear": "sadness 42, anger 22, disgust 16, awe 10, something else 10",
    "sadness": "fear 36, contentment 24, awe 12, anger 10, something else 18",
    "something else": "amusement 16, contentment 16, sadness 16, awe 12, disgust 12, fear 10, excitement 10, anger 8",
}
AGREEMENT = (0.68, 0.80)  # range of the probability that an annotator agrees with the emotion of the picture
ANNOTATORS = (5, 8)  # range of their number

PLACED = {"scattered": ("everywhere",), "close": ("middle",), "centered": ("middle",)}  # other compositions: anywhere

Table = dict[str, dict[str, float]]


def _parse(odds: dict[str, str], *, leak: float, sharpness: float) -> Table:
    rows = {e: {k: float(w) for k, w in (part.rsplit(" ", 1) for part in text.split(", "))} for e, text in odds.items()}
    values = sorted({value for row in rows.values() for value in row})
    rows = {e: {v: row.get(v, leak) ** sharpness for v in values} for e, row in rows.items()}
    return {e: {v: w / sum(row.values()) for v, w in row.items()} for e, row in rows.items()}


SOURCES = {"palette": PALETTE_ODDS, "subject": SUBJECT_ODDS, "composition": COMPOSITION_ODDS, "brush": BRUSH_ODDS}
# Probability of each value by attribute and emotion, and of each other emotion by emotion.
ODDS = {name: _parse(source, leak=LEAK, sharpness=SHARPNESS) for name, source in SOURCES.items()}
CONFUSION_ODDS = _parse(CONFUSIONS, leak=0.0, sharpness=1.0)


def stream(seed: int, split: str, index: int | str, purpose: str) -> Random:
    """Return the random generator for one purpose of one picture; a text seed is independent of the hash seed."""
    return Random(f"emoscribe demo 1/{seed}/{split}/{index}/{purpose}")


@dataclass(frozen=True, slots=True)
class Scene:
    """The visible attributes of a picture, and the emotion that they were sampled for."""

    emotion: str
    palette: str
    subject: str
    composition: str
    brush: str
    place: str  # of the subject: left | middle | right | everywhere
    likelihood: tuple[float, ...]  # of the nine emotions given the four attributes; sums to 1


def likelihood(attributes: dict[str, str]) -> tuple[float, ...]:
    """Return the probability of each emotion given the four attributes, with a uniform prior."""
    joint = [prod(ODDS[name][emotion][value] for name, value in attributes.items()) for emotion in EMOTIONS]
    return tuple(p / sum(joint) for p in joint)


def scene_of(seed: int, split: str, index: int) -> Scene:
    """Return the scene of picture `index`; each block of nine pictures has the nine emotions in random order."""
    order = list(EMOTIONS)
    stream(seed, split, f"block {index // len(order)}", "emotion").shuffle(order)
    emotion = order[index % len(order)]
    r = stream(seed, split, index, "scene")
    for _ in range(50):
        attributes = {name: _pick(r, table[emotion]) for name, table in ODDS.items()}
        chance = likelihood(attributes)
        # Mostly reject attributes that fit another emotion better.
        if chance[INDEX[emotion]] > 0.8 or r.random() < 0.02:
            break
    place = r.choice(PLACED.get(attributes["composition"], ("left", "middle", "right")))
    return Scene(emotion, **attributes, place=place, likelihood=chance)


def votes_of(scene: Scene, r: Random) -> list[str]:
    """Return the emotion of each annotator."""
    agree = r.uniform(*AGREEMENT)
    others = {e: w + scene.likelihood[INDEX[e]] for e, w in CONFUSION_ODDS[scene.emotion].items() if e != scene.emotion}
    count = r.randint(*ANNOTATORS)
    return [scene.emotion if r.random() < agree else _pick(r, others) for _ in range(count)]


def _pick(r: Random, weights: dict[str, float]) -> str:
    return r.choices(list(weights), weights=list(weights.values()))[0]
