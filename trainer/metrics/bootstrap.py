"""Confidence intervals by the bootstrap over images (Efron and Tibshirani, 1993; Koehn, 2004, for two systems).

A replicate is a test set of the same size, drawn with replacement from the scored images. A score is a `Statistic`: a
function of `draws`, a float array (replicates, images) of how often each image occurs in each replicate, to the score
of each replicate, NaN if undefined. The scores here follow from sums over images, so `draws @ columns` is all they
need: `mean`, `ratio`, `correlation` and `of_sums` build statistics from values per image. With all draws 1, the
statistic is the score of the sample itself (`score`).

An interval covers the choice of images only, not the training seed or the choice of annotators. Scores that depend on
repetitions among the images have none: captions drawn twice would lower "distinct".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from common.progress import progress

REPLICATES = 1000
SEED = 2021
LEVEL = 0.95
CELLS = 1 << 20  # of `draws` at a time: 8 MB, whatever the number of images and replicates
SHOWN_FROM = 1 << 26  # draws in total; fewer take seconds
CONSTANT = 1e-12  # a variance this small relative to that of the sample is rounding

Statistic = Callable[[np.ndarray], np.ndarray]
Values = Sequence[float | None] | np.ndarray  # one per image; None or NaN: the image does not count


def of_sums(columns: np.ndarray, formula: Callable[[np.ndarray], np.ndarray]) -> Statistic:
    """Return `formula` of the sums of `columns` (images, k) over a replicate: (replicates, k) to (replicates,)."""
    columns = np.asarray(columns, dtype=np.float64)

    def statistic(draws: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is NaN: the score is undefined
            return formula(draws @ columns)

    return statistic


def mean(values: Values) -> Statistic:
    """Return the mean over the images that count; true and false are 1 and 0."""
    values = floats(values)
    counts = ~np.isnan(values)
    return ratio(np.where(counts, values, 0.0), counts)


def ratio(parts: Values, wholes: Values) -> Statistic:
    """Return the sum of `parts` divided by the sum of `wholes`."""
    return of_sums(np.stack([floats(parts), floats(wholes)], axis=1), lambda sums: sums[:, 0] / sums[:, 1])


def correlation(x: Values, y: Values) -> Statistic:
    """Return Pearson's correlation over the images that have both values; NaN if either is constant."""
    x, y = floats(x), floats(y)
    both = ~np.isnan(x) & ~np.isnan(y)
    x, y = (np.where(both, v - v[both].mean() if both.any() else 0.0, 0.0) for v in (x, y))  # for exact sums of squares
    smallest = [CONSTANT * (v @ v) / max(1, both.sum()) for v in (x, y)]

    def formula(sums: np.ndarray) -> np.ndarray:
        n, x, y, xx, yy, xy = sums.T
        x, y = x / n, y / n
        variances = [xx / n - x * x, yy / n - y * y]
        varies = (variances[0] > smallest[0]) & (variances[1] > smallest[1])
        return np.where(varies, np.clip((xy / n - x * y) / np.sqrt(variances[0] * variances[1]), -1, 1), np.nan)

    return of_sums(np.stack([both, x, y, x * x, y * y, x * y], axis=1), formula)


def floats(values: Values) -> np.ndarray:
    """Return the values as floats (images,), None as NaN."""
    return np.asarray(values, dtype=np.float64)


def score(statistic: Statistic, images: int) -> float | None:
    """Return the value on the sample itself, None if undefined."""
    if not images:
        return None
    value = float(statistic(np.ones((1, images)))[0])
    return value if np.isfinite(value) else None


def intervals(
    statistics: Mapping[str, Statistic], images: int, *, replicates: int = REPLICATES, seed: int = SEED
) -> dict[str, list[float] | None]:
    """Return the 95 % percentile interval [low, high] of every score; all share the same replicates.

    The interval is None for fewer than two images, or if the score of the sample itself is undefined. Replicates in
    which the score is undefined (none of the images that count was drawn) are ignored.
    """
    found = _replicates(statistics, images, replicates, seed)
    return {
        name: _percentiles(found[name]) if images > 1 and score(statistic, images) is not None else None
        for name, statistic in statistics.items()
    }


def paired(
    first: Mapping[str, Statistic],
    second: Mapping[str, Statistic],
    images: int,
    *,
    replicates: int = REPLICATES,
    seed: int = SEED,
) -> dict[str, dict[str, object]]:
    """Compare two runs, `second` minus `first`, on the same replicates of the same images in the same order.

    Returns:
        For every score that is defined in both runs: first, second, difference; interval, 95 % of the difference (None
        for fewer than two images); flips, the share of replicates in which the difference has another sign than on the
        sample; and p, two-sided: twice the flips, with one replicate added to either side so that it is never 0
        (Davison and Hinkley, 1997), and at most 1. Identical scores have p = 1.
    """
    scores = {name: (score(first[name], images), score(second[name], images)) for name in first if name in second}
    scores = {name: pair for name, pair in scores.items() if None not in pair}
    changes = {name: lambda draws, a=first[name], b=second[name]: b(draws) - a(draws) for name in scores}
    found = _replicates(changes, images, replicates, seed)
    return {name: _compared(*pair, found[name], images) for name, pair in scores.items()}


def _compared(first: float, second: float, changes: np.ndarray, images: int) -> dict[str, object]:
    difference = second - first
    changes = changes[np.isfinite(changes)]
    flips = int((changes * np.sign(difference) <= 0).sum())
    return {
        "first": first,
        "second": second,
        "difference": difference,
        "interval": _percentiles(changes) if images > 1 else None,
        "flips": flips / max(1, len(changes)),
        "p": min(1.0, 2 * (flips + 1) / (len(changes) + 1)),
    }


def _percentiles(values: np.ndarray) -> list[float] | None:
    values = values[np.isfinite(values)]
    tail = (1 - LEVEL) / 2
    return np.quantile(values, [tail, 1 - tail]).tolist() if len(values) else None


def _replicates(statistics: Mapping[str, Statistic], images: int, replicates: int, seed: int) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {name: [np.empty(0)] for name in statistics}
    if images and statistics:
        with progress(replicates, "bootstrap", unit="replicate", enabled=images * replicates >= SHOWN_FROM) as bar:
            for draws in _draws(images, replicates, seed):
                for name, statistic in statistics.items():
                    parts[name].append(statistic(draws))
                bar.update(len(draws))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _draws(images: int, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """Yield `draws` in portions of some replicates; the random stream does not depend on their size."""
    rng = np.random.default_rng(seed)
    at_once = max(1, CELLS // images)
    for start in range(0, replicates, at_once):
        rows = min(at_once, replicates - start)
        cells = rng.integers(images, size=(rows, images))
        cells += images * np.arange(rows)[:, None]
        yield np.bincount(cells.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float64)
