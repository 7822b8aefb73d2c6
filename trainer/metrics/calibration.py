"""Log loss, distances and calibration of predicted emotion probabilities, and temperature scaling.

The probabilities predict how the annotators' answers to an image are distributed. Log loss and the measures of
trainer.metrics.distributions compare all of them with the annotators' shares. The calibration error is that of Guo et
al. (2017): the most likely emotion's probability against how often it is right, in 15 bins of equal width, (low, high].
It is measured in two ways:

- against the answers: right is the share of annotators who gave the most likely emotion. A model that predicts the
  distribution of the answers has an error of 0, also where people disagree.
- against the label: right is whether the most likely emotion has more than half of the votes. If 60 of 100 people feel
  awe, the label is awe, and a probability of 60 % counts as 40 points underconfident. A model that predicts majorities
  has an error of 0; one that predicts disagreement has a large one.

The log loss is in nats.

The temperature is fitted on the validation set and divides the log-probabilities: above 1 the distribution becomes
flatter, below 1 sharper. The order of the emotions, and so every accuracy, is unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from data.emotions import EMOTIONS, number_word
from trainer.metrics.bootstrap import Statistic, Values, floats, mean, of_sums, score
from trainer.metrics.distributions import MEASURES, SMALLEST

BINS = 15
SUM_TOLERANCE = 1e-2  # probabilities written with three digits
MEANS = ("nll", "nll_uncalibrated", "nll_label", *MEASURES)
ERRORS = {  # calibration error: the figures per image that it is computed from
    "ece": ("confidence", "likeliest_correct"),
    "ece_uncalibrated": ("confidence_uncalibrated", "likeliest_correct"),
    "ece_answers": ("confidence", "likeliest_share"),
    "ece_answers_uncalibrated": ("confidence_uncalibrated", "likeliest_share"),
}
DIAGRAMS = {  # calibration error: key of its bins
    "ece": "reliability",
    "ece_answers": "reliability_answers",
    "ece_answers_uncalibrated": "reliability_answers_uncalibrated",
}
TEMPERATURES = (0.05, 20.0)  # bounds of the fit
HALVINGS = 60  # of the interval of 1 / T: down to double precision
DIGITS = 6  # of a fitted temperature: finer than sampling noise, coarser than rounding error


def compare(
    distribution: Sequence[float] | None,
    shares: np.ndarray | None,
    label: int | None,
    *,
    temperature: float = 1.0,
    labels: Sequence[str] = EMOTIONS,
) -> dict[str, Any]:
    """Return the scores of one image's predicted distribution, plain values for JSON, None if undefined.

    Args:
        distribution: C probabilities; shares: (C,) of the annotators, sum 1; label: the emotion they agree on.
        temperature: of the distribution, from which the uncalibrated one is recovered.
        labels: names of the C emotions.

    Returns:
        confidence: probability of the most likely emotion; likeliest_share: share of annotators who gave it;
        likeliest_correct: whether it is the label; nll, nll_label: cross-entropy with `shares` and with the label; js,
        kl and the other MEASURES: of `shares` and the distribution; confidence_uncalibrated, nll_uncalibrated: the same
        before calibration; floored: whether SMALLEST replaced the probability of an emotion that has a share.

    Raises:
        UserError: not C non-negative numbers of sum 1.
    """
    keys = ("confidence", "confidence_uncalibrated", "likeliest_share", "likeliest_correct", *MEANS)
    row = dict.fromkeys(keys) | {"floored": False}
    if distribution is None:
        return row
    p = _checked(distribution, labels)
    raw = tempered(p, 1 / temperature) if temperature != 1 else p
    row["confidence"], row["confidence_uncalibrated"] = float(p.max()), float(raw.max())
    if shares is not None:
        row["likeliest_share"] = float(shares[p.argmax()])
        row["nll"] = float(cross_entropy(shares, p))
        row["nll_uncalibrated"] = float(cross_entropy(shares, raw))
        row |= {name: float(measure(shares, p)) for name, measure in MEASURES.items()}
        row["floored"] = bool(((shares > 0) & (p < SMALLEST)).any())
    if label is not None:
        row["likeliest_correct"] = int(p.argmax()) == label
        row["nll_label"] = float(cross_entropy(np.eye(len(p))[label], p))
    return row


def _checked(distribution: Sequence[float], labels: Sequence[str]) -> np.ndarray:
    p = np.asarray(distribution, dtype=np.float64)
    if p.shape != (len(labels),) or not (p >= 0).all() or not abs(p.sum() - 1) <= SUM_TOLERANCE:
        raise UserError(
            f"a distribution of emotions needs {number_word(labels)} numbers of at least 0 and sum 1, not "
            f"{list(distribution)!r}"
        )
    return p / p.sum()


def cross_entropy(shares: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return −Σ shares · ln probabilities over the last axis."""
    return -(shares * np.log(np.maximum(probabilities, SMALLEST))).sum(axis=-1)


