"""Files of predictions and references: every supported format, and errors for malformed ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from common.errors import UserError
from data.emotions import INDEX
from trainer.score.predictions import Texts, read_predictions
from trainer.score.references import join, read_references

CAPTIONS = {"7": "the sky is calm", "12": 'a "wide", grey sea', "900719925474099312": "it looks like a storm"}
EMOTION_OF = {"7": "contentment", "12": "something else", "900719925474099312": "fear"}


def write(path: Path, content: object) -> Path:
    """Write text as is, a list of lists as CSV, anything else as JSON."""
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif isinstance(content, list) and content and isinstance(content[0], list):
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(content)
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def lines(entries: list[dict]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def results(captions: dict[str, str] = CAPTIONS) -> list[dict]:
    """Return a COCO result file."""
    return [{"image_id": int(id), "caption": text} for id, text in captions.items()]


def own(id: str, emotion: str | None = "awe", **changes) -> dict:
    """Return a line of EmoScribe's predictions.jsonl."""
    shares = [0.04] * 9
    shares[1] = 0.68
    return {
        "id": id,
        "emotion": emotion,
        "emotion_distribution": shares if emotion else None,
        "explanation": "the sky is vast",
        "text": "the emotion is awe because the sky is vast",
        "log_prob": -0.5,
        "image": f"/far/{id}.png",
        "references": ["a vast sky", "clouds"],
        "reference_emotions": ["awe", "fear"] if emotion else [],
        "histogram": [0, 0.5, 0, 0, 0, 0, 0.5, 0, 0] if emotion else None,
        **changes,
    }


def refusal(read, path: Path, *parts: str) -> str:
    """Check that reading fails with one line that names the file and contains all `parts`."""
    with pytest.raises(UserError) as caught:
        read(path)
    text = str(caught.value)
    assert "\n" not in text
    for part in (str(path), *parts):
        assert part in text, text
    return text


# --- predictions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("results.json", results(), "JSON list"),
        ("results.txt", json.dumps(results(), indent=2), "JSON list"),
        ("results.jsonl", lines(results()), "JSON lines"),
        ("results.json", "\ufeff" + lines(results()) + "\n\n", "JSON lines"),
        ("ids as text.json", [{"image_id": id, "caption": text} for id, text in CAPTIONS.items()], "JSON list"),
        ("t.csv", [["image_id", "caption"], *map(list, CAPTIONS.items())], "CSV"),
        ("t.csv", [["Explanation", "n", "ID"], *[[text, "0", id] for id, text in CAPTIONS.items()]], "CSV"),
        ("t.csv", [["id", "text"], *[[f"{id}.0", text] for id, text in CAPTIONS.items()]], "CSV"),
        ("t.csv", [["", "id", "text"], *[["0", id, text] for id, text in CAPTIONS.items()]], "CSV"),
        ("t.tsv", [["image", "text"], *map(list, CAPTIONS.items())], "TSV"),
        ("t.json", [["id", "text"], *map(list, CAPTIONS.items())], "CSV"),
    ],
)
def test_captions_are_read_from_every_format(tmp_path, name, content, said):
    found = read_predictions(write(tmp_path / name, content))
    assert {id: row["explanation"] for id, row in found.rows.items()} == CAPTIONS
    assert all(row["emotion"] is None and row["emotion_distribution"] is None for row in found.rows.values())
    assert said in found.format and "3 images" in found.format and found.notes == []


def test_whole_numbers_that_pandas_wrote_as_floats(tmp_path):
    path = write(tmp_path / "results.json", [{"image_id": 7.0, "caption": "a"}, {"image_id": "12.0", "caption": "b"}])
    assert [*read_predictions(path).rows] == ["7", "12"]
    path = write(
        tmp_path / "results.json", [{"image_id": 9.00719925474099312e17, "caption": "its last digits are lost"}]
    )
    with pytest.raises(UserError, match="must be a whole number or text"):
        read_predictions(path)


