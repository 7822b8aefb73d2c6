"""Log loss, Jensen-Shannon distance and calibration of predicted probabilities, by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from data.emotions import EMOTIONS, INDEX
from errors import UserError
from trainer.metrics.calibration import reliability
from trainer.metrics.emotions import emotion_report


def shares(**values: float) -> list[float]:
    return [values.get(name, 0.0) for name in EMOTIONS]


def test_log_loss_and_distance_by_hand():
    felt = shares(awe=0.5, fear=0.5)
    found = emotion_report([1], [shares(awe=0.25, fear=0.5, anger=0.25)], [felt])
    assert found["nll"] == pytest.approx(-(0.5 * math.log(0.25) + 0.5 * math.log(0.5)))
    assert found["nll_label"] is None and found["ece"] is None  # no emotion has more than half
    found = emotion_report([1], [felt], [shares(awe=1.0)])
    assert found["nll"] == found["nll_label"] == pytest.approx(math.log(2))
    # middle (3/4, 1/4): half of log2(4/3), and half of the mean of log2(2/3) and log2(2)
    divergence = (math.log2(4 / 3) + (math.log2(2 / 3) + 1) / 2) / 2
    assert found["js"] == pytest.approx(math.sqrt(divergence)) == pytest.approx(0.5579230452841438)


def test_distance_runs_from_zero_to_one():
    same, apart = shares(awe=0.3, fear=0.7), shares(anger=1.0)
    assert emotion_report([1], [same], [same])["js"] == 0
    assert emotion_report([1], [apart], [same])["js"] == 1


def test_a_probability_of_zero_costs_much_but_is_finite_and_said():
    found = emotion_report([1, 1], [shares(awe=1.0)] * 2, [shares(fear=1.0), shares(awe=1.0)])
    assert found["nll"] == pytest.approx(-math.log(1e-12) / 2)
    assert any("1 of 2 images" in note and "1e-12" in note for note in found["notes"])
    json.dumps(found, allow_nan=False)


def test_a_probability_of_zero_where_nobody_felt_it_costs_nothing():
    found = emotion_report([1], [shares(awe=1.0)], [shares(awe=1.0)])
    assert (found["nll"], found["nll_label"], found["js"], found["ece"], found["notes"]) == (0, 0, 0, 0, [])


def test_calibration_by_hand():
    sure, unsure = shares(awe=0.9, fear=0.1), shares(awe=0.5, fear=0.3, anger=0.2)
    labels = [shares(awe=1.0), shares(fear=1.0), shares(awe=1.0), shares(awe=0.5, fear=0.5)]
    found = emotion_report([1] * 4, [sure, sure, unsure, sure], labels)
    # .9: half right, a gap of .4 for two images; .5: right, a gap of .5 for one; the last has no label
    assert found["ece"] == pytest.approx((2 * 0.4 + 0.5) / 3)
    filled = [entry for entry in found["reliability"] if entry["count"]]
    assert len(found["reliability"]) == 15
    assert filled == [
        {"low": 7 / 15, "high": 8 / 15, "confidence": 0.5, "accuracy": 1.0, "count": 1},
        {"low": 13 / 15, "high": 14 / 15, "confidence": pytest.approx(0.9), "accuracy": 0.5, "count": 2},
    ]
    assert found["reliability"][0] == {"low": 0, "high": 1 / 15, "confidence": None, "accuracy": None, "count": 0}


@pytest.mark.parametrize(
    ("confidence", "bin"), [(1 / 15, 0), (0.2, 2), (0.2001, 3), (0.6, 8), (14 / 15, 13), (1.0, 14)]
)
def test_an_edge_belongs_to_the_bin_below(confidence, bin):
    found = reliability(np.array([confidence]), np.array([1.0]))
    assert [i for i, entry in enumerate(found) if entry["count"]] == [bin]


def test_calibration_is_of_the_likeliest_emotion_whatever_was_asked():
    found = emotion_report([INDEX["fear"]], [shares(awe=0.8, fear=0.2)], [shares(awe=1.0)])
    assert found["accuracy"] == 0 and found["ece"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    "distribution", [[1.0] * 9, [0.5, 0.5], [1.5, -0.5, 0, 0, 0, 0, 0, 0, 0], [float("nan")] + [0.125] * 8, [0.0] * 9]
)
def test_what_is_no_distribution_is_named(distribution):
    with pytest.raises(UserError, match="sum 1"):
        emotion_report([1], [distribution], [shares(awe=1.0)])


def test_rounded_probabilities_are_brought_to_sum_one():
    found = emotion_report([1], [shares(awe=0.501, fear=0.501)], [shares(awe=1.0)])
    assert found["nll"] == pytest.approx(math.log(2))
