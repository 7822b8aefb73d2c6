from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from common.errors import UserError
from data.emotions import EMOTIONS, INDEX
from trainer.metrics.bootstrap import intervals, score
from trainer.metrics.emotions import RULES, dominant_label, emotion_report, emotion_rows, emotion_scores, statistics


def shares(**values: float) -> list[float]:
    return [values.get(name.replace(" ", "_"), 0.0) for name in EMOTIONS]


@pytest.mark.parametrize(
    ("histogram", "more", "half", "unique"),
    [
        (shares(contentment=2 / 3, excitement=1 / 3), "contentment", "contentment", "contentment"),
        (shares(awe=0.5, fear=0.25, sadness=0.25), None, "awe", "awe"),
        (shares(awe=0.5, fear=0.5), None, None, None),
        (shares(awe=1 / 3, contentment=1 / 3, something_else=1 / 3), None, None, None),
        (shares(awe=0.4, fear=0.3, sadness=0.3), None, None, "awe"),
        (shares(something_else=1.0), "something else", "something else", "something else"),
        (shares(), None, None, None),
        (None, None, None, None),
    ],
)
def test_dominant_label_under_each_rule(histogram, more, half, unique):
    found = [dominant_label(histogram, rule) for rule in RULES]
    assert found == [None if name is None else INDEX[name] for name in (more, half, unique)]


def test_rounding_does_not_change_a_majority():
    tenths = sum([0.1] * 5)  # 0.5 but for rounding
    assert dominant_label(shares(awe=tenths + 1e-9, fear=0.25, anger=0.25), "more_than_half") is None
    assert dominant_label(shares(awe=tenths - 1e-9, fear=0.25, anger=0.25), "at_least_half") == INDEX["awe"]
    assert dominant_label(shares(awe=0.1 + 0.2, fear=0.3, anger=0.4 - 1e-12, disgust=1e-12), "unique_maximum") == 4
    assert dominant_label(shares(awe=0.1 + 0.2, fear=0.3, anger=0.2, disgust=0.2), "unique_maximum") is None


def test_counts_and_shares_give_the_same():
    assert dominant_label(shares(fear=3, awe=2), "more_than_half") == INDEX["fear"]
    assert dominant_label(shares(fear=3, awe=3), "at_least_half") is None


@pytest.mark.parametrize("histogram", [[0.5] * 8, [float("nan")] * 9, [-0.1, 1.1] + [0.0] * 7])
def test_malformed_histogram_is_refused(histogram):
    with pytest.raises(UserError, match="nine numbers"):
        dominant_label(histogram)


def test_accuracy_f1_and_confusion_by_hand():
    awe, fear, anger = INDEX["awe"], INDEX["fear"], INDEX["anger"]
    histograms = [shares(awe=1.0)] * 3 + [shares(fear=1.0)] * 2 + [shares(awe=0.5, fear=0.5)]
    scores = emotion_scores([awe, awe, fear, fear, anger, awe], histograms)
    assert (scores.count, scores.total, scores.rule) == (5, 6, "more_than_half")
    assert scores.accuracy == pytest.approx(3 / 5)
    # awe: precision 2/2, recall 2/3, F1 4/5; fear: precision 1/2, recall 1/2, F1 1/2; anger has no label
    assert scores.macro_f1 == pytest.approx((4 / 5 + 1 / 2) / 2)
    assert scores.majority == pytest.approx(3 / 5)
    assert (scores.confusion[awe][awe], scores.confusion[awe][fear], scores.confusion[fear][anger]) == (2, 1, 1)
    assert sum(map(sum, scores.confusion)) == 5
    assert scores.recall[awe] == pytest.approx(2 / 3) and scores.recall[anger] is None
    assert scores.precision[anger] == 0.0 and scores.precision[INDEX["sadness"]] is None
    json.dumps(asdict(scores), allow_nan=False)


def test_missing_prediction_is_wrong_but_in_no_column():
    scores = emotion_scores([-1, 1], [shares(awe=1.0)] * 2)
    assert scores.accuracy == 0.5 and scores.support[1] == 2 and sum(map(sum, scores.confusion)) == 1


def test_no_label_gives_none_and_a_note():
    scores = emotion_scores([1, 2], [shares(awe=0.5, fear=0.5), None])
    assert scores.accuracy is None and scores.macro_f1 is None
    assert (scores.count, scores.total) == (0, 2)
    assert "more_than_half" in scores.notes[0]
    json.dumps(asdict(scores), allow_nan=False)


