"""How well predicted probabilities of the nine emotions agree with what the annotators felt.

Logarithms are natural in the negative log likelihood (nats) and of base 2 in the Jensen-Shannon distance, which is the
square root of the divergence, from 0 to 1, as in scipy.spatial.distance.jensenshannon. The calibration error is that of
Guo et al. (2017): the likeliest emotion's probability against how often that emotion is right, in 15 bins of equal
width, (low, high].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.emotions import EMOTIONS
from errors import UserError
from trainer.metrics.bootstrap import Statistic, Values, floats, of_sums

BINS = 15
# A probability below this counts as this in the log likelihood, which would otherwise be infinite: 27.6 nats at most.
SMALLEST = 1e-12
SUM_TOLERANCE = 1e-2  # nine probabilities written with three digits
MEANS = ("nll", "nll_label", "js")


def compare(distribution: Sequence[float] | None, shares: np.ndarray | None, label: int | None) -> dict[str, Any]:
    """What a predicted distribution of an image is worth, plain values for JSON, None where it cannot be told.

    Args:
        distribution: nine probabilities; shares: (9,) of the annotators, of sum 1; label: the emotion they agree on.

    Returns:
        confidence: the likeliest emotion's probability; likeliest_correct: whether it is the label; nll, nll_label:
        cross-entropy with `shares` and with the label; js: Jensen-Shannon distance to `shares`; floored: whether
        SMALLEST had to stand in for the probability of an emotion that has a share.

    Raises:
        UserError: not nine numbers of at least 0 and sum 1.
    """
    row = dict.fromkeys(("confidence", "likeliest_correct", *MEANS), None) | {"floored": False}
    if distribution is None:
        return row
    p = _checked(distribution)
    row["confidence"] = float(p.max())
    if shares is not None:
        row["nll"] = float(cross_entropy(shares, p))
        row["js"] = float(jensen_shannon(shares, p))
        row["floored"] = bool(((shares > 0) & (p < SMALLEST)).any())
    if label is not None:
        row["likeliest_correct"] = int(p.argmax()) == label
        row["nll_label"] = float(cross_entropy(np.eye(len(p))[label], p))
    return row


def _checked(distribution: Sequence[float]) -> np.ndarray:
    p = np.asarray(distribution, dtype=np.float64)
    if p.shape != (len(EMOTIONS),) or not (p >= 0).all() or not abs(p.sum() - 1) <= SUM_TOLERANCE:
        raise UserError(
            f"a distribution of emotions needs nine numbers of at least 0 and sum 1, not {list(distribution)!r}"
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


def reliability(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, float | int | None]]:
    """Bins of a reliability diagram: low, high, and the mean confidence, accuracy and count of the images inside.

    Args:
        confidence: (N,) probability of the likeliest emotion; correct: (N,) whether it was right.

    A bin without images has confidence and accuracy None.
    """
    inside = _bins(confidence)
    counts = inside.sum(axis=0)
    means = [(values @ inside) / np.maximum(counts, 1) for values in (confidence, correct.astype(np.float64))]
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


def calibration_error(confidence: Values, correct: Values) -> Statistic:
    """Expected calibration error; images of confidence None or NaN do not count.

    Replicates of a bootstrap have larger errors than the sample, as gaps in either direction add up; with few images
    the interval may lie above the score.
    """
    confidence = floats(confidence)
    counts = ~np.isnan(confidence)
    gaps = np.where(counts, floats(correct) - confidence, 0.0)
    columns = np.concatenate([_bins(confidence) * gaps[:, None], counts[:, None]], axis=1)
    return of_sums(columns, lambda sums: np.abs(sums[:, :-1]).sum(axis=1) / sums[:, -1])


def _bins(confidence: np.ndarray) -> np.ndarray:
    """(N, BINS), 1 where the image is in the bin; a row of zeros for NaN."""
    edges = np.arange(1, BINS) / BINS
    return (np.searchsorted(edges, confidence)[:, None] == np.arange(BINS)) & ~np.isnan(confidence)[:, None]
