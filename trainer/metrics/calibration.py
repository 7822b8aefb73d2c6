"""How well predicted probabilities of emotions agree with what the annotators felt, and how to mend them.

What is predicted is how the answers to a picture are spread: of the people who look at it, which share will say awe?
Log loss and Jensen-Shannon distance hold all the probabilities against the annotators' shares. The calibration error
is that of Guo et al. (2017): the likeliest emotion's probability against how often it is right, in 15 bins of equal
width, (low, high]. What is right can be read in two ways, so there are two of it:

- against the answers: the mean share of annotators who gave the likeliest emotion. A model that knows how answers are
  spread has an error of 0, also where people disagree.
- against the label: how often the likeliest emotion has more than half of the votes. Where 60 of 100 people say awe,
  the label is awe, and a model that says 60 percent counts as 40 too unsure. The error is 0 for a model that predicts
  majorities, and large for one that is right about people who disagree.

Logarithms are natural in the log loss (nats) and of base 2 in the Jensen-Shannon distance, which is the square root of
the divergence, from 0 to 1, as in scipy.spatial.distance.jensenshannon.

Probabilities are mended by a temperature that is fitted on validation (Guo et al., 2017) and divides their logarithms:
above 1 it takes certainty away, below 1 it adds some. The order of the emotions, and so every accuracy, stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from data.emotions import EMOTIONS, number_of
from trainer.metrics.bootstrap import Statistic, Values, floats, mean, of_sums, score

BINS = 15
# A probability below this counts as this in the log likelihood, which would otherwise be infinite: 27.6 nats at most.
SMALLEST = 1e-12
SUM_TOLERANCE = 1e-2  # probabilities written with three digits
MEANS = ("nll", "nll_uncalibrated", "nll_label", "js")
# Calibration errors: the figures of an image that each is made of.
ERRORS = {
    "ece": ("confidence", "likeliest_correct"),
    "ece_uncalibrated": ("confidence_uncalibrated", "likeliest_correct"),
    "ece_answers": ("confidence", "likeliest_share"),
    "ece_answers_uncalibrated": ("confidence_uncalibrated", "likeliest_share"),
}
DIAGRAMS = {  # and the key of their bins
    "ece": "reliability",
    "ece_answers": "reliability_answers",
    "ece_answers_uncalibrated": "reliability_answers_uncalibrated",
}
TEMPERATURES = (0.05, 20.0)  # bounds of what is fitted
HALVINGS = 60  # of the interval of 1 / T: to the last digit of a double
DIGITS = 6  # of a fitted temperature: more than any number of images can tell, fewer than rounding can change


# --- an image --------------------------------------------------------------------------------------------------------


def compare(
    distribution: Sequence[float] | None,
    shares: np.ndarray | None,
    label: int | None,
    *,
    temperature: float = 1.0,
    labels: Sequence[str] = EMOTIONS,
) -> dict[str, Any]:
    """What a predicted distribution of an image is worth, plain values for JSON, None where it cannot be told.

    Args:
        distribution: C probabilities; shares: (C,) of the annotators, of sum 1; label: the emotion they agree on.
        temperature: that gave the distribution, so that the one before calibration can be judged too.
        labels: names of the C emotions.

    Returns:
        confidence: the likeliest emotion's probability; likeliest_share: the share of annotators who gave it;
        likeliest_correct: whether it is the label; nll, nll_label: cross-entropy with `shares` and with the label; js:
        Jensen-Shannon distance to `shares`; confidence_uncalibrated, nll_uncalibrated: the same before calibration;
        floored: whether SMALLEST had to stand in for the probability of an emotion that has a share.

    Raises:
        UserError: not C numbers of at least 0 and sum 1.
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
        row["js"] = float(jensen_shannon(shares, p))
        row["floored"] = bool(((shares > 0) & (p < SMALLEST)).any())
    if label is not None:
        row["likeliest_correct"] = int(p.argmax()) == label
        row["nll_label"] = float(cross_entropy(np.eye(len(p))[label], p))
    return row


def _checked(distribution: Sequence[float], labels: Sequence[str]) -> np.ndarray:
    p = np.asarray(distribution, dtype=np.float64)
    if p.shape != (len(labels),) or not (p >= 0).all() or not abs(p.sum() - 1) <= SUM_TOLERANCE:
        raise UserError(
            f"a distribution of emotions needs {number_of(labels)} numbers of at least 0 and sum 1, not "
            f"{list(distribution)!r}"
        )
    return p / p.sum()


