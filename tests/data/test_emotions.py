"""Label sets: names, order, valence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.config.rules import MOST_LABELS
from common.errors import UserError
from data.emotions import (
    EMOTIONS,
    INDEX,
    by_valence,
    emotion_index,
    label_set,
    labels_entry,
    labels_of,
    normalize_label,
    number_word,
    one_hot,
    valence,
)
from data.prepare.rows import read_rows
from data.readers.artemis import read_artemis
from data.readers.emotion_folder import read_emotion_folder
from data.readers.table import read_table
from data.readers.texts import read_annotated_texts
from trainer.score.predictions import read_predictions
from trainer.score.references import read_references

MIKELS = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")


def test_labels_are_four_positive_four_negative_one_other():
    assert by_valence(EMOTIONS) == (("positive", EMOTIONS[:4]), ("negative", EMOTIONS[4:8]), ("", EMOTIONS[8:]))
    assert [INDEX[name] for name in EMOTIONS] == [*range(9)]


def test_groups_keep_the_order_of_the_labels():
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
def test_as_label_normalizes(name, label):
    assert normalize_label(name) == label == normalize_label(label)


def test_label_set_keeps_order_and_returns_the_default():
    assert label_set(["Sadness", "joy"], where="x") == ("sadness", "joy")
    assert label_set([name.replace(" ", "_").upper() for name in EMOTIONS], where="x") is EMOTIONS


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["joy"], "x: 1 names, joy; a label set has 2 to 100"),
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
def test_invalid_label_sets(names, message):
    with pytest.raises(UserError) as caught:
        label_set(names, where="x")
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_labels_are_stored_unless_they_are_the_default():
    assert labels_entry(EMOTIONS) == {} and labels_of({}) == EMOTIONS
    assert labels_of(labels_entry(MIKELS)) == MIKELS


def test_unknown_emotion_suggests_the_nearest():
    assert emotion_index("fear", where="x", labels=MIKELS) == 6 and emotion_index("fear", where="x") == 6
    assert emotion_index("anger", where="x", labels=MIKELS) == 1 and emotion_index("anger", where="x") == 4
    with pytest.raises(
        UserError, match=r"x: 'awee' is not one of the eight emotions \(amusement, .*\); did you mean 'awe'\?"
    ):
        emotion_index("awee", where="x", labels=MIKELS)
    with pytest.raises(UserError, match="x: 'something else' is not one of the eight"):
        emotion_index("something else", where="x", labels=MIKELS)


def test_number_of_and_one_hot():
    assert (number_word(EMOTIONS), number_word(MIKELS), number_word("a" * 12)) == ("nine", "eight", "12")
    assert one_hot(1, ("a", "b", "c")) == (0.0, 1.0, 0.0)


SPELLINGS = ("something_else", "Something Else", " something  else ", "SOMETHING_ELSE")


def test_every_reader_takes_the_same_spellings_of_a_label(tmp_path: Path) -> None:
    """Annotations, tables, folders, raw CSV files, predictions, references and the sources of a gate."""
    for i, name in enumerate(SPELLINGS):
        folder = tmp_path / str(i)
        for label in (name.strip(), "awe"):
            (folder / "train" / label).mkdir(parents=True)
            (folder / "train" / label / "a.jpg").touch()
        entry = {"image_name": "a.jpg", "emotions": [name], "explanations": ["one two"]}
        (folder / "a.json").write_text(json.dumps({"7": entry}))
        (folder / "t.csv").write_text(f'image,text,emotion\na.jpg,one two,"{name}"\n')
        (folder / "raw.csv").write_text(f'art_style,painting,emotion,utterance\nR,p,"{name}",one two\n')
        own = {"id": "7", "emotion": name, "explanation": "x", "references": ["y"], "reference_emotions": [name],
               "histogram": [0] * 8 + [1], "own": {"emotion": name, "explanation": "z"}}  # fmt: skip
        (folder / "p.jsonl").write_text(json.dumps(own) + "\n")
        assert read_artemis(folder / "a.json", folder)[0].emotions == (8,)
        assert read_table(folder / "t.csv", folder)[0].emotions == (8,)
        assert read_annotated_texts(folder / "t.csv") == [("one two", "something else", "")]
        [row] = read_rows(folder / "raw.csv", new=None, left_out=[])
        assert row.emotion == 8
        files = {"visual_dir": folder / "train", "json_path": None}
        dataset = {
            "name": "emotion_folder",
            "labels": EMOTIONS,
            "train_ds": files,
            "validation_ds": files,
            "test_ds": files,
        }
        samples, _ = read_emotion_folder(dataset, "train_ds")
        assert {sample.emotions for sample in samples} == {(1,), (8,)}
        predicted = read_predictions(folder / "p.jsonl").rows["7"]
        assert predicted["emotion"] == predicted["own"]["emotion"] == "something else"
        assert predicted["reference_emotions"] == ["something else"]
        assert read_references(folder / "a.json").rows["7"]["reference_emotions"] == ["something else"]


def test_a_cell_of_spaces_is_no_emotion(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,text,emotion\na.jpg,one two,  \n")
    assert read_table(tmp_path / "t.csv", tmp_path)[0].emotions == ()
