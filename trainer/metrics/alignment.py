"""Emotional alignment (Achlioptas et al., 2021): does an explanation express the emotion that the annotators felt?

A text→emotion classifier reads each generated explanation. Its most likely emotion is compared with the annotators'
label, and its probabilities with their shares. Which images have a label depends on the rule
(`trainer.metrics.emotions`): ArtEmis uses "at_least_half", SEVLM "more_than_half". Both are reported; the headline is
"more_than_half", the rule of the other emotion scores.

An explanation without a word counts as wrong, with uniform probabilities.
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
    texts: Mapping[str, str], histograms: Mapping[str, Histogram], classifier: TextClassifier
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Score one text per image.

    Args:
        texts: image id → generated explanation.
        histograms: image id → the annotators' nine shares or counts; None or absent if there are none.
        classifier: from `trainer.text_emotion.text_classifier.load_classifier`.

    Returns:
        The section "alignment" of metrics.json: accuracy, over the `count` images with a label (None without any), for
        the headline rule and for every rule; cross_entropy, -sum(share * log probability), the mean over the
        `cross_entropy_count` images with a histogram.
        For every image: alignment (1.0 right, 0.0 wrong, None without a label), alignment_RULE for every rule,
        alignment_cross_entropy (nats; None without a histogram), text_emotion (name; None without a word).

    Raises:
        UserError: no text, or a histogram that is not nine numbers of at least 0.
    """
    if not texts:
        raise UserError("no explanations to classify: the predictions are empty")
    reading = classifier.read(texts.values())
    each: dict[str, dict[str, Any]] = {}
    found = zip(texts, reading.emotions.tolist(), reading.log_probabilities.numpy(), strict=True)
    for image, emotion, log_probabilities in found:
        histogram = histograms.get(image)
        labels = {rule: dominant_label(histogram, rule) for rule in RULES}
        right = {rule: None if label is None else float(emotion == label) for rule, label in labels.items()}
        each[image] = {
            "alignment": right[HEADLINE],
            **{f"alignment_{rule}": value for rule, value in right.items()},
            "alignment_cross_entropy": _cross_entropy(log_probabilities, histogram),
            "text_emotion": None if emotion == NO_PREDICTION else EMOTIONS[emotion],
        }
    rules = {rule: _accuracy([values[f"alignment_{rule}"] for values in each.values()]) for rule in RULES}
    entropies = [value for values in each.values() if (value := values["alignment_cross_entropy"]) is not None]
    empty = sum(values["text_emotion"] is None for values in each.values())
    notes = (
        [] if rules[HEADLINE]["count"] else [f"no emotional alignment: no image has a label under the rule {HEADLINE}"]
    )
    if empty:
        notes.append(f"{empty} explanations without a word count as not aligned, with uniform probabilities")
    section = {
        **rules[HEADLINE],
        "rule": HEADLINE,
        "rules": rules,
        "cross_entropy": float(np.mean(entropies)) if entropies else None,
        "cross_entropy_count": len(entropies),
        "empty": empty,
        "unknown_words": reading.unknown_words,
        "classifier": classifier.describe(),
        "notes": notes,
    }
    return section, each


def _cross_entropy(log_probabilities: np.ndarray, histogram: Histogram) -> float | None:
    votes = np.asarray(() if histogram is None else histogram, dtype=np.float64)
    return float(-(votes / votes.sum()) @ log_probabilities) if votes.sum() > 0 else None


def _accuracy(right: Sequence[float | None]) -> dict[str, Any]:
    labelled = [value for value in right if value is not None]
    accuracy = float(np.mean(labelled)) if labelled else None
    return {"accuracy": accuracy, "count": len(labelled), "total": len(right)}
