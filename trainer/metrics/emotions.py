"""Predicted emotions against the annotators' labels: accuracy, macro-F1, valence, and scores of the probabilities.

An image counts for accuracy only if its annotators agree. Three rules for agreement are in use and give different
numbers on the same predictions, so every result names its rule:

- "more_than_half": one emotion has more than half of the votes (SEVLM, Fu et al., 2024);
- "at_least_half": at least half, and no other has as many (ArtEmis, Achlioptas et al., 2021);
- "unique_maximum": more votes than any other.

Valence is positive (amusement, awe, contentment, excitement) or negative (anger, disgust, fear, sadness), and
data.emotions.VALENCE lists that of other labels. Its accuracy is over the images whose label has one; a predicted label
without, such as "something else", counts as negative, as in the published probes on CLIP features.

The C labels are the nine of ArtEmis by default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from common.errors import UserError
from data.emotions import EMOTIONS, NEGATIVE, POSITIVE, labels_entry, number_word, valence
from trainer.metrics import calibration
from trainer.metrics.bootstrap import Statistic, mean, of_sums, score
from trainer.metrics.calibration import SMALLEST

RULE_WORDS = {
    "more_than_half": "one emotion has more than half of the votes",
    "at_least_half": "one emotion has at least half of the votes, untied",
    "unique_maximum": "one emotion has more votes than any other",
}
RULES = tuple(RULE_WORDS)
HEADLINE = RULES[0]
TOLERANCE = 1e-6  # of shares, far below the smallest difference between ratios of small counts
NO_PREDICTION = NO_LABEL = -1

BY_RULE = (
    "accuracy",
    "count",
    "total",
    "macro_f1",
    "majority",
    "valence_accuracy",
    "valence_majority",
    "valence_count",
)

Distribution = Sequence[float]  # C numbers, in the order of the labels


@dataclass(slots=True)
class EmotionScores:
    """Scores of predicted emotions; lists over emotions are in the order of the labels."""

    accuracy: float | None  # over the `count` labelled images; None without any
    macro_f1: float | None
    majority: float | None  # accuracy of always predicting the most common label
    valence_accuracy: float | None  # over the `valence_count` images whose label has a valence
    valence_majority: float | None  # accuracy of always predicting the most common valence
    valence_count: int
    rule: str
    count: int  # images with a label under the rule
    total: int  # all images
    confusion: list[list[int]]  # C x C: row = annotators' label, column = prediction
    support: list[int]  # images with each label, including those without a prediction
    recall: list[float | None]  # None: no image has this label
    precision: list[float | None]  # None: never predicted for a labelled image
    notes: list[str] = field(default_factory=list)


def dominant_label(
    histogram: Distribution | None, rule: str = HEADLINE, *, labels: Sequence[str] = EMOTIONS
) -> int | None:
    """Return the emotion (index into the labels) that the annotators agree on under `rule`, or None.

    Args:
        histogram: C shares or counts; None or all zero gives None.

    Raises:
        UserError: unknown rule, or not C finite non-negative numbers.
    """
    if rule not in RULES:
        raise UserError(f"rule {rule!r} is unknown; choose from {', '.join(RULES)}")
    shares = _shares(histogram, labels)
    if shares is None:
        return None
    best = int(shares.argmax())
    untied = shares[best] - np.sort(shares)[-2] > TOLERANCE
    agreed = {
        "more_than_half": shares[best] > 0.5 + TOLERANCE,
        "at_least_half": shares[best] >= 0.5 - TOLERANCE and untied,
        "unique_maximum": untied,
    }
    return best if agreed[rule] else None


def _shares(histogram: Distribution | None, labels: Sequence[str]) -> np.ndarray | None:
    """Return the shares (C,), sum 1, or None without votes."""
    if histogram is None:
        return None
    votes = np.asarray(histogram, dtype=np.float64)
    if votes.shape != (len(labels),) or not np.isfinite(votes).all() or (votes < 0).any():
        count = number_word(labels)
        raise UserError(f"an emotion histogram needs {count} numbers of at least 0, not {list(histogram)!r}")
    return votes / votes.sum() if votes.sum() > 0 else None


def emotion_scores(
    predicted: Sequence[int],
    histograms: Sequence[Distribution | None],
    *,
    rule: str = HEADLINE,
    labels: Sequence[str] = EMOTIONS,
) -> EmotionScores:
    """Score N predictions (index into the labels, -1 = none, which counts as wrong) against N histograms.

    macro_f1 is the mean F1 over the emotions that occur among the labels.

    Raises:
        UserError: different lengths, a prediction outside -1..C-1, an unknown rule, a malformed histogram.
    """
    if len(predicted) != len(histograms):
        raise UserError(f"{len(predicted)} predicted emotions for {len(histograms)} histograms")
    wrong = [p for p in predicted if not NO_PREDICTION <= p < len(labels)]
    if wrong:
        raise UserError(f"predicted emotion {wrong[0]} is outside 0..{len(labels) - 1}")
    found = [dominant_label(histogram, rule, labels=labels) for histogram in histograms]
    felt = np.array([NO_LABEL if label is None else label for label in found], dtype=np.int64)
    guesses = np.array(predicted, dtype=np.int64)
    labelled, answered, count = felt != NO_LABEL, guesses != NO_PREDICTION, len(labels)
    confusion = np.zeros((count, count), dtype=np.int64)
    np.add.at(confusion, (felt[labelled & answered], guesses[labelled & answered]), 1)
    support = np.bincount(felt[labelled], minlength=count)
    return EmotionScores(
        **{name: score(value, len(felt)) for name, value in _rule_statistics(guesses, felt, labels).items()},
        valence_count=sum(bool(valence(labels[label])) for label in felt[labelled]),
        rule=rule,
        count=int(labelled.sum()),
        total=len(felt),
        confusion=confusion.tolist(),
        support=support.tolist(),
        recall=_ratios(confusion.diagonal(), support),
        precision=_ratios(confusion.diagonal(), confusion.sum(axis=0)),
        notes=[] if labelled.any() else [f"no emotion accuracy: no image has a label under the rule {rule}"],
    )


def _same_valence(label: int, guess: int, labels: Sequence[str]) -> bool | None:
    """Return None without a label, or if it has no valence."""
    if label == NO_LABEL or not valence(labels[label]):
        return None
    return guess != NO_PREDICTION and (valence(labels[label]) == POSITIVE) == (valence(labels[guess]) == POSITIVE)


def _macro_f1(hits: np.ndarray, support: np.ndarray, guessed: np.ndarray) -> np.ndarray:
    """Return the mean F1 over the emotions with support, on the last axis; NaN without any."""
    f1 = 2 * hits / np.maximum(support + guessed, 1)
    return np.where(support > 0, f1, 0.0).sum(axis=-1) / (support > 0).sum(axis=-1)


def _ratios(hits: np.ndarray, totals: np.ndarray) -> list[float | None]:
    return [float(h / t) if t else None for h, t in zip(hits, totals, strict=True)]


def emotion_report(
    predicted: Sequence[int],
    distributions: Sequence[Distribution | None],
    histograms: Sequence[Distribution | None],
    temperatures: Sequence[float] | None = None,
    *,
    labels: Sequence[str] = EMOTIONS,
) -> dict[str, Any]:
    """Return the section "emotion" of metrics.json for N images.

    Args:
        temperatures: of the distributions (default: 1 each).

    Returns:
        The scores of `emotion_scores` under the headline rule, and under every rule in `rules`. Of the probabilities,
        over the images with a histogram (nll, js, kl, …, ece_answers) or a label under the headline rule (nll_label,
        ece), None without any:
        nll: cross-entropy of the distribution with the annotators' histogram, in nats;
        nll_label: the same with the label alone, −ln of its probability;
        those of trainer.metrics.distributions.MEASURES (js, kl, …): between the histogram and the distribution;
        ece_answers, ece: calibration error of the most likely emotion's probability against the annotators' answers and
        against the label (trainer.metrics.calibration), with their bins in reliability_answers and reliability;
        nll_uncalibrated, ece_uncalibrated, ece_answers_uncalibrated, reliability_answers_uncalibrated: the same at
        temperature 1; temperature: of the images, None if they differ;
        labels: if they are not the nine.

    Raises:
        UserError: as `emotion_scores`; a distribution that is not C non-negative numbers of sum 1.
    """
    by_rule = {rule: asdict(emotion_scores(predicted, histograms, rule=rule, labels=labels)) for rule in RULES}
    rows = emotion_rows(predicted, distributions, histograms, temperatures, labels=labels)
    compared = sum(row["nll"] is not None for row in rows)
    notes = list(by_rule[HEADLINE]["notes"])
    floored = sum(row["floored"] for row in rows)
    if floored:
        notes.append(
            f"in {floored} of {compared} images an emotion that people felt has a predicted probability below "
            f"{SMALLEST:g}, which counts as {SMALLEST:g} in the log loss"
        )
    if any(h is not None for h in histograms) and not compared:
        notes.append("no log loss, distance or calibration: the predictions have no probabilities")
    used = {*(temperatures or (1.0,))}
    return {
        **by_rule[HEADLINE],
        "rules": {rule: {name: scores[name] for name in BY_RULE} for rule, scores in by_rule.items()},
        **{name: score(statistic, len(rows)) for name, statistic in calibration.statistics(rows).items()},
        **calibration.diagrams(rows),
        "temperature": used.pop() if len(used) == 1 else None,
        "probabilities": compared,
        "notes": notes,
        **labels_entry(labels),
    }


def emotion_rows(
    predicted: Sequence[int],
    distributions: Sequence[Distribution | None],
    histograms: Sequence[Distribution | None],
    temperatures: Sequence[float] | None = None,
    *,
    labels: Sequence[str] = EMOTIONS,
) -> list[dict[str, Any]]:
    """Return the values of every image, plain values for JSON.

    They are: emotion, the predicted one's name or None; label, by rule, a name or None; correct, under the headline
    rule, None without a label; and those of trainer.metrics.calibration.compare.
    """
    images = zip(predicted, distributions, histograms, temperatures or [1.0] * len(predicted), strict=True)
    return [
        {
            "emotion": None if guess == NO_PREDICTION else labels[guess],
            "label": {rule: None if label is None else labels[label] for rule, label in felt.items()},
            "correct": None if felt[HEADLINE] is None else guess == felt[HEADLINE],
            **calibration.compare(
                distribution, _shares(histogram, labels), felt[HEADLINE], temperature=temperature, labels=labels
            ),
        }
        for guess, distribution, histogram, temperature in images
        for felt in [{rule: dominant_label(histogram, rule, labels=labels) for rule in RULES}]
    ]


def statistics(rows: Sequence[Mapping[str, Any]], *, labels: Sequence[str] = EMOTIONS) -> dict[str, Statistic]:
    """Return the statistics of the scores of `emotion_report`, from the rows of `emotion_rows`.

    Keys are those of BY_RULE but the counts, under the headline rule, rules.RULE.accuracy and so on under every rule,
    and those of the probabilities.
    """
    found = calibration.statistics(rows)
    guesses = _indices([row["emotion"] for row in rows], labels)
    for rule in RULES:
        by_rule = _rule_statistics(guesses, _indices([row["label"][rule] for row in rows], labels), labels)
        found |= {f"rules.{rule}.{name}": statistic for name, statistic in by_rule.items()}
        found |= by_rule if rule == HEADLINE else {}
    return found


def _rule_statistics(guesses: np.ndarray, felt: np.ndarray, labels: Sequence[str]) -> dict[str, Statistic]:
    labelled = felt != NO_LABEL
    support, guessed = ((values[:, None] == np.arange(len(labels))) & labelled[:, None] for values in (felt, guesses))
    columns = np.concatenate([support & guessed, support, guessed], axis=1)
    valences = [_same_valence(label, guess, labels) for label, guess in zip(felt, guesses, strict=True)]
    signs = np.array([[valence(name) == sign for sign in (POSITIVE, NEGATIVE)] for name in labels])
    return {
        "accuracy": mean(np.where(labelled, guesses == felt, np.nan)),
        "macro_f1": of_sums(columns, lambda sums: _macro_f1(*np.split(sums, 3, axis=1))),
        "majority": of_sums(support, lambda sums: sums.max(axis=1) / sums.sum(axis=1)),
        "valence_accuracy": mean(valences),
        "valence_majority": of_sums(support @ signs, lambda sums: sums.max(axis=1) / sums.sum(axis=1)),
    }


def _indices(names: Sequence[str | None], labels: Sequence[str]) -> np.ndarray:
    index = {None: NO_LABEL} | {name: i for i, name in enumerate(labels)}
    return np.array([index[name] for name in names], dtype=np.int64)