def test_own_rows_are_read_unchanged(tmp_path):
    rows = [own("a"), own("b", emotion="fear", asked_emotion=True), own("c", explanation="")]
    for content in (lines(rows), rows):
        found = read_predictions(write(tmp_path / "p", content))
        joined, notes = join(found, None)
        assert joined == rows and notes == []
        assert "EmoScribe" in found.format


def test_single_own_line_is_a_valid_file(tmp_path):
    path = write(tmp_path / "predictions.jsonl", lines([own("a")]))
    assert join(read_predictions(path), None)[0] == [own("a")]
    assert read_references(path).rows["a"]["references"] == ["a vast sky", "clouds"]


@pytest.mark.parametrize("prompt", ["", "the emotion is "])
def test_emotion_because_explanation_is_split_at_the_first_because(tmp_path, prompt):
    texts = {id: f"{prompt}{EMOTION_OF[id]} because {text}" for id, text in CAPTIONS.items()}
    texts["7"] += " because of the light"
    found = read_predictions(write(tmp_path / "unf_captions_full.json", results(texts)))
    assert {id: row["emotion"] for id, row in found.rows.items()} == EMOTION_OF
    explanations = {id: row["explanation"] for id, row in found.rows.items()}
    assert explanations == {**CAPTIONS, "7": "the sky is calm because of the light"}
    assert "EMOTION because EXPLANATION" in found.format and found.notes == []


@pytest.mark.parametrize("name", ["something_else", "Something  Else", " SOMETHING_ELSE "])
def test_spellings_of_something_else(tmp_path, name):
    column = [{"image_id": "1", "caption": "odd", "emotion": name}]
    assert read_predictions(write(tmp_path / "a.json", column)).rows["1"]["emotion"] == "something else"
    joined = results({"1": f"{name.strip()} because it is odd"})
    assert read_predictions(write(tmp_path / "b.json", joined)).rows["1"]["emotion"] == "something else"


def test_explanations_that_contain_because_stay_whole(tmp_path):
    texts = {
        "1": "i feel calm because of the sky",
        "2": "awe because it is vast",
        "3": "a boat",
        "4": "grey because old",
    }
    found = read_predictions(write(tmp_path / "unf_captions_exp.json", results(texts)))
    assert {id: row["explanation"] for id, row in found.rows.items()} == texts
    assert all(row["emotion"] is None for row in found.rows.values())


def test_unknown_emotions_become_none_with_a_note(tmp_path):
    texts = {"1": "awe because vast", "2": "joy because bright", "3": "it is dark", "4": "fear because dark"}
    texts["5"] = "Sadness because grey"
    found = read_predictions(write(tmp_path / "full.json", results(texts)))
    assert [row["emotion"] for row in found.rows.values()] == ["awe", None, None, "fear", "sadness"]
    assert [row["explanation"] for row in found.rows.values()] == ["vast", "bright", "it is dark", "dark", "grey"]
    assert len(found.notes) == 1
    for part in ("2 of 5", "'2'", "'joy'", "wrong"):
        assert part in found.notes[0]


