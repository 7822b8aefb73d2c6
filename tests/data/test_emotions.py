"""Sets of labels: their names, their order, what is known of them."""

from __future__ import annotations

import pytest

from common.config.rules import MOST_LABELS
from common.errors import UserError
from data.emotions import (
    EMOTIONS,
    INDEX,
    as_label,
    by_valence,
    emotion_index,
    label_set,
    labels_entry,
    labels_of,
    number_of,
    one_hot,
    valence,
)

MIKELS = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")


def test_the_nine_come_four_four_and_one():
    assert by_valence(EMOTIONS) == (("positive", EMOTIONS[:4]), ("negative", EMOTIONS[4:8]), ("", EMOTIONS[8:]))
    assert [INDEX[name] for name in EMOTIONS] == [*range(9)]


def test_every_set_is_grouped_in_its_own_order():
    assert by_valence(MIKELS) == (
        ("positive", ("amusement", "awe", "contentment", "excitement")),
        ("negative", ("anger", "disgust", "fear", "sadness")),
    )
    assert by_valence(("surprise", "joy", "anger")) == (
        ("positive", ("joy",)),
        ("negative", ("anger",)),
        ("", ("surprise",)),
    )
    assert [valence(name) for name in ("positive", "negative", "surprise", "something else", "")] == [
        "positive", "negative", "", "", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Joy", "joy"),
        ("something_else", "something else"),
        ("  so \t what\n", "so what"),
        ("cafe\u0301", "caf\u00e9"),
        ("喜", "喜"),
    ],
)
def test_a_name_is_spelled_as_in_a_text(name, label):
    assert as_label(name) == label == as_label(label)


def test_a_set_keeps_its_order_and_is_the_nine_where_it_is_theirs():
    assert label_set(["Sadness", "joy"], where="x") == ("sadness", "joy")
    assert label_set([name.replace(" ", "_").upper() for name in EMOTIONS], where="x") is EMOTIONS


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["joy"], "x: 1 names, joy; from 2 to 100 can be labels"),
        ([], "x: 0 names"),
        (["Joy", "fear", "joy "], "x: 'Joy' and 'joy ' cannot be told apart"),
        (["joy", " "], "x: ' ' cannot be the name of an emotion"),
        (["joy", None], "x: 'None' cannot be the name"),
        (["joy", "a\x1b[31m"], "cannot be the name"),
        (["joy", "\udcff"], "cannot be the name"),
        (["joy", "y" * 61], "cannot be the name"),
        ([f"name {i}" for i in range(MOST_LABELS + 1)], "x: 101 names, name 0, name 1"),
    ],
)
def test_what_cannot_be_a_set_is_one_sentence(names, said):
    with pytest.raises(UserError) as caught:
        label_set(names, where="x")
    assert said in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_row_names_its_labels_where_they_are_not_the_nine():
    assert labels_entry(EMOTIONS) == {} and labels_of({}) == EMOTIONS
    assert labels_of(labels_entry(MIKELS)) == MIKELS


def test_an_unknown_emotion_is_told_with_what_may_be_meant():
    assert emotion_index("fear", where="x", labels=MIKELS) == 6 and emotion_index("fear", where="x") == 6
    assert emotion_index("anger", where="x", labels=MIKELS) == 1 and emotion_index("anger", where="x") == 4
    with pytest.raises(
        UserError, match=r"x: 'awee' is not one of the eight emotions \(amusement, .*\); did you mean 'awe'\?"
    ):
        emotion_index("awee", where="x", labels=MIKELS)
    with pytest.raises(UserError, match="x: 'something else' is not one of the eight"):
        emotion_index("something else", where="x", labels=MIKELS)


def test_numbers_and_histograms():
    assert (number_of(EMOTIONS), number_of(MIKELS), number_of("a" * 12)) == ("nine", "eight", "12")
    assert one_hot(1, ("a", "b", "c")) == (0.0, 1.0, 0.0)
