"""Log loss, Jensen-Shannon distance and calibration of predicted probabilities, by hand; and their temperature."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from common.errors import UserError
from data.emotions import EMOTIONS, INDEX
from tests.helpers.html_page import Page
from tests.helpers.predictions import PLAIN, many, model_and_answers
from trainer.metrics.calibration import (
    TEMPERATURES,
    cross_entropy,
    fit_temperature,
    judge,
    reliability,
    softmax,
    tempered,
)
from trainer.metrics.emotions import emotion_report
from trainer.report.page import write_test_report
from trainer.score.__main__ import main
from trainer.score.measure import measure


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


def test_distance_is_between_zero_and_one():
    same, apart = shares(awe=0.3, fear=0.7), shares(anger=1.0)
    assert emotion_report([1], [same], [same])["js"] == 0
    assert emotion_report([1], [apart], [same])["js"] == 1


def test_zero_probability_has_a_finite_loss_and_a_note():
    found = emotion_report([1, 1], [shares(awe=1.0)] * 2, [shares(fear=1.0), shares(awe=1.0)])
    assert found["nll"] == pytest.approx(-math.log(1e-12) / 2)
    assert any("1 of 2 images" in note and "1e-12" in note for note in found["notes"])
    json.dumps(found, allow_nan=False)


def test_zero_probability_without_votes_costs_nothing():
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
def test_bin_edges_belong_to_the_lower_bin(confidence, bin):
    found = reliability(np.array([confidence]), np.array([1.0]))
    assert [i for i, entry in enumerate(found) if entry["count"]] == [bin]


def test_calibration_uses_the_most_likely_emotion_not_the_predicted_one():
    found = emotion_report([INDEX["fear"]], [shares(awe=0.8, fear=0.2)], [shares(awe=1.0)])
    assert found["accuracy"] == 0 and found["ece"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    "distribution", [[1.0] * 9, [0.5, 0.5], [1.5, -0.5, 0, 0, 0, 0, 0, 0, 0], [float("nan")] + [0.125] * 8, [0.0] * 9]
)
def test_malformed_distribution_is_refused(distribution):
    with pytest.raises(UserError, match="sum 1"):
        emotion_report([1], [distribution], [shares(awe=1.0)])


def test_rounded_probabilities_are_brought_to_sum_one():
    found = emotion_report([1], [shares(awe=0.501, fear=0.501)], [shares(awe=1.0)])
    assert found["nll"] == pytest.approx(math.log(2))


# --- against people's answers ----------------------------------------------------------------------------------------


def test_calibration_against_answers_by_hand():
    sure, unsure = shares(awe=0.9, fear=0.1), shares(awe=0.5, fear=0.3, anger=0.2)
    felt = [shares(awe=0.8, fear=0.2), shares(awe=0.4, fear=0.6), shares(awe=0.5, anger=0.5), None]
    found = emotion_report([1] * 4, [sure, sure, unsure, sure], felt)
    # .9: shares of .8 and .4, a gap of .3 for two images; .5: no gap; the last has no histogram
    assert found["ece_answers"] == pytest.approx((2 * 0.3 + 0) / 3)
    assert [(one["confidence"], one["accuracy"]) for one in found["reliability_answers"] if one["count"]] == [
        (0.5, 0.5),
        (pytest.approx(0.9), pytest.approx(0.6)),
    ]
    assert sum(one["count"] for one in found["reliability"]) == 2, "two images have a label"


def test_matching_the_answers_differs_from_matching_the_labels():
    """Predicting the majority with certainty is calibrated to labels, not to answers."""
    felt = [shares(awe=0.6, fear=0.4), shares(sadness=0.7, fear=0.3)] * 5
    spread = emotion_report([1, 7] * 5, felt, felt)
    sure = emotion_report([1, 7] * 5, [shares(awe=1.0), shares(sadness=1.0)] * 5, felt)
    assert spread["ece_answers"] == pytest.approx(0) and spread["ece"] == pytest.approx(0.35)
    assert sure["ece_answers"] == pytest.approx(0.35) and sure["ece"] == 0
    assert spread["nll"] < sure["nll"] and spread["accuracy"] == sure["accuracy"] == 1


# --- temperature -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.3, 0.8, 1.0, 1.7, 6.0])
def test_known_temperature_is_recovered(factor):
    assert fit_temperature(*model_and_answers(50, factor=factor)) == pytest.approx(factor, rel=1e-5)
    assert fit_temperature(*model_and_answers(20_000, factor=factor, people=8)) == pytest.approx(factor, rel=0.01)


def test_fitted_temperature_minimizes_the_log_loss():
    log_probs, answers = model_and_answers(300, factor=2.0, people=5)
    fitted = fit_temperature(log_probs, answers)
    losses = {factor: judge(log_probs, answers, fitted * factor).nll for factor in (0.5, 0.99, 1, 1.01, 2)}
    assert min(losses, key=losses.get) == 1
    assert losses[1] < judge(log_probs, answers).nll
    assert judge(log_probs, answers, fitted).ece < judge(log_probs, answers).ece


def test_calibration_changes_no_prediction():
    log_probs, _ = model_and_answers(200, factor=2.0)
    for temperature in (0.05, 0.7, 3.0, 20.0):
        calibrated = tempered(np.exp(log_probs), temperature)
        assert (calibrated.argmax(axis=1) == log_probs.argmax(axis=1)).all()
        assert calibrated.sum(axis=1) == pytest.approx(np.ones(200))
        assert tempered(calibrated, 1 / temperature) == pytest.approx(np.exp(log_probs), abs=1e-12)


def test_fit_ignores_order_scale_and_images_without_answers():
    log_probs, answers = model_and_answers(60, factor=1.7, people=5)
    fitted = fit_temperature(log_probs, answers)
    order = np.random.default_rng(1).permutation(60)
    assert fit_temperature(log_probs[order], answers[order] / 5) == fitted
    unseen, broken = np.zeros((30, 9)), np.full((4, 9), -np.inf)
    more = np.concatenate([log_probs, log_probs[:30], broken]), np.concatenate([answers, unseen, answers[:4]])
    assert fit_temperature(*more) == fitted and judge(*more, fitted) == judge(log_probs, answers, fitted)


def test_temperature_stays_within_bounds():
    sure, felt = np.log(softmax(np.eye(9))), np.eye(9)
    assert fit_temperature(sure, felt) == TEMPERATURES[0], "always right: the sharper the better"
    assert fit_temperature(sure, felt[::-1]) == TEMPERATURES[1], "usually wrong: the flatter the better"


def test_nothing_to_fit_gives_temperature_one():
    nobody = np.zeros((3, 9))
    for log_probs, felt in ((nobody, nobody), (nobody[:0], nobody[:0]), (np.full((9, 9), -math.log(9)), np.eye(9))):
        assert fit_temperature(log_probs, felt) == 1.0
    assert judge(nobody, nobody) == judge(nobody[:0], nobody[:0]) == (None, None)


def test_report_has_scores_before_and_after_calibration():
    log_probs, answers = model_and_answers(200, factor=2.0, people=5)
    temperature = fit_temperature(log_probs, answers)
    raw, calibrated = np.exp(log_probs), tempered(np.exp(log_probs), temperature)
    guesses, felt = raw.argmax(axis=1).tolist(), answers.tolist()
    before = emotion_report(guesses, raw.tolist(), felt)
    after = emotion_report(guesses, calibrated.tolist(), felt, [temperature] * 200)
    for key in ("nll", "ece", "ece_answers"):
        assert after[f"{key}_uncalibrated"] == pytest.approx(before[key])
        assert before[f"{key}_uncalibrated"] == before[key] != after[key]
    counts = [[one["count"] for one in report["reliability_answers_uncalibrated"]] for report in (before, after)]
    assert counts[0] == counts[1] != [one["count"] for one in after["reliability_answers"]]
    assert (before["temperature"], after["temperature"]) == (1.0, temperature)
    assert before["accuracy"] == after["accuracy"]
    assert after["nll"] == pytest.approx(judge(log_probs, answers, temperature).nll)
    assert after["ece_answers"] == pytest.approx(judge(log_probs, answers, temperature).ece)
    assert cross_entropy(answers / 5, calibrated).mean() == pytest.approx(after["nll"])


def test_metrics_and_page_show_scores_before_and_after_calibration(tmp_path):
    rows = [{**row, "image": str(tmp_path / "none.png"), "emotion_temperature": 1.53} for row in many()]
    found = measure(rows, PLAIN)
    emotion = json.loads(json.dumps(found.metrics, allow_nan=False))["emotion"]
    assert emotion["temperature"] == 1.53 and emotion["nll"] != emotion["nll_uncalibrated"]
    write_test_report(rows, found.metrics, tmp_path / "t.html", title="t", facts={}, per_image=found.per_image)
    page = Page(tmp_path / "t.html")
    labels = [attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg"]
    assert labels == [f"reliability diagram of the emotions {when}" for when in ("before calibration", "after")]
    assert "by 1.53" in page.text and "before calibration by the temperature 1.53" in page.text


def test_several_temperatures_are_reported_as_none():
    rows = [{**row, "emotion_temperature": 1 + i % 2} for i, row in enumerate(many())]
    metrics = measure(rows, PLAIN).metrics
    assert metrics["emotion"]["temperature"] is None and metrics["emotion"]["nll_uncalibrated"] is not None


def test_rescoring_calibrated_predictions_gives_the_same(tmp_path):
    rows = [{**row, "emotion_temperature": 1.53} for row in many()]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--predictions", str(tmp_path / "predictions.jsonl"), "--out", str(tmp_path / "scores")]
    assert main([*command, "--metrics", "rouge_l", "--tokenizer", "whitespace"]) == 0
    found = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert found["emotion"] == measure(rows, PLAIN).metrics["emotion"]


@pytest.mark.parametrize("temperature", [0, -1.0, "1.5", True, None, float("nan"), float("inf")])
def test_invalid_temperature_is_refused(tmp_path, capsys, temperature):
    row = {**many()[0], "emotion_temperature": temperature}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(row))
    assert main(["--predictions", str(tmp_path / "predictions.jsonl")]) == 2
    assert "line 1: 'emotion_temperature' must be a number from 0.001 to 1000" in capsys.readouterr().err
