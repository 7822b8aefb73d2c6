"""Pictures whose names hold any bytes are used by every command that reads a folder."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import pytest

from data.prepare.__main__ import main as prepare
from tests.helpers.tiny import run_mode, write_pictures, write_run, write_splits, write_tokenizer

NAMES = (b"caf\xe9", b"\xff\xfe", b"line\nbreak\r", b"\x1b[A\x1b[8m\x07", b"quote\"'", b"=1+1", b"\xe2\x80\xae")
DIRECTION = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]")


def fill(folder: Path) -> Path:
    """Write a picture of each name, and one that is no picture."""
    for name, path in zip((*NAMES, b"bad\xe9"), write_pictures(folder, len(NAMES) + 1), strict=True):
        path.rename(os.fsdecode(os.fsencode(folder) + b"/" + name + b".png"))
    Path(os.fsdecode(os.fsencode(folder) + b"/bad\xe9.png")).write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("splits"))


@pytest.fixture(scope="module")
def run(keys) -> Path:
    return write_run(keys, "run")


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().decode().splitlines()]


@pytest.mark.parametrize("strategy", ["greedy", "nucleus"])
def test_predict(run, tmp_path, strategy):
    settings = {"pretrained_name": run, "image": fill(tmp_path / "in"), "trainer.exp_dir": tmp_path, "name": "out"}
    run_mode("predict", {**settings, "trainer.test.decoding_strategy": strategy})
    folder = tmp_path / "out/predict"
    rows, (skipped,) = rows_of(folder / "predictions.jsonl"), rows_of(folder / "skipped.jsonl")
    assert len({row["id"] for row in rows}) == len(NAMES) and "bad\\xe9" in skipped["id"]
    assert all(Path(row["image"]).is_file() for row in [*rows, skipped]), "the path leads to the file"
    assert json.loads((folder / "predictions.json").read_bytes()) == rows
    page = (folder / "report.html").read_bytes().decode()
    assert page.count("data:image/jpeg") == len(NAMES) and not DIRECTION.search(page)


@pytest.fixture
def folders(tmp_path) -> dict[str, object]:
    """An emotion folder of two emotions for each split."""
    for split in ("train", "test"):
        for emotion in ("fear", "joy"):
            fill(tmp_path / "data" / split / emotion)
    paths = {f"dataset.{split}_ds.visual_dir": tmp_path / "data" / split for split in ("train", "test")}
    return {"dataset.name": "emotion_folder", **paths}


def test_train_and_test_on_an_emotion_folder(run, keys, folders, tmp_path):
    settings = {**keys, "model.vad.enabled": False, "dataset.vad_lexicon": None, "model.contrastive.enabled": False}
    for split in ("train", "validation", "test"):
        settings |= {f"dataset.{split}_ds.json_path": None, f"dataset.{split}_ds.visual_dir": None}
    settings |= {**folders, "dataset.labels": None, "dataset.explanations": False, "trainer.exp_dir": tmp_path}
    run_mode("train", {**settings, "name": "out"})
    run_mode("test", {"pretrained_name": tmp_path / "out", "trainer.exp_dir": tmp_path})
    folder = tmp_path / "out/test"
    assert len(rows_of(folder / "predictions.jsonl")) == 2 * len(NAMES)
    assert len(rows_of(folder / "skipped.jsonl")) == 2
    assert len(rows_of(tmp_path / "out/skipped.jsonl")) == 2
    assert not DIRECTION.search((folder / "report.html").read_bytes().decode())


def test_prepare_lists_and_uses_them(folders, tmp_path):
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    words = [f"{key}={value}" for key, value in {**folders, "dataset.tokenizer": tokenizer}.items()]
    assert prepare(["check", "preset=none", *words, "--out", str(tmp_path / "check"), "--workers", "1"]) == 1
    with (tmp_path / "check/problems.csv").open(encoding="utf-8", newline="") as file:
        bad = {row["path"] for row in csv.DictReader(file) if row["kind"] == "corrupt"}
    assert len(bad) == 4 and all("bad\\udce9.png" in path for path in bad)
    assert not DIRECTION.search((tmp_path / "check/report.html").read_bytes().decode())
    assert prepare(["instructions", "preset=none", *words, "--out", str(tmp_path / "talks")]) == 0
    talks = rows_of(tmp_path / "talks/instructions_train.jsonl")
    root = tmp_path / "data/train"
    assert talks and all((root / talk["image"]).is_file() for talk in talks)
