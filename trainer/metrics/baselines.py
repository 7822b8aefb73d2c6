"""Explanations that do not come from looking at the image, to be scored beside the model's.

commonest: the most frequent training text of the model's emotion (the first in the file among equals); random: a
random training text of that emotion; nearest: the text of the training picture with the most similar features, which
mode=test writes into the predictions; other_picture: the model's own explanation of another picture with the same
predicted emotion. Without emotions, or for an emotion that no training text has, all texts and pictures count. Rows
that name a language are given texts in that language, if there are any.

Explanations that do not beat the last two are blind: they could be written without the picture.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

COMMONEST, RANDOM, NEAREST, OTHER = SYSTEMS = ("commonest", "random", "nearest", "other_picture")
DECISIVE = (OTHER, NEAREST)
FEWEST = 50  # images for a verdict: with fewer, chance hides what a model sees

Texts = dict[str, str]  # image id -> text
Kind = tuple[str | None, str | None]  # emotion and language, or None: any


def baseline_texts(
    rows: Sequence[Mapping[str, Any]],
    training_texts: Sequence[str],
    training_emotions: Sequence[str | None] = (),
    training_languages: Sequence[str] = (),
    *,
    seed: int,
) -> tuple[dict[str, Texts], list[str]]:
    """Return the texts of each of SYSTEMS that can be had, and notes on what is left out.

    Args:
        rows: as in predictions.jsonl.
        training_texts, training_emotions, training_languages: of the same length, or no emotions, or no languages.

    Returns:
        By system, the text of every image or of fewer; it does not depend on the order of the rows.
    """
    found: dict[str, Texts] = {}
    notes = []
    if training_texts:
        pools: dict[Kind, list[str]] = defaultdict(list)
        for text, emotion, language in zip_longest(training_texts, training_emotions, training_languages):
            for kind in {(emotion, language), (None, language), (emotion, None), (None, None)}:
                pools[kind].append(text)
        if not any(training_emotions) and any(row.get("emotion") for row in rows):
            notes.append("the training texts name no emotions, so their baselines do not follow the model's emotion")
        commonest = {kind: Counter(texts).most_common(1)[0][0] for kind, texts in pools.items()}
        keys = {row["id"]: next(kind for kind in _kinds(row) if kind in pools) for row in rows}
        found[COMMONEST] = {id: commonest[key] for id, key in keys.items()}
        found[RANDOM] = {id: random.Random(f"{seed} {id}").choice(pools[key]) for id, key in keys.items()}
    found[NEAREST] = {row["id"]: row["nearest"] for row in rows if row.get("nearest")}
    found[OTHER] = _of_another_picture(rows, seed)
    lacking = {NEAREST: "have no 'nearest', which mode=test writes", OTHER: "have no two pictures of the same emotion"}
    for name, why in lacking.items():
        missing = len(rows) - len(found[name])
        if not found[name]:
            del found[name]
            notes.append(f"baseline {name} left out: the predictions {why}")
        elif missing:
            notes.append(f"baseline {name}: {missing} of {len(rows)} images have none and do not count for it")
    return found, notes


def _kinds(row: Mapping[str, Any]) -> list[Kind]:
    """Return which training texts a row could be given, the best first."""
    emotion, language = row.get("emotion"), row.get("language") or None
    return [(emotion, language), (None, language), (emotion, None), (None, None)]


def _of_another_picture(rows: Sequence[Mapping[str, Any]], seed: int) -> Texts:
    """Return a derangement of the explanations within each emotion; the only picture of an emotion is left out."""
    groups: dict[Kind, list[Mapping[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["id"]):
        groups[row.get("emotion"), row.get("language")].append(row)
    found = {}
    for group in groups.values():
        random.Random(seed).shuffle(group)
        if len(group) > 1:
            others = [*group[1:], group[0]]
            found |= {row["id"]: other["explanation"] or "" for row, other in zip(group, others, strict=True)}
    return found


def blind_verdict(differences: Mapping[str, Mapping[str, Mapping[str, Any]]], images: int) -> dict[str, Any] | None:
    """Return whether the model is blind; None for fewer than FEWEST images or without any of DECISIVE.

    Args:
        differences: by system and score ("captions.CIDEr"), the figures of bootstrap.paired, `second` the model.

    Returns:
        verdict (true: blind), score (CIDEr, else the first), unbeaten: the systems of DECISIVE for which the 95 %
        interval of the model's lead is not above 0.
    """
    found = {name: differences[name] for name in DECISIVE if differences.get(name)}
    if not found or images < FEWEST:
        return None
    first = next(iter(found.values()))
    score = "captions.CIDEr" if "captions.CIDEr" in first else next(iter(first))
    unbeaten = [name for name, figures in found.items() if score in figures and figures[score]["interval"][0] <= 0]
    return {"verdict": bool(unbeaten), "score": score, "unbeaten": unbeaten}