def test_the_rule_changes_the_denominator():
    histograms = [shares(awe=0.5, fear=0.25, anger=0.25), shares(awe=0.4, fear=0.6)]
    assert [emotion_scores([1, 1], histograms, rule=rule).count for rule in RULES] == [1, 2, 2]


@pytest.mark.parametrize(
    ("predicted", "rule", "message"),
    [([1], "more_than_half", "1 predicted"), ([1, 9], "more_than_half", "9"), ([1, 1], "most", "'most'")],
)
def test_invalid_input_is_refused(predicted, rule, message):
    with pytest.raises(UserError, match=message):
        emotion_scores(predicted, [shares(awe=1.0)] * 2, rule=rule)


# --- valence ---------------------------------------------------------------------------------------------------------


def test_valence_by_hand():
    labels = ["awe", "awe", "awe", "fear", "fear", "fear", "something else", "something else"]
    guesses = ["contentment", "anger", "something else", "sadness", "something else", "amusement", "awe", "fear"]
    histograms = [shares(**{name.replace(" ", "_"): 1.0}) for name in labels]
    scores = emotion_scores([INDEX[name] for name in guesses], histograms)
    # right: awe-contentment, fear-sadness and fear-something else, which counts as negative; others are excluded
    assert (scores.valence_accuracy, scores.valence_count, scores.count) == (3 / 6, 6, 8)


def test_missing_prediction_has_the_wrong_valence():
    scores = emotion_scores([-1, -1], [shares(awe=1.0), shares(fear=1.0)])
    assert (scores.valence_accuracy, scores.valence_count) == (0, 2)


def test_only_labels_without_valence_give_none():
    scores = emotion_scores([0], [shares(something_else=1.0)])
    assert scores.accuracy == 0 and scores.valence_accuracy is None and scores.valence_count == 0
    assert scores.valence_majority is None


def test_valence_accuracy_has_a_baseline():
    """A network that always says contentment is right in its valence as often as people feel something positive."""
    felt = [shares(awe=1.0), shares(amusement=1.0), shares(fear=1.0), shares(something_else=1.0)]
    scores = emotion_scores([INDEX["contentment"]] * 4, felt)
    assert scores.valence_accuracy == scores.valence_majority == pytest.approx(2 / 3) and scores.majority == 1 / 4


# --- the report and its rows -----------------------------------------------------------------------------------------


def test_report_has_every_rule():
    histograms = [shares(awe=0.6, fear=0.4), shares(awe=0.5, fear=0.3, anger=0.2), shares(fear=0.4, awe=0.3, anger=0.3)]
    found = emotion_report([1] * 3, [None] * 3, histograms)
    assert [found["rules"][rule]["count"] for rule in RULES] == [1, 2, 3]
    for figure in ("accuracy", "valence_accuracy"):
        assert [found["rules"][rule][figure] for rule in RULES] == [1, 1, pytest.approx(2 / 3)]
    headline = asdict(emotion_scores([1] * 3, histograms))
    assert {name: found[name] for name in headline} == {**headline, "notes": found["notes"]}
    assert found["nll"] is found["js"] is found["ece"] is None and "no probabilities" in found["notes"][0]
    json.dumps(found, allow_nan=False)


def test_report_without_images_or_labels():
    for found in (emotion_report([], [], []), emotion_report([1, -1], [None, None], [None, None])):
        assert found["accuracy"] is found["nll"] is found["ece"] is None and found["count"] == 0
        json.dumps(found, allow_nan=False)


def random_images(count: int) -> tuple[list[int], list, list]:
    rng = np.random.default_rng(count)
    histograms = [rng.multinomial(rng.integers(1, 7), rng.dirichlet([0.3] * 9)).tolist() for _ in range(count)]
    distributions = [rng.dirichlet(np.array(h) + 0.3).tolist() for h in histograms]
    histograms[3], distributions[5] = None, None
    return rng.integers(-1, 9, count).tolist(), distributions, histograms, rng.uniform(0.5, 2, count).tolist()