def test_emotion_column(tmp_path):
    said = [f"fear because of {thing}" for thing in ("fog", "the dark", "heights")]
    table = [["id", "caption", "emotion"], ["1", said[0], " Awe "], ["2", said[1], "joy"], ["3", said[2], ""]]
    found = read_predictions(write(tmp_path / "t.csv", table))
    assert [row["emotion"] for row in found.rows.values()] == ["awe", None, None]
    assert [row["explanation"] for row in found.rows.values()] == said, "not split, as there is a column of emotions"
    assert "2 of 3" in found.notes[0] and "'joy'" in found.notes[0]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["empty"]),
        (" \n", ["empty"]),
        ([], ["no entry"]),
        ({}, ["keys []"]),
        ("image_id,caption\n", ["no entry"]),
        ('[{"image_id": 1, "caption": "a"}', ["not JSON at column"]),
        ('[\n{"image_id": 1, "caption": "a"},\n]', ["not JSON at line 3"]),
        (lines([own("a"), own("b")])[:-40], ["line 2", "not JSON at column"]),
        (lines([own("a")]) + "null\n", ["line 2", "must be an object, not null"]),
        ([{"image_id": 1, "caption": "a"}, 3], ["entry 2", "must be an object, not a number"]),
        ([{"image_id": 1, "caption": "a"}, {"image_id": 2}], ["entry 2", "'caption' is missing"]),
        ([{"image_id": 1, "caption": None}], ["entry 1", "'caption' must be text, not null"]),
        ([{"image_id": 1.5, "caption": "a"}], ["entry 1", "'image_id'", "1.5"]),
        ([{"image_id": "", "caption": "a"}], ["entry 1", "'image_id'"]),
        ([{"image_id": 1, "words": "a"}], ["none of the keys explanation, caption", "'image_id', 'words'"]),
        ([{"picture": 1, "caption": "a"}], ["none of the keys image_id, id", "'picture', 'caption'"]),
        ("the sky is calm\na boat\n", ["none of the keys image_id", "'the sky is calm'"]),
        ("id,text\n1,a,b\n", ["line 2", "more cells than the 2 columns", "quote"]),
        ("id,text\n1\n", ["line 2", "fewer cells"]),
        ('id,text\n1,"never closed\n', ["line 2", "not readable as CSV"]),
        ({"7": "the sky is calm"}, ["an object with the keys ['7']", "predictions are"]),
        ({"images": [], "annotations": []}, ["COCO annotations"]),
        ({"7": {"explanations": []}}, ["SEVLM annotations"]),
        (results() + results()[1:], ["'12'", "occurs more than once (2 such images)"]),
        ("id,text\n1,a\n 2,b\n1,c\n", ["'1'", "more than once (1 such images)"]),
        ('[{"id": 1, "text": "a", "text": "b"}]', ["'text' occurs twice"]),
        ([own("a", emotion_distribution=[0.5, 0.5])], ["entry 1", "'emotion_distribution' must be nine numbers"]),
        ([own("a", histogram=[-1] * 9)], ["entry 1", "'histogram' must be nine numbers"]),
        ([own("a", references="a sky")], ["entry 1", "'references' must be a list, not text"]),
        ([own("a", reference_emotions=["joy"])], ["entry 1", "'joy' is not one of the nine"]),
    ],
)
def test_malformed_predictions_are_one_line_errors(tmp_path, content, parts):
    refusal(read_predictions, write(tmp_path / "p.json", content), *parts)


@pytest.mark.parametrize("read", [read_predictions, read_references])
def test_unreadable_files(tmp_path, read):
    refusal(read, tmp_path / "none.json", "no such file")
    refusal(read, tmp_path, "cannot be read")
    (tmp_path / "latin.csv").write_bytes("id,text\n1,größer\n".encode("latin-1"))
    refusal(read, tmp_path / "latin.csv", "not UTF-8", "byte 12")
    (tmp_path / "excel.csv").write_bytes("id,text\n1,a\n".encode("utf-16"))
    refusal(read, tmp_path / "excel.csv", "not UTF-8", "byte 0")


# --- references ------------------------------------------------------------------------------------------------------


def coco(captions: dict[str, list[str]]) -> dict:
    pairs = [(id, text) for id, texts in captions.items() for text in texts]
    annotations = [{"id": n, "image_id": int(id), "caption": text} for n, (id, text) in enumerate(reversed(pairs))]
    return {
        "type": "captions",
        "images": [{"id": int(id), "file_name": f"{id}.jpg"} for id in captions],
        "annotations": annotations,
    }


def sevlm(id: str = "7", **changes) -> dict:
    entry = {
        "emotions": ["awe", "awe", "fear"],
        "explanations": ["vast", "  ", "dark clouds"],
        "image_name": "Style/a.jpg",
        "origin_emotion_distribution": [0, 0.4, 0, 0, 0, 0, 0.6, 0, 0],
        **changes,
    }
    return {id: {key: value for key, value in entry.items() if value is not None}}


def test_coco_annotations(tmp_path):
    found = read_references(write(tmp_path / "annotations.json", coco({"7": ["a", "b", " "], "12": ["c"]})))
    assert {id: sorted(row["references"]) for id, row in found.rows.items()} == {"7": ["a", "b"], "12": ["c"]}
    assert found.rows["7"]["histogram"] is None and found.rows["7"]["reference_emotions"] == []
    assert found.rows["12"]["image_name"] == "12.jpg"
    assert "COCO" in found.format and "3 texts on 2 images" in found.format