def cross_entropy(shares: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """−Σ shares · ln probabilities over the last axis; emotions without a share do not enter."""
    return -(shares * np.log(np.maximum(probabilities, SMALLEST))).sum(axis=-1)


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon distance of two distributions on the last axis; zeros need no floor, for 0 · log 0 is 0."""
    middle = (p + q) / 2
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return np.sqrt(np.clip(divergence, 0.0, 1.0))  # rounding, else


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    seen = p > 0
    return np.where(seen, p * np.log2(np.where(seen, p, 1.0) / np.where(seen, q, 1.0)), 0.0).sum(axis=-1)


# --- all images ------------------------------------------------------------------------------------------------------


def statistics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Statistic]:
    """nll, nll_label, js, ece, ece_answers and those of before calibration, from what `compare` gave of every image."""
    means = {name: mean([row[name] for row in rows]) for name in MEANS}
    return means | {name: calibration_error(*_columns(rows, keys)) for name, keys in ERRORS.items()}


def diagrams(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, float | int | None]]]:
    """Bins of the reliability diagrams, from the same."""
    return {key: reliability(*_columns(rows, ERRORS[name])) for name, key in DIAGRAMS.items()}


def _columns(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[list[float | None]]:
    return [[row[key] for row in rows] for key in keys]


def reliability(confidence: Values, right: Values) -> list[dict[str, float | int | None]]:
    """Bins of a reliability diagram: low, high, and the mean confidence, accuracy and count of the images inside.

    Args:
        confidence: (N,) probability of the likeliest emotion; right: (N,) the share of annotators who gave it, or
            whether it is the label. Images with None or NaN for either do not count.

    A bin without images has confidence and accuracy None.
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
    """Expected calibration error; arguments and images that count as of `reliability`.

    A model without any error would not have 0 on a finite test either, as chance makes gaps in both directions and
    they add up. For the same reason replicates of a bootstrap have larger errors than the sample; with few images the
    interval may lie above the score.
    """
    confidence, right, inside = _binned(confidence, right)
    columns = np.concatenate([inside * (right - confidence)[:, None], inside.sum(axis=1, keepdims=True)], axis=1)
    return of_sums(columns, lambda sums: np.abs(sums[:, :-1]).sum(axis=1) / sums[:, -1])


def _binned(confidence: Values, right: Values) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both as floats (N,), and (N, BINS), 1 where the image is in the bin; zeros alone for an image without either."""
    confidence, right = floats(confidence), floats(right)
    counts = ~np.isnan(confidence) & ~np.isnan(right)
    edges = np.arange(1, BINS) / BINS
    inside = (np.searchsorted(edges, confidence)[:, None] == np.arange(BINS)) & counts[:, None]
    return np.where(counts, confidence, 0.0), np.where(counts, right, 0.0), inside


# --- temperature -----------------------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """How far probabilities are from the annotators' answers; None where nobody answered."""

    nll: float | None
    ece: float | None  # against the answers


def fit_temperature(log_probs: np.ndarray, histograms: np.ndarray) -> float:
    """The temperature T at which softmax(log_probs / T) has the least mean cross-entropy with the annotators' shares.

    That is convex in 1 / T, so bisection finds the one zero of its slope, whatever the order of the images.

    Args:
        log_probs: (N, C), uncalibrated; histograms: (N, C), shares or counts. Images without answers do not count.

    Returns:
        T within TEMPERATURES; 1 where no image counts, or the model never prefers one emotion to another.
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


def judge(log_probs: np.ndarray, histograms: np.ndarray, temperature: float = 1.0) -> Fit:
    """Log loss and calibration error of softmax(log_probs / T); arguments and images that count as above."""
    scores, shares = _answered(log_probs, histograms)
    p = softmax(scores / temperature)
    likeliest = p.argmax(axis=-1, keepdims=True)
    error = calibration_error(*(np.take_along_axis(values, likeliest, axis=-1)[:, 0] for values in (p, shares)))
    return Fit(float(cross_entropy(shares, p).mean()) if len(p) else None, score(error, len(p)))


def _answered(log_probs: np.ndarray, histograms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities, as far as they are finite, and shares of the images that have answers."""
    scores, votes = (np.asarray(values, dtype=np.float64) for values in (log_probs, histograms))
    if not len(scores):
        return np.empty((0, 1)), np.empty((0, 1))
    counts = (votes.sum(axis=-1) > 0) & np.isfinite(scores).all(axis=-1)
    return scores[counts], votes[counts] / votes[counts].sum(axis=-1, keepdims=True)


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """p ** (1 / T), brought back to sum 1 on the last axis; `tempered(…, 1 / T)` undoes it."""
    with np.errstate(divide="ignore"):  # a probability of 0 stays 0
        return softmax(np.log(probabilities) / temperature)


def softmax(scores: np.ndarray) -> np.ndarray:
    """On the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