def statistics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Statistic]:
    """Return the statistics of MEANS and ERRORS from the rows of `compare`."""
    means = {name: mean([row[name] for row in rows]) for name in MEANS}
    return means | {
        name: calibration_error(*([row[key] for row in rows] for key in keys)) for name, keys in ERRORS.items()
    }


def diagrams(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, float | int | None]]]:
    """Return the bins of the reliability diagrams from the rows of `compare`."""
    return {bins: reliability(*([row[key] for row in rows] for key in ERRORS[name])) for name, bins in DIAGRAMS.items()}


def reliability(confidence: Values, right: Values) -> list[dict[str, float | int | None]]:
    """Return the bins of a reliability diagram: low, high, mean confidence and accuracy (None if empty), count.

    Args:
        confidence: (N,) probability of the most likely emotion; right: (N,) the share of annotators who gave it, or
            whether it is the label. Images with None or NaN in either do not count.
    """
    confidence, right, inside = _binned(confidence, right)
    counts = inside.sum(axis=0)
    means = [(values @ inside) / np.maximum(counts, 1) for values in (confidence, right)]
    return [
        {
            "low": i / BINS,
            "high": (i + 1) / BINS,
            "confidence": float(means[0][i]) if counts[i] else None,
            "accuracy": float(means[1][i]) if counts[i] else None,
            "count": int(counts[i]),
        }
        for i in range(BINS)
    ]


def calibration_error(confidence: Values, right: Values) -> Statistic:
    """Return the expected calibration error; arguments as in `reliability`.

    On a finite test even a perfectly calibrated model has an error above 0, as random gaps of both signs add up. For
    the same reason bootstrap replicates have larger errors than the sample: the interval may lie above the score.
    """
    confidence, right, inside = _binned(confidence, right)
    columns = np.concatenate([inside * (right - confidence)[:, None], inside.sum(axis=1, keepdims=True)], axis=1)
    return of_sums(columns, lambda sums: np.abs(sums[:, :-1]).sum(axis=1) / sums[:, -1])


def _binned(confidence: Values, right: Values) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return both as floats (N,), and membership (N, BINS), all zero for an image that lacks either."""
    confidence, right = floats(confidence), floats(right)
    counts = ~np.isnan(confidence) & ~np.isnan(right)
    edges = np.arange(1, BINS) / BINS
    inside = (np.searchsorted(edges, confidence)[:, None] == np.arange(BINS)) & counts[:, None]
    return np.where(counts, confidence, 0.0), np.where(counts, right, 0.0), inside


class Fit(NamedTuple):
    nll: float | None
    ece: float | None  # against the answers


def fit_temperature(log_probs: np.ndarray, histograms: np.ndarray) -> float:
    """Return the temperature T that minimizes the mean cross-entropy of softmax(log_probs / T) with the shares.

    The loss is convex in 1 / T, so bisection finds the zero of its slope.

    Args:
        log_probs: (N, C), uncalibrated; histograms: (N, C), shares or counts. Images without answers do not count.

    Returns:
        T within TEMPERATURES; 1 if no image counts or all distributions are uniform.
    """
    scores, shares = _answered(log_probs, histograms)
    felt = (shares * scores).sum()

    def slope(inverse: float) -> float:
        return (softmax(inverse * scores) * scores).sum() - felt

    low, high = (1 / bound for bound in reversed(TEMPERATURES))
    if slope(high) - slope(low) <= 1e-9 * len(scores):
        return 1.0
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return round(1 / middle, DIGITS)


def stored_temperature(value: Any) -> float:
    """Return a temperature from a file; raises ValueError if `fit_temperature` cannot have returned it."""
    low, high = TEMPERATURES
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"temperature {value!r} is not a number from {low} to {high}")
    return float(value)


def judge(log_probs: np.ndarray, histograms: np.ndarray, temperature: float = 1.0) -> Fit:
    """Return log loss and calibration error of softmax(log_probs / T), None without answers."""
    scores, shares = _answered(log_probs, histograms)
    p = softmax(scores / temperature)
    likeliest = p.argmax(axis=-1, keepdims=True)
    error = calibration_error(*(np.take_along_axis(values, likeliest, axis=-1)[:, 0] for values in (p, shares)))
    return Fit(float(cross_entropy(shares, p).mean()) if len(p) else None, score(error, len(p)))


def _answered(log_probs: np.ndarray, histograms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probabilities and shares of the images with answers and finite log-probabilities."""
    scores, votes = (np.asarray(values, dtype=np.float64) for values in (log_probs, histograms))
    if not len(scores):
        return np.empty((0, 1)), np.empty((0, 1))
    counts = (votes.sum(axis=-1) > 0) & np.isfinite(scores).all(axis=-1)
    return scores[counts], votes[counts] / votes[counts].sum(axis=-1, keepdims=True)


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return p ** (1 / T), normalized on the last axis; `tempered(…, 1 / T)` is the inverse."""
    with np.errstate(divide="ignore"):  # a probability of 0 stays 0
        return softmax(np.log(probabilities) / temperature)


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
