"""Precision, recall and hallucinations of explanations against what the images show."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import UserError
from data.readers.facts import Facts
from trainer.metrics.bootstrap import score
from trainer.metrics.grounding import Grounding, grounding_scores

PHRASES = {
    "subject": {"boat": ("boat", "sailing boats"), "cat": ("cat",)},
    "palette": {"meadow": ("green", "soft green"), "murk": ("murky green", "olive"), "sea": ("blue-green",)},
    "nothing": {"none": ()},
}
IMAGES = {
    "a": {"subject": ("boat",), "palette": ("meadow",)},
    "b": {"subject": ("boat", "cat"), "palette": ("murk",)},
    "c": {"subject": ("cat",), "palette": ("unnamed",)},
}
GROUNDING = Grounding(Facts(Path("facts.json"), PHRASES, IMAGES))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("the soft green calms me", {"palette": {"meadow"}}),
        ("Murky green, it is dull", {"palette": {"murk"}}),
        ("murky green and plain green", {"palette": {"murk", "meadow"}}),
        ("a blue-green sea", {"palette": {"sea"}}),
        ("evergreen boathouses concatenate", {}),
        ("the boat's cat", {"subject": {"cat"}}),
        ("a sailing boat. SAILING  BOATS!", {"subject": {"boat"}}),
        ("the boat and the cat", {"subject": {"boat", "cat"}}),
        ("", {}),
    ],
)
def test_longest_phrase_at_word_boundaries_names_its_value(text, named):
    assert {kind: values for kind, values in GROUNDING.named(text).items() if values} == named


@pytest.mark.parametrize(
    ("image", "text", "precision", "recall"),
    [
        ("a", "the boat", 1, 1),
        ("a", "the cat", 0, 0),
        ("a", "the boat and the cat", 0, 1),
        ("a", "nothing to see", None, 0),
        ("b", "the boat", 1, 1),
        ("b", "the boat and the cat", 1, 1),
        ("unknown", "the boat", None, None),
    ],
)
def test_a_text_is_precise_if_it_names_true_values_only(image, text, precision, recall):
    found = GROUNDING.judge(image, text)
    assert (found["subject.precision"], found["subject.recall"]) == (precision, recall)


def test_value_without_phrases_counts_for_precision_only():
    assert GROUNDING.judge("c", "so green")["palette.precision"] == 0
    assert GROUNDING.judge("c", "so green")["palette.recall"] is None


def test_section_has_figures_people_and_hallucinations():
    texts = {"a": "a cat in murky green", "b": "the boat in olive", "c": "the boat", "d": "the boat"}
    people = {"a": ["my boat", "soft green"], "b": ["the cat"], "c": ["a boat"], "d": ["a boat"]}
    section, each, statistics = grounding_scores(texts, people, GROUNDING)
    subject = section["kinds"]["subject"]
    assert (subject["precision"], subject["recall"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (subject["named"], subject["count"]) == (3, 3)
    assert subject["people"] == {"precision": pytest.approx(2 / 3), "recall": pytest.approx(2 / 4)}
    assert section["kinds"]["nothing"]["precision"] is None and section["kinds"]["nothing"]["recall"] is None
    assert section["hallucinations"]["subject"] == [
        {"named": "boat", "true": "cat", "count": 1, "of": 1},
        {"named": "cat", "true": "boat", "count": 1, "of": 1},
    ]
    assert section["hallucinations"]["palette"] == [{"named": "murk", "true": "meadow", "count": 1, "of": 1}]
    assert section["images"] == 3 and section["notes"] == ["1 of 4 images are not in facts.json"]
    assert each == {
        "a": {"named": {"subject": ["cat"], "palette": ["murk"]}},
        "b": {"named": {"subject": ["boat"], "palette": ["murk"]}},
        "c": {"named": {"subject": ["boat"]}},
    }
    assert score(statistics["kinds.palette.precision"], 4) == section["kinds"]["palette"]["precision"] == 0.5


def test_facts_of_other_images_are_refused():
    with pytest.raises(UserError, match=r"facts.json has none of the images, such as 'z'"):
        grounding_scores({"z": "the boat"}, {}, GROUNDING)
