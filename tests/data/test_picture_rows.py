"""Picture rows: what a row holds, that little is kept in memory, and the message for every damaged line."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path

import pytest

from common.errors import UserError
from data.readers import picture_rows
from data.readers.picture_rows import PictureRows, read_answers

BOX = [0.0, 0.25, 0.5, 1.0]
ROW = {
    "id": "7",
    "image": "style/a.png",
    "questions": [{"id": 70, "question": "how many?", "type": "number", "answers": {"2": 1.0, "3": 0.3}}],
    "texts": [{"text": "two boats", "boxes": [BOX]}, {"text": "the sea", "boxes": []}, {"text": "calm"}],
    "objects": [{"name": "boat", "box": BOX}],
}


@pytest.fixture
def read(tmp_path: Path):
    """Return a function that writes rows (or lines as they are) and reads them; a.png and b.png exist."""
    for name in ("style/a.png", "b.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def reader(*rows: dict | str, prefix: str = "", **options: bool) -> PictureRows:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / "rows.jsonl").write_text(prefix + "".join(f"{line}\n" for line in lines), encoding="utf-8")
        return PictureRows(tmp_path / "rows.jsonl", tmp_path / "images", **options)

    return reader


def test_row_is_read_as_written(read, tmp_path: Path) -> None:
    rows = read(ROW, {"id": 8, "image": "b.png"})
    assert len(rows) == 2
    assert rows[0] == ROW
    assert rows[1] == rows[-1] == {"id": "8", "image": "b.png", "questions": [], "texts": [], "objects": []}
    assert [rows.id(i) for i in range(2)] == ["7", "8"]
    assert [rows.path(i) for i in range(2)] == [tmp_path / "images/style/a.png", tmp_path / "images/b.png"]
    with pytest.raises(IndexError):
        rows[2]


def test_question_may_lack_type_and_answers(read) -> None:
    [row] = read({"id": "1", "image": "b.png", "questions": [{"id": "q", "question": "why?"}]})
    assert row["questions"] == [{"id": "q", "question": "why?", "type": "", "answers": {}}]


def test_text_without_boxes_differs_from_one_with_none(read) -> None:
    [row] = read(ROW)
    assert ["boxes" in text for text in row["texts"]] == [True, True, False]


def test_byte_order_mark_blank_lines_and_missing_line_end(read, tmp_path: Path) -> None:
    lines = ["", json.dumps({"id": "é", "image": "b.png"}), "   ", json.dumps(ROW)]
    rows = read(*lines, prefix="\ufeff")
    (tmp_path / "rows.jsonl").write_bytes((tmp_path / "rows.jsonl").read_bytes().rstrip())
    assert [row["id"] for row in rows] == ["é", "7"]
    marked = read(ROW, prefix="\ufeff")
    assert marked[0] == ROW


def _first(rows: PictureRows, index: int) -> dict:
    return rows[index]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_row_is_read_in_another_process(read, method: str) -> None:
    rows = read(ROW, {"id": "8", "image": "b.png"})
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_first, (rows, 0)) == ROW


def test_only_offsets_are_kept(read) -> None:
    long = {"id": "1", "image": "b.png", "texts": [{"text": "word " * 20000}]}
    rows = read(long)
    assert len(pickle.dumps(rows)) < 5000
    assert rows[0]["texts"] == long["texts"]


DAMAGED = {
    "not JSON": ('{"id": "1", "image": ', "not JSON"),
    "not an object": ("[1]", "must be an object, not a list"),
    "no id": ({"image": "b.png"}, "'id' is missing"),
    "no image": ({"id": "1"}, "'image' is missing"),
    "image outside": ({"id": "1", "image": "../b.png"}, "leads out of"),
    "absolute image": ({"id": "1", "image": "/etc/passwd"}, "leads out of"),
    "twice": ({"id": 7, "image": "b.png"}, "id '7' appears twice"),
    "questions": ({"id": "1", "image": "b.png", "questions": {}}, "'questions' must be a list"),
    "question": ({"id": "1", "image": "b.png", "questions": [{"id": 1}]}, r"questions\[0\]: the key 'question' is"),
    "question id": ({"id": "1", "image": "b.png", "questions": [{"id": [], "question": ""}]}, "'id' must be a whole"),
    "type": ({"id": "1", "image": "b.png", "questions": [{"id": 1, "question": "", "type": 3}]}, "'type' must be text"),
    "text": ({"id": "1", "image": "b.png", "texts": ["a"]}, r"texts\[0\]: must be an object, not text"),
    "boxes": ({"id": "1", "image": "b.png", "texts": [{"text": "a", "boxes": None}]}, "'boxes' must be a list"),
    "object": ({"id": "1", "image": "b.png", "objects": [{"name": "a"}]}, r"objects\[0\]: the key 'box' is missing"),
    "surrogate": ('{"id": "1", "image": "b.png", "texts": [{"text": "\\ud800"}]}', "half of a surrogate"),
}


@pytest.mark.parametrize(("line", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_line_is_named(read, line: dict | str, message: str) -> None:
    with pytest.raises(UserError, match=rf"rows\.jsonl, line 2.*{message}") as error:
        read(ROW, line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("score", [-0.1, 1.1, True, "1", None, float("nan")])
def test_score_must_be_a_share(read, score: object) -> None:
    question = {"id": 1, "question": "q", "answers": {"yes": score}}
    with pytest.raises(UserError, match=r"line 1, questions\[0\]: the score of the answer 'yes' must be from 0 to 1"):
        read({"id": "1", "image": "b.png", "questions": [question]})


WRONG_BOXES = [[0, 0, 1], [0.5, 0, 0.5, 1], [0, 0.6, 1, 0.5], [0, 0, 1, 1.01], [-0.1, 0, 1, 1], "box", [0, 0, 1, "1"],
               [0, 0, 1, True], [0, 0, float("nan"), 1], [0, 0, 300, 400]]  # fmt: skip


@pytest.mark.parametrize("box", WRONG_BOXES, ids=str)
def test_box_must_have_area_inside_the_picture(read, box: object) -> None:
    for row in ({"objects": [{"name": "a", "box": box}]}, {"texts": [{"text": "a", "boxes": [BOX, box]}]}):
        with pytest.raises(UserError, match=r"line 1, (objects|texts)\[0\]: a box is"):
            read({"id": "1", "image": "b.png", **row})


def test_empty_file_and_missing_files(read, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows\.jsonl: the file has no rows"):
        read()
    with pytest.raises(UserError, match=r"none\.jsonl: the picture rows cannot be read \(No such file"):
        PictureRows(tmp_path / "none.jsonl", tmp_path / "images")
    with pytest.raises(UserError, match=r"rows\.jsonl: there is no folder .*elsewhere"):
        PictureRows(tmp_path / "rows.jsonl", tmp_path / "elsewhere")


def test_line_without_end_is_refused(read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_rows, "LONGEST_LINE", 100)
    with pytest.raises(UserError, match="line 2: longer than 100 bytes"):
        read({"id": "1", "image": "b.png"}, "x" * 200)


def test_missing_picture_stops_or_is_left_out(read) -> None:
    missing = {"id": "1", "image": "none.png"}
    with pytest.raises(UserError, match=r"1 of 2 pictures cannot be used, the first is .*none\.png \(id '1'\)"):
        read(missing, ROW)
    rows = read(missing, ROW, {"id": "8", "image": "b.png"}, strict=False)
    assert [row["id"] for row in rows] == [rows.id(0), rows.id(1)] == ["7", "8"]
    assert [skipped.id for skipped in rows.skipped] == ["1"]
    with pytest.raises(UserError, match="1 of 1 pictures"):
        read(missing, strict=False)


def test_link_out_of_the_folder_is_refused(read, tmp_path: Path) -> None:
    (tmp_path / "secret.png").touch()
    (tmp_path / "images/link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match="symbolic link out of"):
        read({"id": "1", "image": "link.png"})


def test_file_that_changed_is_reported(read, tmp_path: Path) -> None:
    rows = read(ROW, {"id": "8", "image": "b.png"})
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="line 2: not JSON"):
        rows[1]
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(UserError, match="line 1 cannot be read any more"):
        rows[0]


def test_answers_are_different_texts(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text('["yes", "no", "2"]')
    assert read_answers(path) == ["yes", "no", "2"]
    for content, message in (("[]", "empty"), ('["a", "a"]', "two answers are equal"), ("[1]", "must be text"),
                             ('{"a": 0}', "must be a list")):  # fmt: skip
        path.write_text(content)
        with pytest.raises(UserError, match=f"answers.json.*{message}"):
            read_answers(path)
