"""How sure a score is: the bootstrap over images (Efron and Tibshirani, 1993; Koehn, 2004, for two systems).

A replicate is a test of as many images, drawn with replacement from those that were scored. A score is given as a
`Statistic`: a function of `draws`, a float array (replicates, images) that says how often each image is in each
replicate, to the score of each replicate, NaN where it has none. The scores here follow from sums over images, so
`draws @ columns` is all it takes: `mean`, `ratio`, `correlation` and `of_sums` make statistics of values per image.
All draws 1 is the sample itself (`score`).

An interval covers the choice of images and nothing else: neither the training seed nor who the annotators were. What
depends on repetitions among the images has none: captions drawn twice would make "distinct" smaller than it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from common.progress import progress

REPLICATES = 1000
SEED = 2021
LEVEL = 0.95
CELLS = 1 << 20  # of `draws` at a time: 8 MB, whatever the number of images and replicates
SHOWN_FROM = 1 << 26  # draws in all; fewer take seconds
CONSTANT = 1e-12  # a variance this small beside that of the sample is rounding

Statistic = Callable[[np.ndarray], np.ndarray]
Values = Sequence[float | None] | np.ndarray  # one per image; None or NaN: the image does not count


# --- statistics ------------------------------------------------------------------------------------------------------


def of_sums(columns: np.ndarray, formula: Callable[[np.ndarray], np.ndarray]) -> Statistic:
    """`formula` of the sums of `columns` (images, k) over a replicate: (replicates, k) to (replicates,)."""
    columns = np.asarray(columns, dtype=np.float64)

    def statistic(draws: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is NaN, a replicate without the score
            return formula(draws @ columns)

    return statistic


def mean(values: Values) -> Statistic:
    """Mean over the images that count; true and false are 1 and 0."""
    values = floats(values)
    counts = ~np.isnan(values)
    return ratio(np.where(counts, values, 0.0), counts)


def ratio(parts: Values, wholes: Values) -> Statistic:
    """Sum of `parts` by the sum of `wholes`."""
    return of_sums(np.stack([floats(parts), floats(wholes)], axis=1), lambda sums: sums[:, 0] / sums[:, 1])


def correlation(x: Values, y: Values) -> Statistic:
    """Pearson's correlation over the images that have both; NaN where either does not vary."""
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
    """(images,), NaN for None."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


# --- intervals -------------------------------------------------------------------------------------------------------


def score(statistic: Statistic, images: int) -> float | None:
    """The value on the sample itself, None where it has none."""
    if not images:
        return None
    value = float(statistic(np.ones((1, images)))[0])
    return value if np.isfinite(value) else None


def intervals(
    statistics: Mapping[str, Statistic], images: int, *, replicates: int = REPLICATES, seed: int = SEED
) -> dict[str, list[float] | None]:
    """95 % percentile interval [low, high] of every score; all share the same replicates.

    None: fewer than two images, of which no spread can be told, or no score on the sample itself. Replicates without
    the score (none of the images that count was drawn) are left out.
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
    """Compares two runs, `second` minus `first`, on the same replicates of the same images in the same order.

    Returns:
        for every score that both have a value of: first, second, difference; interval, 95 % of the difference (None
        with fewer than two images); flips, the share of replicates in which the difference has not the sign that it has
        on the sample; and p, two-sided: twice the flips, a replicate added to either side so that it is never 0
        (Davison and Hinkley, 1997), and 1 at most. No difference at all has p = 1.
    """
    names = [name for name in first if name in second]
    names = [name for name in names if None not in (score(first[name], images), score(second[name], images))]
    changes = {name: _difference(first[name], second[name]) for name in names}
    found = _replicates(changes, images, replicates, seed)
    return {name: _compared(first[name], second[name], found[name], images) for name in names}


def _difference(first: Statistic, second: Statistic) -> Statistic:
    return lambda draws: second(draws) - first(draws)


def _compared(first: Statistic, second: Statistic, changes: np.ndarray, images: int) -> dict[str, object]:
    values = [score(statistic, images) for statistic in (first, second)]
    difference = values[1] - values[0]
    changes = changes[np.isfinite(changes)]
    flipped = changes * np.sign(difference) <= 0
    flips = int(flipped.sum())
    return {
        "first": values[0],
        "second": values[1],
        "difference": difference,
        "interval": _percentiles(changes) if images > 1 else None,
        "flips": flips / max(1, len(changes)),
        "p": min(1.0, 2 * (flips + 1) / (len(changes) + 1)),
    }


def _percentiles(values: np.ndarray) -> list[float] | None:
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    tail = (1 - LEVEL) / 2
    return [float(edge) for edge in np.quantile(values, [tail, 1 - tail])]


def _replicates(statistics: Mapping[str, Statistic], images: int, replicates: int, seed: int) -> dict[str, np.ndarray]:
    """Every score of every replicate."""
    parts: dict[str, list[np.ndarray]] = {name: [np.empty(0)] for name in statistics}
    if images and statistics:
        with progress(replicates, "bootstrap", unit="replicate", enabled=images * replicates >= SHOWN_FROM) as bar:
            for draws in _draws(images, replicates, seed):
                for name, statistic in statistics.items():
                    parts[name].append(statistic(draws))
                bar.update(len(draws))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _draws(images: int, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image is in each replicate, some replicates at a time; the same whatever their number."""
    rng = np.random.default_rng(seed)
    at_once = max(1, CELLS // images)
    for start in range(0, replicates, at_once):
        rows = min(at_once, replicates - start)
        cells = rng.integers(images, size=(rows, images))
        cells += images * np.arange(rows)[:, None]
        yield np.bincount(cells.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float64)