def test_scores_follow_from_rows():
    images = random_images(200)
    found, rows = emotion_report(*images), json.loads(json.dumps(emotion_rows(*images), allow_nan=False))
    figures = statistics(rows)
    assert {"accuracy", "macro_f1", "nll", "nll_label", "js", "ece", "ece_answers", "nll_uncalibrated"} < figures.keys()
    for name in (name for name in figures if "." not in name):
        assert score(figures[name], 200) == pytest.approx(found[name], abs=1e-12), name
    for rule in RULES:
        for name in ("accuracy", "macro_f1", "majority", "valence_accuracy"):
            expected = found["rules"][rule][name]
            assert score(figures[f"rules.{rule}.{name}"], 200) == pytest.approx(expected, abs=1e-12)
    assert sum(row["correct"] is not None for row in rows) == found["count"]
    assert [row["emotion"] is None for row in rows] == [guess == -1 for guess in images[0]]


def test_replicates_match_the_report_of_resampled_images():
    images = random_images(60)
    figures = statistics(emotion_rows(*images))
    rng = np.random.default_rng(1)
    for _ in range(20):
        drawn = rng.integers(60, size=60)
        plain = emotion_report(*([values[i] for i in drawn] for values in images))
        times = np.bincount(drawn, minlength=60)[None].astype(float)
        for name, statistic in figures.items():
            expected = plain
            for key in name.split("."):
                expected = expected[key]
            assert statistic(times)[0] == pytest.approx(expected, abs=1e-12), name


def test_intervals_contain_their_scores():
    images = random_images(400)
    rows = emotion_rows(*images)
    figures = statistics(rows)
    for name, (low, high) in intervals(figures, 400, replicates=300).items():
        if not name.startswith("ece"):  # larger in replicates than in the sample
            assert low < score(figures[name], 400) < high, name


# --- other labels

TWO = ("negative", "positive")
SIX = ("anger", "disgust", "fear", "joy", "sadness", "surprise")


def one_hot(i: int, count: int) -> list[float]:
    return [float(i == j) for j in range(count)]


def test_two_labels_by_hand():
    felt, said = [0, 0, 1, 1, 1], [0, 1, 1, 1, -1]
    scores = emotion_scores(said, [one_hot(i, 2) for i in felt], labels=TWO)
    assert scores.confusion == [[1, 1], [0, 2]] and scores.support == [2, 3]
    assert scores.accuracy == scores.valence_accuracy == 3 / 5 and scores.valence_count == 5
    assert scores.macro_f1 == pytest.approx((2 / 3 + 2 * 2 / 6) / 2)


def test_labels_without_valence_are_excluded_from_it():
    felt = [SIX.index(name) for name in ("joy", "surprise", "fear", "anger")]
    said = [SIX.index(name) for name in ("surprise", "surprise", "surprise", "joy")]
    scores = emotion_scores(said, [one_hot(i, 6) for i in felt], labels=SIX)
    assert scores.valence_count == 3 and scores.valence_accuracy == 1 / 3, "surprise for fear, which is not positive"
    assert emotion_scores([0], [[1.0, 0.0]], labels=("surprise", "tense")).valence_accuracy is None


@pytest.mark.parametrize("labels", [TWO, SIX])
def test_report_of_other_labels_names_them_and_matches_its_rows(labels):
    rng = np.random.default_rng(0)
    shares_of = rng.dirichlet(np.full(len(labels), 0.4), size=30).tolist()
    felt = [one_hot(i, len(labels)) for i in rng.integers(len(labels), size=30)]
    said = [int(np.argmax(shares)) for shares in shares_of]
    report = emotion_report(said, shares_of, felt, labels=labels)
    rows = emotion_rows(said, shares_of, felt, labels=labels)
    assert report["labels"] == [*labels] and len(report["confusion"]) == len(labels)
    assert [row["emotion"] for row in rows] == [labels[i] for i in said]
    for key, statistic in statistics(rows, labels=labels).items():
        if "." not in key:
            assert score(statistic, len(rows)) == pytest.approx(report[key], abs=1e-12), key
    json.dumps(report, allow_nan=False)


def test_wrong_number_of_labels_is_refused():
    with pytest.raises(UserError, match="an emotion histogram needs two numbers of at least 0"):
        dominant_label(shares(awe=1.0), labels=TWO)
    with pytest.raises(UserError, match=r"predicted emotion 2 is outside 0\.\.1"):
        emotion_scores([2], [[1, 0]], labels=TWO)
    with pytest.raises(UserError, match="a distribution of emotions needs two numbers"):
        emotion_report([0], [[0.5, 0.25, 0.25]], [[1, 0]], labels=TWO)
