"""The demo as picture rows: true answers, boxes of what a text names, and no answer that is right too often."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from common.errors import UserError
from data.demo import COUNTS, write_demo
from data.demo.questions import QUESTIONS, write_rows
from data.demo.scenes import SPLITS
from data.demo.sentences import COLORS, NOUNS, STROKES
from data.readers.facts import read_facts
from data.readers.picture_rows import PictureRows, read_answers

SEED = 2021
FILES = ("answers.json", *(f"rows_{split}.jsonl" for split in SPLITS))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "demo"
    write_demo(root, seed=SEED, num_train=240, num_val=30, num_test=COUNTS["test"], image_size=16)
    write_rows(root, SEED)
    return root


def rows_of(root: Path, split: str) -> PictureRows:
    return PictureRows(root / f"rows_{split}.jsonl", root / "images")


def answers_of(row: dict) -> dict[str, str]:
    return {question["type"]: next(iter(question["answers"])) for question in row["questions"]}


def test_answers_say_what_the_picture_shows(demo: Path) -> None:
    facts, several = read_facts(demo / "facts.json"), 0
    for row in rows_of(demo, "train"):
        shown, boxes, answers = facts.images[row["id"]], facts.boxes[row["id"]], answers_of(row)
        assert answers["what"] in NOUNS[shown["subject"][0]][0]
        assert answers["colors"] in COLORS[shown["palette"][0]]
        assert answers["brushwork"] in STROKES[shown["brushwork"][0]]
        if shown["composition"] == ("close",):
            assert answers["where"] == "filling the canvas"
        else:
            assert shown["place"][0] in answers["where"]
        assert answers.get("count", str(len(boxes))) == str(len(boxes))
        assert ("count" in answers) >= (len(boxes) > 1)
        several += len(boxes) > 1
        assert [item["box"] for item in row["objects"]] == [list(box) for box in boxes]
    assert several > 10


def test_vocabulary_holds_every_answer(demo: Path) -> None:
    vocabulary = read_answers(demo / "answers.json")
    for split in SPLITS:
        for row in rows_of(demo, split):
            for question in row["questions"]:
                assert question["answers"].keys() <= {*vocabulary}
                assert [*question["answers"].values()] == [1.0]


def test_texts_name_the_subject_and_have_its_boxes(demo: Path) -> None:
    facts, explanations = read_facts(demo / "facts.json"), 0
    for row in rows_of(demo, "train"):
        boxes = [list(box) for box in facts.boxes[row["id"]]]
        phrases = facts.phrases["subject"][facts.images[row["id"]]["subject"][0]]
        assert row["texts"][0]["text"].startswith("a painting of ")
        for text in row["texts"]:
            assert text["boxes"] == boxes
            assert any(phrase in text["text"] for phrase in phrases)
        assert len({text["text"] for text in row["texts"]}) == len(row["texts"])
        explanations += len(row["texts"]) - 1
    assert explanations > 240


def test_questions_are_phrased_in_several_ways_without_plural_hints(demo: Path) -> None:
    asked = {question["question"] for row in rows_of(demo, "train") for question in row["questions"]}
    for kind, phrasings in QUESTIONS.items():
        fixed = [phrasing.partition("{noun}")[0] for phrasing in phrasings]
        assert len(fixed) > 2
        assert all(any(question.startswith(start) for question in asked) for start in fixed), kind
    plurals = {noun for one, many in NOUNS.values() for noun in many if noun not in one}
    assert not any(f"the {noun} " in question or f"the {noun}?" in question for noun in plurals for question in asked)


def test_ids_of_questions_differ(demo: Path) -> None:
    ids = [question["id"] for split in SPLITS for row in rows_of(demo, split) for question in row["questions"]]
    assert len(set(ids)) == len(ids)


def test_no_answer_is_right_for_more_than_half_of_the_questions(demo: Path) -> None:
    found: dict[str, Counter[str]] = {kind: Counter() for kind in QUESTIONS}
    for row in rows_of(demo, "test"):  # as many as the demo has by default
        for kind, answer in answers_of(row).items():
            found[kind][answer] += 1
    shares = {kind: max(counts.values()) / counts.total() for kind, counts in found.items()}
    assert max(shares.values()) <= 0.5, shares
    assert found["count"]["1"] > 20  # some pictures with one subject are counted


def test_rows_depend_on_the_seed_alone(demo: Path, tmp_path: Path) -> None:
    for name, seed in (("same", SEED), ("other", SEED + 1)):
        root = tmp_path / name
        shutil.copytree(demo, root, ignore=shutil.ignore_patterns("rows_*", "answers.json", "images"))
        write_rows(root, seed)
    same = [(tmp_path / "same" / name).read_bytes() == (demo / name).read_bytes() for name in FILES]
    other = [(tmp_path / "other" / name).read_bytes() == (demo / name).read_bytes() for name in FILES]
    assert same == [True] * 4
    assert other == [True, False, False, False]  # the vocabulary is that of the demo


def test_existing_rows_are_kept_and_missing_ones_written(demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path / "demo", ignore=shutil.ignore_patterns("images"))
    path = tmp_path / "demo/rows_test.jsonl"
    path.write_text("mine")
    write_rows(tmp_path / "demo", SEED)
    assert path.read_text() == "mine"
    (tmp_path / "demo/answers.json").unlink()
    write_rows(tmp_path / "demo", SEED)
    assert all((tmp_path / "demo" / name).read_bytes() == (demo / name).read_bytes() for name in FILES)


def test_folder_without_a_demo_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no demo; write it with"):
        write_rows(tmp_path, SEED)
    assert not any(tmp_path.iterdir())
