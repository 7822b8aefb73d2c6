"""VCR's annotation files: questions, boxes, and faults in them."""

from __future__ import annotations

import json

import pytest

from common.errors import UserError
from data.readers.vcr import VcrRows
from tests.helpers.vle_runs import vcr_row, write_vcr


def write(root, *rows: dict) -> VcrRows:
    path = root / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return VcrRows(path, root / "images")


@pytest.fixture
def root(tmp_path):
    write_vcr(tmp_path, "train", 6)
    return tmp_path


def test_questions_are_read_by_number(root):
    rows = VcrRows(root / "vcr_train.jsonl", root / "images")
    assert len(rows) == 6 == len(rows.samples)
    assert [rows[i] for i in range(6)] == [vcr_row(i) for i in range(6)]
    assert [sample.path.name for sample in rows.samples] == ["v0.png", "v0.png", "v1.png", "v1.png", "v2.png", "v2.png"]
    boxes, size = rows.boxes(rows[0])
    assert size == (60, 40) and boxes[0] == [15, 0, 30, 20]


def test_questions_without_a_picture_are_skipped(root):
    (root / "images" / "v1.png").unlink()
    rows = VcrRows(root / "vcr_train.jsonl", root / "images")
    assert [row["annot_id"] for row in rows] == ["val-0", "val-1", "val-4", "val-5"]
    assert [sample.path.name for sample in rows.samples] == ["v0.png", "v0.png", "v2.png", "v2.png"]
    assert [skipped.path.name for skipped in rows.skipped] == ["v1.png", "v1.png"]


def test_test_questions_have_no_labels(root):
    row = {key: value for key, value in vcr_row(0).items() if not key.endswith("_label")}
    assert write(root, row)[0] == {**row, "answer_label": None, "rationale_label": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer_label": 4}, "answer_label must be a number from 0 to 3, not 4"),
        ({"rationale_label": "1"}, "rationale_label must be a number from 0 to 3, not '1'"),
        ({"answer_label": [1]}, "answer_label must be a number from 0 to 3"),
        ({"answer_choices": [["no"]]}, "answer_choices must have 4 entries"),
        ({"rationale_choices": "none"}, "rationale_choices must have 4 entries"),
        ({"objects": ...}, "objects is missing; give VCR's own train.jsonl"),
        ({"img_fn": 7}, "'img_fn'"),
        ({"img_fn": "../own.jsonl"}, "own.jsonl"),
    ],
)
def test_a_faulty_line_is_named(root, change, message):
    row = {key: value for key, value in {**vcr_row(0), **change}.items() if value is not ...}
    with pytest.raises(UserError, match=message) as caught:
        write(root, vcr_row(1), row)
    assert "own.jsonl, question 2" in str(caught.value)


def test_other_files_are_refused(root):
    path = root / "other.jsonl"
    for content, message in (("{", "question 1: not JSON"), ("", "no question"), ("[1]\n", "question 1")):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            VcrRows(path, root / "images")
    with pytest.raises(UserError, match=r"missing\.jsonl"):
        VcrRows(root / "missing.jsonl", root / "images")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"boxes": [[1, 2, 3]], "width": 4, "height": 4}, "boxes of 4 numbers"),
        ({"boxes": [["a", 2, 3, 4]], "width": 4, "height": 4}, "boxes of 4 numbers"),
        ({"boxes": 3, "width": 4, "height": 4}, "boxes of 4 numbers"),
        ({"boxes": [], "width": 4}, "height"),
        ({"boxes": [], "width": 0, "height": 4}, "must be above 0, not 0 and 4"),
        ([], r"v0\.json"),
    ],
)
def test_faulty_boxes_are_named(root, content, message):
    rows = VcrRows(root / "vcr_train.jsonl", root / "images")
    (root / "images" / "v0.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        rows.boxes(rows[0])
    assert "v0.json" in str(caught.value)


def test_boxes_outside_the_folder_are_refused(root):
    (root / "own.json").write_text(json.dumps({"boxes": [], "width": 4, "height": 4}))
    for name in ("../own.json", "gone.json", 5):
        rows = write(root, {**vcr_row(0), "metadata_fn": name})
        with pytest.raises(UserError):
            rows.boxes(rows[0])
