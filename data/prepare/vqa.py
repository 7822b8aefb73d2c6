"""Prepare VQAv2 (Goyal et al., 2017): questions and answers about COCO's pictures, as picture rows.

    python -m data.prepare vqa ROOT --out FOLDER

ROOT contains the JSON files of visualqa.org and the folders train2014, val2014 and test2015 of COCO; in training,
it is visual_dir. FOLDER gets train.jsonl (train2014, and val2014 without its last 1000 pictures), val.jsonl (these),
test.jsonl and test_dev.jsonl (both without answers), and answers.json: the majority answers of train2014 and val2014
that occur at least --min-count times, normalized, in the order of their first occurrence. The score of an answer is
0.3, 0.6, 0.9 or 1 if one, two, three or more of the ten annotators gave it. Questions without an answer of the
vocabulary and pictures without a file are left out and counted. Pictures and questions are in the order of their ids.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError, shorten
from common.files import to_json, write_text
from data.prepare.coco_json import entries, load_lists
from data.prepare.vqa_answers import normalize_answer, soft_scores
from data.readers.annotations import id_of, text_of, texts_of
from data.readers.picture_rows import ANSWERS, Row

QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_{}_questions.json", "v2_mscoco_{}_annotations.json"
TRAIN, VAL, TEST, TEST_DEV = "train2014", "val2014", "test2015", "test-dev2015"
FOLDERS = {TRAIN: TRAIN, VAL: VAL, TEST: TEST, TEST_DEV: TEST}  # of the pictures
TESTS = {TEST: "test.jsonl", TEST_DEV: "test_dev.jsonl"}
HELD_OUT = 1000  # pictures of val2014 in val.jsonl


class Annotation(NamedTuple):
    """The answers to one question, normalized."""

    kind: str  # yes/no, number or other
    majority: str
    answers: list[str]  # one per annotator


def add_parser(commands: argparse._SubParsersAction) -> None:
    summary = "VQAv2: from its JSON files to picture rows for training"
    form = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser("vqa", help=summary, description=__doc__, formatter_class=form)
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder with the JSON files and COCO's pictures")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="output folder")
    parser.add_argument("--min-count", type=int, default=9, help="of an answer in the vocabulary (%(default)s)")
    parser.add_argument("--skip-test", action="store_true", help="prepare train2014 and val2014 only")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status.

    Raises:
        UserError: a setting, an input file or the output folder cannot be used.
    """
    root, out = arguments.root, arguments.out
    _check_inputs(root, FOLDERS if not arguments.skip_test else (TRAIN, VAL))
    annotations = {split: _annotations(root / ANNOTATIONS.format(split)) for split in (TRAIN, VAL)}
    vocabulary = _vocabulary(chain(*(found.values() for found in annotations.values())), arguments.min_count)
    write_text(out / ANSWERS, to_json([*vocabulary], indent=1))
    print(f"{ANSWERS}: {len(vocabulary):,} answers")
    left_out: Counter[str] = Counter()
    train = _rows(root, TRAIN, left_out, annotations.pop(TRAIN), vocabulary)
    val = [*_rows(root, VAL, left_out, annotations.pop(VAL), vocabulary)]
    _write(out / "train.jsonl", chain(train, val[:-HELD_OUT]))
    _write(out / "val.jsonl", val[-HELD_OUT:])
    for split, name in TESTS.items() if not arguments.skip_test else ():
        _write(out / name, _rows(root, split, left_out))
    print("left out:", "; ".join(f"{count:,} {reason}" for reason, count in (+left_out).items()) or "nothing")
    return 0


def _check_inputs(root: Path, splits: Collection[str]) -> None:
    annotated = [ANNOTATIONS.format(split) for split in splits if split in (TRAIN, VAL)]
    names = [*map(QUESTIONS.format, splits), *annotated, *dict.fromkeys(FOLDERS[split] for split in splits)]
    if missing := [name for name in names if not (root / name).exists()]:
        raise UserError(
            f"{root} lacks {', '.join(missing)}: download the JSON files from visualqa.org and the pictures from "
            f"cocodataset.org{', or pass --skip-test' if TEST in splits else ''}"
        )