def test_coco_annotations_with_emotions_are_split(tmp_path):
    content = coco({"7": ["awe because vast", "awe because it shines because of gold"], "12": ["fear because dark"]})
    found = read_references(write(tmp_path / "annot_full.json", content))
    assert sorted(found.rows["7"]["references"]) == ["it shines because of gold", "vast"]
    assert found.rows["7"]["histogram"][INDEX["awe"]] == 1
    assert found.rows["12"]["reference_emotions"] == ["fear"]


def test_image_with_an_unknown_label_has_no_emotions(tmp_path):
    content = coco({"7": ["awe because vast", "joy because it shines"], "12": ["fear because dark"]})
    row = read_references(write(tmp_path / "annot_full.json", content)).rows["7"]
    assert sorted(row["references"]) == ["it shines", "vast"]
    assert row["histogram"] is None and row["reference_emotions"] == []


def test_sevlm_annotations_have_a_histogram(tmp_path):
    row = read_references(write(tmp_path / "a.json", sevlm())).rows["7"]
    assert row["references"] == ["vast", "dark clouds"] and row["reference_emotions"] == ["awe", "fear"]
    assert row["histogram"] == [0, 0.4, 0, 0, 0, 0, 0.6, 0, 0]
    assert row["image_name"] == "Style/a.jpg"


def test_without_a_histogram_the_listed_emotions_are_counted(tmp_path):
    path = write(tmp_path / "a.json", sevlm(origin_emotion_distribution=None, image_name=None))
    assert read_references(path).rows["7"]["histogram"] == pytest.approx([0, 2 / 3, 0, 0, 0, 0, 1 / 3, 0, 0])


def test_counts_become_shares_and_shares_are_unchanged(tmp_path):
    counts = read_references(write(tmp_path / "a.json", sevlm(origin_emotion_distribution=[0, 3, 0, 0, 0, 0, 1, 0, 0])))
    assert counts.rows["7"]["histogram"] == [0, 0.75, 0, 0, 0, 0, 0.25, 0, 0]
    shares = [0.333333, 0.333333, 0.333333, 0, 0, 0, 0, 0, 0]
    exact = read_references(write(tmp_path / "a.json", sevlm(origin_emotion_distribution=shares)))
    assert exact.rows["7"]["histogram"] == shares


def test_table_may_have_several_rows_per_image(tmp_path):
    table = [["image", "text", "emotion"], ["a", "vast", "awe"], ["b", "grey", "fear"], ["a", "dark", "fear"]]
    found = read_references(write(tmp_path / "t.csv", table))
    assert found.rows["a"]["references"] == ["vast", "dark"]
    assert found.rows["a"]["histogram"] == [0, 0.5, 0, 0, 0, 0, 0.5, 0, 0]
    assert read_references(write(tmp_path / "t.csv", [row[:2] for row in table])).rows["a"]["histogram"] is None


def test_own_predictions_contain_references(tmp_path):
    found = read_references(
        write(tmp_path / "p.jsonl", lines([own("a"), own("b", references=["c"], reference_emotions=["awe"])]))
    )
    assert found.rows["b"]["references"] == ["c"] and found.rows["a"]["histogram"] == own("a")["histogram"]
    assert "EmoScribe" in found.format


