from __future__ import annotations

import json

import pytest

from data.emotions import EMOTIONS, INDEX
from errors import UserError
from trainer.metrics.emotions import RULES, dominant_label, emotion_scores
from trainer.metrics.table import metrics_table


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


def test_rounding_neither_makes_nor_hides_a_majority():
    tenths = sum([0.1] * 5)  # 0.5 but for rounding
    assert dominant_label(shares(awe=tenths + 1e-9, fear=0.25, anger=0.25), "more_than_half") is None
    assert dominant_label(shares(awe=tenths - 1e-9, fear=0.25, anger=0.25), "at_least_half") == INDEX["awe"]
    assert dominant_label(shares(awe=0.1 + 0.2, fear=0.3, anger=0.4 - 1e-12, disgust=1e-12), "unique_maximum") == 4
    assert dominant_label(shares(awe=0.1 + 0.2, fear=0.3, anger=0.2, disgust=0.2), "unique_maximum") is None


def test_counts_are_as_good_as_shares():
    assert dominant_label(shares(fear=3, awe=2), "more_than_half") == INDEX["fear"]
    assert dominant_label(shares(fear=3, awe=3), "at_least_half") is None


@pytest.mark.parametrize("histogram", [[0.5] * 8, [float("nan")] * 9, [-0.1, 1.1] + [0.0] * 7])
def test_malformed_histogram_is_named(histogram):
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
    json.dumps(scores.to_dict(), allow_nan=False)


def test_no_prediction_is_wrong_but_in_no_column():
    scores = emotion_scores([-1, 1], [shares(awe=1.0)] * 2)
    assert scores.accuracy == 0.5 and scores.support[1] == 2 and sum(map(sum, scores.confusion)) == 1


def test_no_label_gives_none_and_a_note():
    scores = emotion_scores([1, 2], [shares(awe=0.5, fear=0.5), None])
    assert scores.accuracy is None and scores.macro_f1 is None
    assert (scores.count, scores.total) == (0, 2)
    assert "more_than_half" in scores.notes[0]
    json.dumps(scores.to_dict(), allow_nan=False)


def test_the_rule_changes_the_denominator():
    histograms = [shares(awe=0.5, fear=0.25, anger=0.25), shares(awe=0.4, fear=0.6)]
    assert [emotion_scores([1, 1], histograms, rule=rule).count for rule in RULES] == [1, 2, 2]


@pytest.mark.parametrize(
    ("predicted", "rule", "message"),
    [([1], "more_than_half", "1 predicted"), ([1, 9], "more_than_half", "9"), ([1, 1], "most", "'most'")],
)
def test_bad_input_is_named(predicted, rule, message):
    with pytest.raises(UserError, match=message):
        emotion_scores(predicted, [shares(awe=1.0)] * 2, rule=rule)


def test_table_states_rule_numbers_and_notes():
    emotion = emotion_scores([1, 1], [shares(awe=1.0), shares(awe=0.5, fear=0.5)]).to_dict()
    metrics = {"emotion": emotion, "captions": {"CIDEr": 0.6, "BLEU-1": 0.5794}, "tokenizer": "PTB", "images": 2}
    lines = metrics_table({**metrics, "notes": ["METEOR left out"]}).splitlines()
    assert "100.0 %" in lines[0] and "1 of 2 images" in lines[0] and "more than half" in lines[0]
    assert [line.split()[0] for line in lines[-3:]] == ["BLEU-1", "CIDEr", "note:"]
    assert "0.579" in lines[-3] and "PTB" in lines[-3]
    assert (
        len({line.index(value) + len(value) for line, value in zip(lines[-3:-1], ("0.579", "0.600"), strict=True)}) == 1
    )


def test_table_of_data_without_emotions_or_labels():
    assert metrics_table({"emotion": None, "captions": {"BLEU-1": 0.1}}).split() == ["BLEU-1", "0.100"]
    assert "–" in metrics_table({"emotion": emotion_scores([1], [None]).to_dict(), "captions": {}})