def _annotations(path: Path) -> dict[int, Annotation]:
    """Return the annotation of each question by its id."""
    found = {}
    for where, record in entries(load_lists(path, _answer), "annotations", path):
        majority = normalize_answer(text_of(record, "multiple_choice_answer", where=where))
        kind, answers = text_of(record, "answer_type", where=where), texts_of(record, "answers", where=where)
        found[_number(record, "question_id", where)] = Annotation(kind, majority, answers)
    return found


def _answer(value: dict[str, Any]) -> dict[str, Any] | str:
    """Replace an annotator's answer by its text while the file is parsed: six million objects take gigabytes."""
    answer = value.get("answer")
    return normalize_answer(answer) if isinstance(answer, str) else value


def _number(record: Mapping[str, Any], key: str, where: str) -> int:
    id = id_of(record, key, where=where)
    if not id.isdecimal():
        raise UserError(f"{where}: {key!r} must be a whole number, not {shorten(id)!r}")
    return int(id)


def _vocabulary(annotations: Iterable[Annotation], min_count: int) -> dict[str, int]:
    """Return the count of each majority answer that occurs `min_count` times, in the order of first occurrence."""
    counts = Counter(annotation.majority for annotation in annotations)
    vocabulary = {answer: count for answer, count in counts.items() if count >= min_count and answer}
    if not vocabulary or min_count < 1:
        raise UserError(f"--min-count {min_count}: give 1 or more, and fewer than the commonest answer occurs")
    return vocabulary


def _rows(
    root: Path,
    split: str,
    left_out: Counter[str],
    annotations: Mapping[int, Annotation] | None = None,
    vocabulary: Collection[str] = (),
) -> Iterator[Row]:
    """Yield the rows of a split in the order of picture ids, and count in `left_out` what has none.

    Args:
        annotations: by question id; None for a test set.
    """
    path, folder = root / QUESTIONS.format(split), FOLDERS[split]
    questions, files = _questions(path, annotations), {path.name for path in (root / folder).iterdir()}
    written = False
    for picture in sorted(questions):
        name = f"COCO_{folder}_{picture:012d}.jpg"
        if name not in files:
            left_out[f"pictures without a file in {folder}"] += 1
            continue
        ordered = sorted(questions[picture], key=lambda question: question["id"])
        asked = [_with_scores(question, annotations, vocabulary) for question in ordered]
        kept = [question for question in asked if annotations is None or question["answers"]]
        left_out["questions without an answer of the vocabulary"] += len(asked) - len(kept)
        if kept:
            written = True
            yield {"id": str(picture), "image": f"{folder}/{name}", "questions": kept}
    if not written:
        raise UserError(f"{path}: none of its pictures can be used; are they in {root / folder}, such as {name}?")


def _questions(path: Path, annotations: Mapping[int, Annotation] | None) -> dict[int, list[Row]]:
    """Return the questions of each picture; raise UserError for one without annotation."""
    found: defaultdict[int, list[Row]] = defaultdict(list)
    for where, record in entries(load_lists(path), "questions", path):
        id = _number(record, "question_id", where)
        if annotations is not None and id not in annotations:
            raise UserError(f"{where}: question {id} has no annotation; the files must be of the same release")
        found[_number(record, "image_id", where)].append(
            {"id": id, "question": text_of(record, "question", where=where)}
        )
    if not found:
        raise UserError(f"{path}: the file has no questions")
    return found


def _with_scores(question: Row, annotations: Mapping[int, Annotation] | None, vocabulary: Collection[str]) -> Row:
    if annotations is None:
        return question
    annotation = annotations[question["id"]]
    return {**question, "type": annotation.kind, "answers": soft_scores(annotation.answers, vocabulary)}


def _write(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON Lines, and print how many."""
    counts: Counter[str] = Counter()

    def lines() -> Iterator[str]:
        for row in rows:
            counts.update(pictures=1, questions=len(row["questions"]))
            yield to_json(row)

    write_text(path, lines())
    print(f"{path.name}: {counts['pictures']:,} pictures, {counts['questions']:,} questions")
