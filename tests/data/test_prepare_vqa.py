"""`python -m data.prepare vqa`: normalized answers, vocabulary, soft scores, held-out pictures, messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data.prepare import vqa
from data.prepare.__main__ import main
from data.prepare.vqa_answers import normalize_answer, soft_scores
from data.readers.picture_rows import PictureRows, read_answers


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("a/c", "c"),
        ("u.s.a.", "usa"),
        ("St. Louis", "st louis"),
        ("1,000", "1000"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("Dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("twas", "'twas"),
        ("lets", "lets"),
        ("The  red,\twhite", "red white"),
        ("black-and-white", "black and white"),
        ("3.5", "3.5"),
        ("yes!", "yes"),
        ("well (1,000-2)", "well 10002"),
        ("5:30", "5:30"),
        ("the", ""),
    ],
)
def test_answers_are_normalized(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


def test_score_grows_with_the_annotators() -> None:
    answers = ["a"] + 2 * ["b"] + 3 * ["c"] + 4 * ["d"] + 5 * ["e"] + 6 * ["not in it"]
    assert soft_scores(answers, {*"abcdef"}) == {"a": 0.3, "b": 0.6, "c": 0.9, "d": 1.0, "e": 1.0}


PICTURES = {"train2014": (9, 25, 30), "val2014": (42, 73, 74, 133), "test2015": (1, 16)}
Change = Callable[[dict], None]


def question(picture: int, number: int = 0) -> dict:
    return {"image_id": picture, "question": f"what is {number}?", "question_id": picture * 1000 + number}


def annotation(picture: int, *answers: str, number: int = 0, kind: str = "other") -> dict:
    raw = [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i, answer in enumerate(answers, 1)]
    keys = {"image_id": picture, "question_id": picture * 1000 + number, "question_type": "what is"}
    return keys | {"multiple_choice_answer": answers[0], "answer_type": kind, "answers": raw}


def content() -> dict[str, dict]:
    """Return the content of all six JSON files; "Two" and "2" are the majority twice, "a cat" twice, "dog" once."""
    files = {
        vqa.QUESTIONS.format(split): {"questions": [question(picture) for picture in reversed(PICTURES[folder])]}
        for split, folder in vqa.FOLDERS.items()
    }
    files[vqa.QUESTIONS.format("test-dev2015")]["questions"].pop()
    files[vqa.QUESTIONS.format("train2014")]["questions"] += [question(9, 2), question(9, 1)]
    files[vqa.ANNOTATIONS.format("train2014")] = {
        "annotations": [
            annotation(25, "A cat.", "cat", "cat", "two", "dog"),
            annotation(9, "Two", "2", "two", "two", "cat", kind="number"),
            annotation(9, "dog", "dogs", number=1),
            annotation(9, "dogs", "cat", number=2),
            annotation(30, "2"),
        ]
    }
    files[vqa.ANNOTATIONS.format("val2014")] = {
        "annotations": [annotation(picture, "the cat") for picture in (42, 73, 74)] + [annotation(133, "fish", "cat")]
    }
    return files


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that writes ROOT, changed by `change`, and runs the command; two val pictures are held out."""
    monkeypatch.setattr(vqa, "HELD_OUT", 2)

    def run(change: Change = lambda files: None, *options: str, without: tuple[str, ...] = ()) -> int:
        for folder, pictures in PICTURES.items():
            (tmp_path / "root" / folder).mkdir(parents=True, exist_ok=True)
            for name in (f"COCO_{folder}_{picture:012}.jpg" for picture in pictures):
                (tmp_path / "root" / folder / name).touch()
        files = content()
        change(files)
        for name, value in files.items():
            (tmp_path / "root" / name).write_text(value if isinstance(value, str) else json.dumps(value))
        for name in without:
            path = tmp_path / "root" / name
            path.rename(path.with_name(f"away {path.name}"))
        return main(["vqa", str(tmp_path / "root"), "--out", str(tmp_path / "out"), "--min-count", "2", *options])

    return run