def test_votes_alone_are_references_in_the_order_of_the_predicted_labels(tmp_path):
    labels = ["sad", "happy", "calm"]
    votes = {"a": {"image_name": "a.jpg", "emotions": ["happy", "happy", "sad"]}, "b": {"emotions": ["calm"]}}
    references = read_references(write(tmp_path / "votes.json", votes))
    said = [{"id": id, "labels": labels, "emotion": "sad", "emotion_distribution": [0.5, 0.25, 0.25]} for id in "ab"]
    predictions = read_predictions(write(tmp_path / "p.jsonl", lines([row | {"explanation": ""} for row in said])))
    rows, _ = join(predictions, references)
    assert [row["histogram"] for row in rows] == [pytest.approx([1 / 3, 2 / 3, 0]), [0, 0, 1]]
    assert all(row["labels"] == labels and row["references"] == [] for row in rows)
    votes["b"]["emotions"] = ["awe"]
    with pytest.raises(UserError, match=r"is of the emotions sad, happy, calm and .* of awe, happy, sad"):
        join(predictions, read_references(write(tmp_path / "awe.json", votes)))


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["empty"]),
        ({}, ["references are"]),
        ({"images": [], "annotations": []}, ["none of its images has a reference text"]),
        ({"images": [], "annotations": [{"image_id": 1}]}, ["annotations[0]", "'caption' is missing"]),
        ({"annotations": [{"image_id": None, "caption": "a"}]}, ["annotations[0]", "'image_id'"]),
        ({"images": [{"sentences": []}]}, ["an object with the keys ['images']"]),
        (sevlm(emotions=None), ["image '7'", "'emotions' is missing"]),
        (sevlm(emotions=["awe"]), ["image '7'", "3 entries", "'emotions' 1"]),
        (sevlm(emotions=["awe", "awe", "joy"]), ["image '7'", "'joy' is not one of the nine"]),
        (sevlm(explanations=["", " ", ""]), ["none of its images has a reference text"]),
        (sevlm(origin_emotion_distribution=[0] * 9), ["'origin_emotion_distribution' sums to 0"]),
        (sevlm(origin_emotion_distribution=[1]), ["'origin_emotion_distribution' must be nine numbers", "[1]"]),
        (sevlm(origin_emotion_distribution=[float("nan")] * 9), ["must be nine numbers"]),
        ('{"7": {"explanations": []}, "7": {"explanations": []}}', ["the key '7' occurs twice in one object (1 such"]),
        (lines([own("a"), own("a")]), ["image 'a' occurs more than once"]),
        (lines([own("a"), {"id": "b"}]), ["line 2", "'references' is missing"]),
        ("id,text,emotion\n1,a,joy\n", ["line 2", "'joy' is not one of the nine"]),
        ("id,word\n1,a\n", ["none of the keys explanation, caption", "references are"]),
    ],
)  # fmt: skip
def test_malformed_references_are_one_line_errors(tmp_path, content, parts):
    refusal(read_references, write(tmp_path / "r.json", content), *parts)


# --- join ------------------------------------------------------------------------------------------------------------


def both(tmp_path, predicted: list[str], annotated: list[str]) -> tuple[Texts, Texts]:
    a = read_predictions(write(tmp_path / "p.json", [{"image_id": id, "caption": f"c{id}"} for id in predicted]))
    b = read_references(write(tmp_path / "r.csv", [["id", "text"], *[[id, f"t{id}"] for id in annotated]]))
    return a, b


def test_joined_rows_have_the_keys_of_predictions_jsonl(tmp_path):
    rows, notes = join(*both(tmp_path, ["2", "1"], ["1", "2"]))
    assert [row["id"] for row in rows] == ["2", "1"] and notes == []
    assert rows[0]["explanation"] == "c2" and rows[0]["references"] == ["t2"]
    assert {"emotion", "emotion_distribution", "histogram", "reference_emotions"} <= rows[0].keys()


@pytest.mark.parametrize(
    ("predicted", "annotated", "parts"),
    [
        (["1"], ["1", "2", "3"], ["2 images are only in", "r.csv", "first is '2'", "--subset scores the 1"]),
        (["1", "4"], ["1"], ["1 image is only in", "p.json", "first is '4'"]),
        (["5", "1"], ["1", "2"], ["p.json, the first is '5' and", "r.csv, the first is '2'"]),
        (["1"], ["01"], ["'1'", "'01'", "no image in common"]),
    ],
)
def test_different_images_are_refused(tmp_path, predicted, annotated, parts):
    with pytest.raises(UserError) as caught:
        join(*both(tmp_path, predicted, annotated))
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_subset_has_a_note_with_the_numbers(tmp_path):
    rows, notes = join(*both(tmp_path, ["5", "1", "3"], ["1", "2", "3", "4"]), subset=True)
    assert [row["id"] for row in rows] == ["1", "3"]
    assert len(notes) == 1
    for part in ("2 images", "3 predicted", "4 with references"):
        assert part in notes[0]
    with pytest.raises(UserError, match="no image in common"):
        join(*both(tmp_path, ["1"], ["2"]), subset=True)


