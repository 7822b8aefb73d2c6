"""Emotional alignment: does what was written sound like what the annotators felt (Achlioptas et al., 2021)?

A text→emotion classifier reads each generated explanation. Where the annotators of an image agree on an emotion, the
classifier's likeliest one is right or wrong; and for all images, its probabilities are held against the annotators'
shares. On which images they agree depends on the rule (`trainer.metrics.emotions`): ArtEmis counts "at_least_half",
SEVLM "more_than_half". Both are reported; the headline is "more_than_half", the rule of the other emotion scores.

An explanation without a word, an empty one above all, counts as wrong, and its probabilities are uniform.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import UserError
from data.emotions import EMOTIONS
from trainer.metrics.emotions import HEADLINE, NO_PREDICTION, RULES, dominant_label
from trainer.text_emotion.text_classifier import TextClassifier

Histogram = Sequence[float] | None


def alignment_scores(
    texts: Mapping[str, str], histograms: Mapping[str, Histogram], classifier: TextClassifier, *, rule: str = HEADLINE
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Scores one text per image.

    Args:
        texts: image id -> generated explanation.
        histograms: image id -> the annotators' nine shares or counts; None or absent where there are none.
        classifier: from `trainer.text_emotion.text_classifier.load_classifier`.
        rule: of the headline accuracy.

    Returns:
        The section "alignment" of metrics.json, and for every image
        alignment (1.0 right, 0.0 wrong, None where the annotators do not agree), the same under every rule as
        alignment_RULE, alignment_cross_entropy (nats, None without a histogram) and text_emotion (name, None without
        a word).

        accuracy and rules: the share of images with a label whose text sounds like it; None where there is none.
        cross_entropy: -sum(share * log probability), the mean over the `cross_entropy_count` images with a histogram.

    Raises:
        UserError: no text, an unknown rule, or a histogram that is not nine numbers of at least 0.
    """
    if not texts:
        raise UserError("no explanations to classify: the predictions are empty")
    reading = classifier.read(texts.values())
    predicted = dict(zip(texts, reading.emotions.tolist(), strict=True))
    log_probabilities = dict(zip(texts, reading.log_probabilities.numpy(), strict=True))
    each: dict[str, dict[str, Any]] = {}
    for image in texts:
        histogram = histograms.get(image)
        right = {name: _right(predicted[image], dominant_label(histogram, name)) for name in RULES}
        if rule not in right:
            dominant_label(None, rule)  # names the choices
        each[image] = {
            "alignment": right[rule],
            **{f"alignment_{name}": value for name, value in right.items()},
            "alignment_cross_entropy": _cross_entropy(log_probabilities[image], histogram),
            "text_emotion": None if predicted[image] == NO_PREDICTION else EMOTIONS[predicted[image]],
        }
    rules = {name: _accuracy([values[f"alignment_{name}"] for values in each.values()]) for name in RULES}
    entropies = [value for values in each.values() if (value := values["alignment_cross_entropy"]) is not None]
    empty = sum(emotion == NO_PREDICTION for emotion in predicted.values())
    section = {
        **rules[rule],
        "rule": rule,
        "rules": rules,
        "cross_entropy": float(np.mean(entropies)) if entropies else None,
        "cross_entropy_count": len(entropies),
        "empty": empty,
        "unknown_words": reading.unknown_words,
        "classifier": classifier.describe(),
        "notes": _notes(empty, rules[rule]["count"], rule),
    }
    return section, each


def _right(predicted: int, label: int | None) -> float | None:
    return None if label is None else float(predicted == label)


def _cross_entropy(log_probabilities: np.ndarray, histogram: Histogram) -> float | None:
    """Of the classifier's probabilities with the annotators' shares, in nats."""
    votes = np.asarray(() if histogram is None else histogram, dtype=np.float64)
    return float(-(votes / votes.sum()) @ log_probabilities) if votes.sum() > 0 else None


def _accuracy(right: Sequence[float | None]) -> dict[str, Any]:
    labelled = [value for value in right if value is not None]
    accuracy = float(np.mean(labelled)) if labelled else None
    return {"accuracy": accuracy, "count": len(labelled), "total": len(right)}


def _notes(empty: int, labelled: int, rule: str) -> list[str]:
    notes = [] if labelled else [f"no emotional alignment: no image has a label under the rule {rule}"]
    if empty:
        notes.append(f"{empty} explanations without a word count as not aligned, with uniform probabilities")
    return notes