def test_rows_hold_normalized_answers_with_scores(prepare, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert prepare() == 0
    out = tmp_path / "out"
    assert read_answers(out / "answers.json") == ["cat", "2"]  # "dog" is the majority once
    train = PictureRows(out / "train.jsonl", tmp_path / "root")
    assert [row["id"] for row in train] == ["9", "25", "30", "42", "73"]  # of val2014 all but the last two
    assert train[0] == {
        "id": "9",
        "image": "train2014/COCO_train2014_000000000009.jpg",
        "questions": [
            {"id": 9000, "question": "what is 0?", "type": "number", "answers": {"2": 1.0, "cat": 0.3}},
            {"id": 9002, "question": "what is 2?", "type": "other", "answers": {"cat": 0.3}},
        ],
        "texts": [],
        "objects": [],
    }
    assert train[1]["questions"][0]["answers"] == {"cat": 0.9, "2": 0.3}
    assert train.path(3) == tmp_path / "root/val2014/COCO_val2014_000000000042.jpg"
    val = PictureRows(out / "val.jsonl", tmp_path / "root")
    assert [row["id"] for row in val] == ["74", "133"]
    assert val[1]["questions"][0]["answers"] == {"cat": 0.3}  # its majority "fish" is not in the vocabulary
    printed = capsys.readouterr().out
    assert "train.jsonl: 5 pictures, 6 questions" in printed
    assert "left out: 1 questions without an answer of the vocabulary\n" in printed


def test_test_sets_have_questions_without_answers(prepare, tmp_path: Path) -> None:
    assert prepare() == 0
    ids = {}
    for name in ("test", "test_dev"):
        rows = PictureRows(tmp_path / f"out/{name}.jsonl", tmp_path / "root")
        ids[name] = [found["id"] for row in rows for found in row["questions"]]
        assert all(found["answers"] == {} for row in rows for found in row["questions"])
    assert ids == {"test": [1000, 16000], "test_dev": [16000]}


def test_order_of_the_questions_does_not_matter(prepare, tmp_path: Path) -> None:
    def turn(files: dict) -> None:
        for value in files.values():
            if "questions" in value:
                value["questions"].reverse()

    def written() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    assert prepare() == 0
    first = written()
    assert prepare(turn) == 0
    assert written() == first
    assert {*first} == {"train.jsonl", "val.jsonl", "test.jsonl", "test_dev.jsonl", "answers.json"}


def test_pictures_without_a_file_are_left_out(prepare, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert prepare(without=("train2014/COCO_train2014_000000000025.jpg",)) == 0
    assert [row["id"] for row in PictureRows(tmp_path / "out/train.jsonl", tmp_path / "root")] == [
        "9",
        "30",
        "42",
        "73",
    ]
    assert "1 pictures without a file in train2014" in capsys.readouterr().out
    assert read_answers(tmp_path / "out/answers.json") == ["cat", "2"]  # from all annotations


def test_missing_files_are_named_in_one_sentence(prepare, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = (vqa.ANNOTATIONS.format("val2014"), vqa.QUESTIONS.format("test-dev2015"), "test2015")
    assert prepare(without=names) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert all(name in line for name in names)
    assert line.endswith("or pass --skip-test")
    assert not (tmp_path / "out").exists()


def test_test_set_may_be_skipped(prepare, tmp_path: Path) -> None:
    names = (vqa.QUESTIONS.format("test2015"), vqa.QUESTIONS.format("test-dev2015"), "test2015")
    assert prepare(lambda files: None, "--skip-test", without=names) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train.jsonl", "val.jsonl", "answers.json"}


def spoil(name: str, change: Callable[[dict], object]) -> Change:
    return lambda files: change(files[name])


TRAIN_QUESTIONS, TRAIN_ANNOTATIONS = vqa.QUESTIONS.format("train2014"), vqa.ANNOTATIONS.format("train2014")
DAMAGED = {
    "not JSON": (lambda files: files.update({TRAIN_QUESTIONS: "{"}), f"{TRAIN_QUESTIONS}: not JSON"),
    "list": (lambda files: files.update({TRAIN_QUESTIONS: []}), f"{TRAIN_QUESTIONS}: must be an object"),
    "no question": (spoil(TRAIN_QUESTIONS, lambda value: value["questions"][1].pop("question")),
                    f"{TRAIN_QUESTIONS}: questions[1]: the key 'question' is missing"),
    "no questions": (lambda files: files.update({TRAIN_QUESTIONS: {"questions": []}}), "the file has no questions"),
    "no annotation": (spoil(TRAIN_ANNOTATIONS, lambda value: value["annotations"].pop()),
                      "question 30000 has no annotation"),
    "image id": (spoil(TRAIN_QUESTIONS, lambda value: value["questions"][0].update(image_id="a")),
                 "'image_id' must be a whole number, not 'a'"),
    "answer": (spoil(TRAIN_ANNOTATIONS, lambda value: value["annotations"][0]["answers"][1].pop("answer")),
               "annotations[0]: 'answers[1]' must be text"),
    "rare answers": (lambda files: [record.update(multiple_choice_answer=str(record["question_id"]))
                                    for value in files.values() for record in value.get("annotations", ())],
                     "--min-count 2: give 1 or more"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_named(prepare, capsys: pytest.CaptureFixture, change: Change, message: str) -> None:
    assert prepare(change) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_folder_without_its_pictures_is_named(prepare, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = tuple(f"val2014/COCO_val2014_{picture:012}.jpg" for picture in PICTURES["val2014"])
    assert prepare(without=names) == 2
    assert "none of its pictures can be used; are they in" in capsys.readouterr().err
    assert not (tmp_path / "out/train.jsonl").exists()
