"""Distances and similarities of label distributions: the annotators' shares p and the predicted probabilities q.

The six measures that label distribution learning reports (Geng, IEEE TKDE 2016, Table 1) and the Jensen-Shannon
distance. Each takes arrays (…, C) of distributions and returns (…). Zeros: the terms of an emotion with p = q = 0 are 0
in Clark and Canberra, and those with p = 0 are 0 in Kullback-Leibler, the limits of Geng's formulas, which leave them
undefined; Kullback-Leibler, infinite for p > 0 and q = 0, takes q as SMALLEST there. As most emotions of a picture have
no votes, Clark and Canberra, in which each such emotion with q > 0 counts as 1, are mostly counts of these emotions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SMALLEST = 1e-12  # lower bound of a probability in a logarithm: at most 27.6 nats instead of infinity


def relative_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the Kullback-Leibler divergence Σ p · ln(p / q) in nats."""
    return (p * (np.log(np.where(p > 0, p, 1.0)) - np.log(np.maximum(q, SMALLEST)))).sum(axis=-1)


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the square root of the divergence to base 2, from 0 to 1."""
    middle = (p + q) / 2
    divergence = (relative_entropy(p, middle) + relative_entropy(q, middle)) / (2 * np.log(2))
    return np.sqrt(np.clip(divergence, 0.0, 1.0))  # against rounding


def _ratios(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return |p − q| / (p + q), 0 for 0 / 0."""
    return np.abs(p - q) / np.where(p + q > 0, p + q, 1.0)


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "js": jensen_shannon,
    "kl": relative_entropy,
    "chebyshev": lambda p, q: np.abs(p - q).max(axis=-1),
    "clark": lambda p, q: np.sqrt((_ratios(p, q) ** 2).sum(axis=-1)),
    "canberra": lambda p, q: _ratios(p, q).sum(axis=-1),
    "cosine": lambda p, q: (p * q).sum(axis=-1) / (np.linalg.norm(p, axis=-1) * np.linalg.norm(q, axis=-1)),
    "intersection": lambda p, q: np.minimum(p, q).sum(axis=-1),
}