def test_predictions_without_references_need_a_file(tmp_path):
    with pytest.raises(UserError, match="--references"):
        join(read_predictions(write(tmp_path / "p.json", results())), None)


def test_some_rows_without_references(tmp_path):
    found = read_predictions(write(tmp_path / "p.jsonl", lines([own("a"), own("b", references=[" "]), own("c")])))
    with pytest.raises(UserError, match=r"image 'b' has no references \(1 such images\); --subset"):
        join(found, None)
    rows, notes = join(found, None, subset=True)
    assert [row["id"] for row in rows] == ["a", "c"] and "2 images" in notes[0]


def test_references_of_a_file_replace_the_own_ones(tmp_path):
    predictions = read_predictions(write(tmp_path / "p.jsonl", lines([own("1")])))
    references = read_references(write(tmp_path / "r.csv", [["id", "text"], ["1", "other words"]]))
    (row,), _ = join(predictions, references)
    assert row["references"] == ["other words"] and row["histogram"] is None and row["image"] == "/far/1.png"


# --- other emotions than the nine


def named(id: str, emotion: str | None, **changes) -> dict:
    """Return a row of a captioner trained on two emotions without explanations."""
    shares = [0.25, 0.75]
    row = {"id": id, "labels": ["joy", "fear"], "emotion": emotion, "emotion_distribution": shares, "explanation": None}
    return row | {"text": "", "references": [], "reference_emotions": [], "histogram": [0, 1]} | changes


def test_rows_with_other_labels(tmp_path):
    path = write(tmp_path / "p.jsonl", lines([named("a", "fear"), named("b", "joy"), named("c", "awe")]))
    found = read_predictions(path)
    assert [row["emotion"] for row in found.rows.values()] == ["fear", "joy", None]
    assert found.notes == [
        f"{path}: 1 of 3 predictions name none of the two emotions and count as wrong, the first is that of image "
        "'c' ('awe')"
    ]
    rows, _ = join(found, None)
    assert [(row["labels"], row["histogram"], row["explanation"]) for row in rows] == [
        (["joy", "fear"], [0, 1], None)
    ] * 3
    assert join(found, read_references(path))[0] == rows


@pytest.mark.parametrize(
    ("entries", "parts"),
    [
        ([named("a", "fear"), own("b")], ["image 'b' has other 'labels' than 'a'"]),
        ([named("a", "fear", labels=["joy"])], ["'labels': 1 names, joy"]),
        ([named("a", "fear", labels=["joy", "joy"])], ["'labels': 'joy' and 'joy' cannot be told apart"]),
        ([named("a", "fear", labels="joy")], ["'labels' must be a list"]),
        ([named("a", "fear", labels=["joy", 3])], ["'labels[1]' must be text"]),
        ([named("a", "fear", emotion_distribution=[0.1] * 9)], ["'emotion_distribution' must be two numbers"]),
        ([named("a", "fear", histogram=[1])], ["'histogram' must be two numbers"]),
        ([named("a", "fear", reference_emotions=["awe"])], ["'awe' is not one of the two emotions (joy, fear)"]),
        ([named("a", None)], ["'explanation' must be text, not null"]),
    ],
)
def test_rows_that_contradict_their_labels_are_one_line_errors(tmp_path, entries, parts):
    refusal(read_predictions, write(tmp_path / "p.json", entries), *parts)


def test_predictions_and_references_with_different_labels_are_refused(tmp_path):
    said = read_predictions(write(tmp_path / "p.json", [named("a", "fear"), named("b", "fear")]))
    felt = read_references(write(tmp_path / "r.json", [own("a"), own("b")]))
    with pytest.raises(UserError, match=r"p\.json is of the emotions joy, fear and .*r\.json of amusement, awe"):
        join(said, felt)
