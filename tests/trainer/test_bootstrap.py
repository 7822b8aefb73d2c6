"""Bootstrap intervals and paired comparisons: known answers, coverage, and undefined cases."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.metrics import bootstrap
from trainer.metrics.bootstrap import correlation, intervals, mean, of_sums, paired, ratio, score


def replicates_by_index(images: int, count: int, seed: int) -> np.ndarray:
    """Return the same replicates as lists of image indices."""
    return np.random.default_rng(seed).integers(images, size=(count, images))


def test_sample_scores_by_hand():
    assert score(mean([1, 2, None, 6]), 4) == 3
    assert score(mean([True, False, None, float("nan")]), 4) == 0.5
    assert score(ratio([1, 2, 3], [2, 2, 8]), 3) == 0.5
    assert score(correlation([1, 2, 3, 9], [2, 4, 6, None]), 4) == pytest.approx(1, abs=1e-12)
    assert score(correlation([1, 2, 3], [1, 0, 1]), 3) == pytest.approx(0, abs=1e-12)
    assert score(correlation([1, 2, 3, 4], [2, 1, 4, 3]), 4) == pytest.approx(0.6, abs=1e-12)


@pytest.mark.parametrize("statistic", [mean([None, None]), ratio([0, 0], [0, 0]), correlation([1, 1], [1, 2])])
def test_undefined_score_is_none(statistic):
    assert score(statistic, 2) is None
    assert intervals({"x": statistic}, 2)["x"] is None
    assert paired({"x": statistic}, {"x": statistic}, 2) == {}


def test_replicates_match_plain_resampling():
    rng = np.random.default_rng(5)
    x, y = rng.normal(1e6, 1, size=(2, 40))  # far from 0, where sums of squares lose precision
    values = np.where(rng.random(40) < 0.2, np.nan, x)
    statistics = {"mean": mean(values), "ratio": ratio(x, y), "correlation": correlation(x, y)}
    drawn = replicates_by_index(40, 200, seed=9)
    plain = {
        "mean": [np.nanmean(values[i]) for i in drawn],
        "ratio": [x[i].sum() / y[i].sum() for i in drawn],
        "correlation": [np.corrcoef(x[i], y[i])[0, 1] for i in drawn],
    }
    found = intervals(statistics, 40, replicates=200, seed=9)
    for name, values in plain.items():
        assert found[name] == pytest.approx(np.quantile(values, [0.025, 0.975]), rel=1e-7), name


def test_intervals_have_nominal_coverage():
    rng = np.random.default_rng(0)
    hits = {"mean": 0, "share": 0, "correlation": 0}
    for trial in range(300):
        x = rng.normal(size=80)
        y = 0.6 * x + 0.8 * rng.normal(size=80)  # correlation .6
        sample = {"mean": mean(x), "share": mean(x > 0), "correlation": correlation(x, y)}
        truth = {"mean": 0, "share": 0.5, "correlation": 0.6}
        for name, (low, high) in intervals(sample, 80, replicates=400, seed=trial).items():
            hits[name] += low <= truth[name] <= high
    for name, count in hits.items():
        assert 0.90 <= count / 300 <= 0.98, name


def test_fewer_than_two_images_have_no_interval():
    assert intervals({"x": mean([0.5])}, 1) == {"x": None}
    assert intervals({"x": mean([])}, 0) == {"x": None}
    assert intervals({}, 5) == {}
    alone = paired({"x": mean([0.5])}, {"x": mean([0.7])}, 1)["x"]
    assert alone["difference"] == pytest.approx(0.2) and alone["interval"] is None


def test_constant_values_have_a_zero_width_interval():
    assert intervals({"x": mean([0.25] * 10)}, 10) == {"x": [0.25, 0.25]}


def test_undefined_replicates_are_ignored():
    low, high = intervals({"x": mean([3.0] + [None] * 9)}, 10)["x"]
    assert (low, high) == (3, 3)


def test_result_depends_on_the_seed_not_on_the_portion_size(monkeypatch):
    statistics = {"x": mean(np.random.default_rng(1).random(50))}
    first = intervals(statistics, 50, seed=1)
    assert first == intervals(statistics, 50, seed=1) != intervals(statistics, 50, seed=2)
    monkeypatch.setattr(bootstrap, "CELLS", 7 * 50)
    assert first["x"] == pytest.approx(intervals(statistics, 50, seed=1)["x"], rel=1e-12)


def test_portions_are_bounded_for_many_images():
    largest = 0

    def formula(sums: np.ndarray) -> np.ndarray:
        nonlocal largest
        largest = max(largest, len(sums))
        return sums[:, 0]

    intervals({"x": of_sums(np.ones((8000, 1)), formula)}, 8000)
    assert 1 <= largest <= bootstrap.CELLS / 8000


def test_constant_difference_is_significant():
    values = np.random.default_rng(3).random(30)
    found = paired({"x": mean(values)}, {"x": mean(values + 0.1)}, 30)["x"]
    assert found["difference"] == pytest.approx(0.1) and found["interval"] == pytest.approx([0.1, 0.1])
    assert found["flips"] == 0 and found["p"] == pytest.approx(2 / 1001)
    assert found["second"] - found["first"] == pytest.approx(found["difference"])


def test_equal_runs_show_no_difference():
    values = np.random.default_rng(3).random(30)
    found = paired({"x": mean(values), "mine": mean(values)}, {"x": mean(values), "other": mean(values)}, 30)
    assert list(found) == ["x"]
    assert (found["x"]["difference"], found["x"]["interval"], found["x"]["p"]) == (0, [0, 0], 1)


def test_swapping_the_runs_flips_the_signs_only():
    rng = np.random.default_rng(4)
    a, b = {"x": mean(rng.random(60))}, {"x": mean(rng.random(60))}
    there, back = paired(a, b, 60)["x"], paired(b, a, 60)["x"]
    assert there["difference"] == -back["difference"] and there["p"] == back["p"]
    assert there["interval"] == pytest.approx([-edge for edge in reversed(back["interval"])])


def test_pairing_detects_what_overlapping_intervals_hide():
    """The variance between images is much larger than the difference of the runs."""
    rng = np.random.default_rng(6)
    hard = rng.normal(0, 1, size=200)
    a, b = {"x": mean(hard)}, {"x": mean(hard + rng.normal(0.05, 0.1, size=200))}
    (_, high), (low, _) = intervals(a, 200)["x"], intervals(b, 200)["x"]
    assert low < high
    assert paired(a, b, 200)["x"]["p"] < 0.01


def test_p_is_calibrated_under_the_null_hypothesis():
    rng = np.random.default_rng(7)
    below = 0
    for trial in range(300):
        a, b = rng.normal(size=(2, 60))
        below += paired({"x": mean(a)}, {"x": mean(b)}, 60, replicates=400, seed=trial)["x"]["p"] < 0.05
    assert 0.02 <= below / 300 <= 0.10
