"""Valence, arousal and dominance of generated words compared with human explanations."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from common.errors import UserError
from data.vad.lexicon import Lexicon
from data.vad.lexicon_files import read_lexicon
from trainer.metrics.bootstrap import intervals, score
from trainer.metrics.word_vad import NAMES, statistics, text_vad, vad_scores

LEXICON = Lexicon(
    {
        "happy": (1.0, 0.5, 0.5),
        "sad": (-1.0, -0.5, 0.0),
        "storm": (-0.5, 1.0, 0.25),
        "tree": (0.25, -1.0, 0.0),
        "blue": (0.5, 0.0, -0.5),
        "well-known": (0.125, 0.0, 0.0),
        "café": (0.75, 0.25, 0.0),
        "won": (1.0, 1.0, 1.0),
        "s": (-1.0, 1.0, 1.0),
    }
)


@pytest.mark.parametrize(
    ("text", "values", "known"),
    [
        ("a happy, sad storm", (-0.5 / 3, 1.0 / 3, 0.75 / 3), 3),
        ("Storm! STORMS?", (-0.5, 1.0, 0.25), 2),
        ("the tree's blue-green leaves", (0.375, -0.5, -0.25), 2),
        ("the tree 's trunk", (0.25, -1.0, 0.0), 1),
        ("a well-known tree", (0.1875, -0.5, 0.0), 2),
        ("it won't and won’t", None, 0),
        ("cafe\u0301 CAFÉ", (0.75, 0.25, 0.0), 2),
        ("nothing known", None, 0),
        ("happy", (1.0, 0.5, 0.5), 1),
        ("", None, 0),
    ],
)
def test_values_of_a_text(text, values, known):
    found, count = text_vad(text, LEXICON)
    assert count == known
    if values is None:
        assert np.isnan(found).all()
    else:
        assert found.tolist() == pytest.approx(values)


TEXTS = {"1": "happy", "2": "a sad storm", "3": "nothing", "4": "blue"}
REFERENCES = {"1": ["happy sad", "tree", "no word"], "2": ["sad"], "3": ["happy"], "4": ["no word"]}


def test_scores_by_hand():
    summary, rows = vad_scores(TEXTS, REFERENCES, LEXICON)
    # image 1: 1 against the mean of 0 and .25; image 2: -.75 against -1; 3 and 4 lack one side
    assert rows["1"]["valence"] == 1 and rows["1"]["people_valence"] == 0.125
    assert (rows["2"]["valence"], rows["2"]["people_valence"]) == (-0.75, -1)
    assert rows["3"]["valence"] is None and rows["4"]["people_valence"] is None
    assert [rows[image]["known_words"] for image in TEXTS] == [1, 2, 0, 1]
    assert summary["valence"] == {
        "error": pytest.approx((0.875 + 0.25) / 2),
        "bias": pytest.approx((0.875 + 0.25) / 2),
        "correlation": pytest.approx(1),
        "count": 2,
    }
    # arousal: .5 against (0 - 1) / 2, .25 against -.5
    assert summary["arousal"]["bias"] == pytest.approx((1.0 + 0.75) / 2)
    assert (summary["images"], summary["uncounted"], summary["same_emotion"]) == (4, 2, None)
    assert "2 of 4" in summary["notes"][0]
    json.dumps([summary, rows], allow_nan=False)


def test_same_emotion_uses_references_of_the_predicted_emotion():
    emotions = {"1": "contentment", "2": "awe", "3": None, "4": "awe"}
    felt = {"1": ["sadness", "contentment", "contentment"], "2": ["fear"], "3": ["awe"], "4": []}
    summary, rows = vad_scores(TEXTS, REFERENCES, LEXICON, emotions=emotions, reference_emotions=felt)
    assert rows["1"]["same_emotion_valence"] == 0.25  # "tree"; "no word" has no known word
    assert all(rows[image]["same_emotion_valence"] is None for image in "234")
    assert summary["same_emotion"]["valence"]["error"] == 0.75
    assert summary["same_emotion"]["valence"]["count"] == 1 and summary["same_emotion"]["uncounted"] == 3
    assert summary["valence"]["count"] == 2
    json.dumps([summary, rows], allow_nan=False)


def test_undefined_values_are_none():
    alone, _ = vad_scores({"1": "happy"}, {"1": ["happy"]}, LEXICON)
    assert alone["valence"] == {"error": 0, "bias": 0, "correlation": None, "count": 1} and alone["notes"] == []
    none, _ = vad_scores({"1": "x"}, {"1": ["happy"]}, LEXICON)
    assert none["valence"] == {"error": None, "bias": None, "correlation": None, "count": 0}
    empty, rows = vad_scores({}, {}, LEXICON)
    assert empty["images"] == 0 and rows == {} and statistics([]).keys() >= {"valence.error"}


def test_mismatched_reference_emotions_are_refused():
    with pytest.raises(UserError, match="'1' has 3 references but 1"):
        vad_scores(TEXTS, REFERENCES, LEXICON, emotions={"1": "awe"}, reference_emotions={"1": ["awe"]})


def test_scores_follow_from_rows():
    words = list(LEXICON.table)[:5]
    texts = {str(i): f"{words[i % 5]} {words[i % 3]}" for i in range(40)}
    people = {str(i): [words[i % 5], f"{words[i % 4]} {words[i % 2]}"] for i in range(40)}
    emotions = {image: "awe" for image in texts}
    felt = {image: ["awe", "fear"] for image in texts}
    summary, rows = vad_scores(texts, people, LEXICON, emotions=emotions, reference_emotions=felt)
    rows = json.loads(json.dumps(list(rows.values())))
    found = statistics(rows)
    for name in NAMES:
        for figure in ("error", "bias", "correlation"):
            assert score(found[f"{name}.{figure}"], 40) == summary[name][figure]
            assert score(found[f"same_emotion.{name}.{figure}"], 40) == summary["same_emotion"][name][figure]
    own, theirs = ([row[key] for row in rows] for key in ("valence", "people_valence"))
    assert summary["valence"]["correlation"] == pytest.approx(np.corrcoef(own, theirs)[0, 1])
    for name, (low, high) in intervals(found, 40).items():
        assert low <= score(found[name], 40) <= high, name


def test_annotators_of_real_paintings_agree_with_each_other(shared_data):
    lexicon = read_lexicon(shared_data / "vad/GlasgowNorms.csv")
    entries = json.loads((shared_data / "paintings/artEmisX_train.json").read_text(encoding="utf-8"))
    many = {image: entry for image, entry in entries.items() if len(entry["explanations"]) > 1}
    texts = {image: entry["explanations"][0] for image, entry in many.items()}
    others = {image: entry["explanations"][1:] for image, entry in many.items()}
    summary, _ = vad_scores(texts, others, lexicon)
    assert summary["valence"]["count"] > 0.9 * len(texts)
    assert summary["valence"]["correlation"] > 0 and 0 < summary["valence"]["error"] < 0.5
    assert all(math.isfinite(summary[name]["bias"]) for name in NAMES)
