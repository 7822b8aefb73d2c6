"""Valence, arousal and dominance of the generated words compared with those of the human explanations.

A text has the mean values of its known words: the words of data.vad.align.WORD that are in the lexicon, else their
parts between hyphens and apostrophes ("blue" and "green" of "blue-green", "tree" of "tree's"), except clitics such as
's and whatever precedes 't. The human values of an image are the mean over its explanations with a known word, with
equal weights. An image counts if both sides have a known word.

The headline compares with all explanations of an image; `same_emotion` only with those written for the predicted
emotion, if there are any.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import UserError
from data.vad.align import CLITICS, WORD
from data.vad.lexicon import Lexicon, Vad, normalize_word
from trainer.metrics.bootstrap import Statistic, correlation, floats, mean, score

NAMES = ("valence", "arousal", "dominance")
PARTS = re.compile(r"-|'(?!t\b)")
ALL, SAME = "people", "same_emotion"  # the human values of a row


def text_vad(text: str, lexicon: Lexicon) -> tuple[np.ndarray, int]:
    """Return the mean values (3,) of the known words, NaN without any, and their number."""
    values = [value for match in WORD.finditer(text) for value in _values(match[0], lexicon)]
    return (np.mean(values, axis=0) if values else np.full(len(NAMES), np.nan)), len(values)


def _values(word: str, lexicon: Lexicon) -> list[Vad]:
    parts = PARTS.split(normalize_word(word))
    if len(parts) > 1 and (whole := lexicon.lookup(word)) is not None:
        return [whole]
    return [values for part in parts if part not in CLITICS and (values := lexicon.lookup(part)) is not None]


def vad_scores(
    texts: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    lexicon: Lexicon,
    *,
    emotions: Mapping[str, str | None] | None = None,
    reference_emotions: Mapping[str, Sequence[str]] | None = None,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the section "vad" of metrics.json, and the values of every image.

    Args:
        texts: image id → explanation; references: image id → human texts.
        emotions: image id → predicted emotion; reference_emotions: image id → emotion of each reference, in order, or
            empty. If either is None, `same_emotion` is left out.

    Returns:
        For valence, arousal, dominance: error (mean absolute), bias (mean of generated minus human), correlation
        (Pearson's; None if either is constant), count; lexicon; images; uncounted: images without a known word on
        either side; same_emotion: the same three and uncounted, or None; notes.
        By image id: known_words; valence, arousal, dominance of the text; people_valence …, same_emotion_valence …;
        None without a known word.

    Raises:
        UserError: the numbers of reference emotions and of references of an image differ.
    """
    rows: dict[str, dict[str, Any]] = {}
    for image, text in texts.items():
        own, known = text_vad(text, lexicon)
        each = [text_vad(reference, lexicon)[0] for reference in references.get(image, ())]
        rows[image] = {"known_words": known, **_row(own), **_row(_mean(each), f"{ALL}_")}
        if emotions is not None and reference_emotions is not None:
            felt = reference_emotions.get(image, ())
            if felt and len(felt) != len(each):
                raise UserError(f"image {image!r} has {len(each)} references but {len(felt)} emotions of references")
            alike = [vad for vad, emotion in zip(each, felt, strict=False) if emotion == emotions.get(image)]
            rows[image] |= _row(_mean(alike), f"{SAME}_")
    values = list(rows.values())
    summary = {**_summary(values, ALL), "lexicon": lexicon.layout, "images": len(rows), "same_emotion": None}
    if emotions is not None and reference_emotions is not None and rows:
        summary["same_emotion"] = _summary(values, SAME)
    lacking = summary["uncounted"]
    why = "the explanation or all references lack a word of the VAD lexicon"
    summary["notes"] = [f"{why} in {lacking} of {len(rows)} images, which are not counted"] if lacking else []
    return summary, rows


def _mean(values: Sequence[np.ndarray]) -> np.ndarray:
    known = [value for value in values if not np.isnan(value).any()]
    return np.mean(known, axis=0) if known else np.full(len(NAMES), np.nan)


def _row(vad: np.ndarray, prefix: str = "") -> dict[str, float | None]:
    return {prefix + name: None if np.isnan(value) else float(value) for name, value in zip(NAMES, vad, strict=True)}


def _summary(rows: Sequence[Mapping[str, Any]], whose: str) -> dict[str, Any]:
    figures = _statistics(rows, whose)
    count = sum(row[NAMES[0]] is not None and row.get(f"{whose}_{NAMES[0]}") is not None for row in rows)
    return {
        name: {figure: score(figures[f"{name}.{figure}"], len(rows)) for figure in ("error", "bias", "correlation")}
        | {"count": count}
        for name in NAMES
    } | {"uncounted": len(rows) - count}


def statistics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Statistic]:
    """Return the statistics of `vad_scores`: valence.error, …, same_emotion.valence.error, …"""
    found = _statistics(rows, ALL)
    if any(f"{SAME}_{NAMES[0]}" in row for row in rows):
        found |= {f"{SAME}.{name}": statistic for name, statistic in _statistics(rows, SAME).items()}
    return found


def _statistics(rows: Sequence[Mapping[str, Any]], whose: str) -> dict[str, Statistic]:
    found: dict[str, Statistic] = {}
    for name in NAMES:
        own, people = (floats([row.get(key) for row in rows]) for key in (name, f"{whose}_{name}"))
        found[f"{name}.error"] = mean(np.abs(own - people))
        found[f"{name}.bias"] = mean(own - people)
        found[f"{name}.correlation"] = correlation(own, people)
    return found
