"""python -m data.prepare check: problems and statistics of a data set."""

from __future__ import annotations

import argparse
import csv
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from data.emotions import EMOTIONS
from data.prepare.check import command as check
from data.prepare.check.dataset import KINDS, SPLITS, check_dataset
from data.prepare.check.texts import LACKING, TextChecker, most_frequent
from data.schema import Sample
from data.text import Template
from data.vad.align import VadAligner
from data.vad.lexicon import Lexicon
from tests.helpers.clips import write_clip
from tests.helpers.folders import write_emotions
from tests.helpers.html_page import Page
from tests.helpers.shards import artemis_tars
from tests.helpers.tiny import (
    LEXICON,
    arguments,
    make_aligner,
    write_artemis,
    write_pictures,
    write_splits,
    write_tokenizer,
)

NO_FILES = {f"dataset.{split}.{key}": None for split in SPLITS for key in ("json_path", "visual_dir")}
EVIL = "<b>'&\".png"


def run(keys: dict[str, object], out: Path, *options: str) -> int:
    """Return the command's exit status."""
    parser = argparse.ArgumentParser()
    check.add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["check", *arguments(keys), "--out", str(out), "--workers", "1", *options])
    return parsed.run(parsed)


def problems(out: Path) -> list[dict[str, str]]:
    with (out / "problems.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def summary(out: Path) -> dict:
    return json.loads((out / "check.json").read_text(encoding="utf-8"))


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, object]:
    """Three splits without problems; ids are 1000 … in training, validation-1000 … and test-1000 … elsewhere."""
    keys = {key: value for key, value in write_splits(tmp_path).items() if not key.startswith(("model", "trainer"))}
    for split in ("validation", "test"):
        path = keys[f"dataset.{split}_ds.json_path"]
        data = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({f"{split}-{id}": entry for id, entry in data.items()}), encoding="utf-8")
    return keys


@contextmanager
def edit(path: Path) -> Iterator[dict]:
    """The value of a JSON file, written back at the end."""
    value = json.loads(path.read_text(encoding="utf-8"))
    yield value
    path.write_text(json.dumps(value), encoding="utf-8")


# --- the whole command


def test_data_without_problems(keys, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(keys, out) == 0
    assert problems(out) == []
    found = summary(out)
    assert not found["wrong"] and found["problems"] == {} and list(found["splits"]) == list(SPLITS)
    for split, count in (("train_ds", 8), ("validation_ds", 4), ("test_ds", 5)):
        images = found["splits"][split]["images"]
        assert images == {"listed": count, "usable": count, "missing": 0, "ambiguous": 0, "corrupt": 0, "renamed": 0}
        assert found["splits"][split]["texts_per_image"] == {"4": count}
        assert found["splits"][split]["sizes"]["width"] == {"min": 40, "median": 40, "max": 40}
        assert sum(found["splits"][split]["votes"].values()) == 4 * count
        assert found["splits"][split]["dominant"] == {name: int(i < count) for i, name in enumerate(EMOTIONS)}
    page = Page(out / "report.html")
    page.require_self_contained()
    assert "Nothing is wrong" in page.text and sum(tag == "svg" for tag, _ in page.tags) == 4 * len(SPLITS)
    printed = capsys.readouterr()
    assert "images listed" in printed.out and "awe" in printed.out and str(out / "problems.csv") in printed.out
    assert "opening the images of train_ds" in printed.err, "progress"


def test_every_kind_of_problem_is_listed_with_its_image(keys, tmp_path, capsys):
    train, style = keys["dataset.train_ds.json_path"], keys["dataset.train_ds.visual_dir"] / "Style"
    pictures = sorted(style.iterdir())
    pictures[0].unlink()
    pictures[1].write_bytes(pictures[1].read_bytes()[:60])
    Image.new("RGB", (7, 9), "gray").save(style / unicodedata.normalize("NFD", "josé.png"))
    for name in ("jos#U00e8.png", "jos#U00ea.png"):
        (style / name).touch()
    (style / EVIL).write_text("no picture")
    with edit(train) as data:
        data["1002"]["image_name"] = "Style/josé.png"
        data["1003"]["image_name"] = "Style/jos?.png"
        data["1004"]["image_name"] = f"Style/{EVIL}"
        del data["1005"]["emotions"]
        data["again"] = dict(data["1006"])
    with edit(keys["dataset.validation_ds.json_path"]) as data:
        data["1006"] = dict(data.pop("validation-1001"))  # an id of train, with another picture
    copy = keys["dataset.validation_ds.visual_dir"] / "Style" / "picture-002.png"
    Image.open(pictures[7]).save(copy)
    keys["dataset.test_ds.json_path"].write_text('{"1": ')
    out = tmp_path / "out"
    assert run(keys, out) == 1
    listed = [(p["split"], p["kind"], p["image id"], Path(p["path"]).name) for p in problems(out)]
    train_ds, validation_ds = "train_ds", "validation_ds"
    assert Counter(listed) == Counter(
        [
            (train_ds, "entry", "", "annotations.json"),
            (train_ds, "missing", "1000", "picture-000.png"),
            (train_ds, "ambiguous", "1003", "jos?.png"),
            (train_ds, "renamed", "1002", unicodedata.normalize("NFD", "josé.png")),
            (train_ds, "corrupt", "1001", "picture-001.png"),
            (train_ds, "corrupt", "1004", EVIL),
            (train_ds, "duplicate", "again", "picture-006.png"),
            (validation_ds, "leak", "1006", "picture-001.png"),
            (validation_ds, "leak", "validation-1002", "picture-002.png"),
            ("test_ds", "file", "", "annotations.json"),
        ]
    )
    assert all(p["reason"] for p in problems(out))
    entry = next(p for p in problems(out) if p["kind"] == "entry")
    assert "'1005'" in entry["reason"] and "'emotions' is missing" in entry["reason"]
    images = summary(out)["splits"]["train_ds"]["images"]
    assert images == {"listed": 8, "usable": 4, "missing": 1, "ambiguous": 1, "corrupt": 2, "renamed": 1}
    assert summary(out)["splits"]["test_ds"]["images"]["listed"] is None
    page = Page(out / "report.html")
    page.require_self_contained()
    assert f"Style/{EVIL}" in page.text and "b" not in {tag for tag, _ in page.tags}
    assert "9 problems in 3 splits" in page.text, "a renamed image is no problem"
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in summary(out)["problems"])


def test_pictures_that_are_nearly_black_are_noted(keys, tmp_path, capsys):
    """12-bit data in a file of 16 bits, which does not say so."""
    picture = sorted((keys["dataset.train_ds.visual_dir"] / "Style").iterdir())[3]
    Image.fromarray(np.linspace(0, 4095, 100).astype(np.uint16).reshape(10, 10)).save(picture)
    assert run(keys, tmp_path / "out") == 0
    (found,) = problems(tmp_path / "out")
    assert (found["kind"], found["image id"]) == ("dark", "1003")
    assert found["reason"] == "its brightest value is 16 of 255"
    assert "1 dark: images that are nearly black" in capsys.readouterr().out


def test_renamed_images_are_no_problem(keys, tmp_path):
    style = keys["dataset.test_ds.visual_dir"] / "Style"
    (style / "picture-000.png").rename(style / "#U00e9.png")
    with edit(keys["dataset.test_ds.json_path"]) as data:
        data["test-1000"]["image_name"] = "Style/é.png"
    assert run(keys, tmp_path / "out", "--no-decode") == 0
    assert [(p["kind"], p["reason"]) for p in problems(tmp_path / "out")] == [("renamed", "listed as 'Style/é.png'")]


def test_number_of_workers_does_not_change_the_report(keys, tmp_path):
    for path in sorted((keys["dataset.train_ds.visual_dir"] / "Style").iterdir())[::2]:
        path.write_bytes(b"")
    only = {key: value for key, value in keys.items() if "_ds." not in key or "train_ds" in key}
    for workers in ("1", "3"):
        run(only, tmp_path / workers, "--workers", workers)
    for name in ("check.json", "problems.csv", "report.html"):
        assert (tmp_path / "1" / name).read_text() == (tmp_path / "3" / name).read_text(), name


def test_no_decode_compares_files_only(keys, tmp_path, capsys):
    pictures = sorted((keys["dataset.train_ds.visual_dir"] / "Style").iterdir())
    pictures[0].write_bytes(b"")
    pictures[1].write_bytes(pictures[2].read_bytes())
    with edit(keys["dataset.train_ds.json_path"]) as data:
        data["again"] = dict(data["1003"])
    assert run(keys, tmp_path / "out", "--no-decode") == 1
    assert [(p["kind"], p["image id"]) for p in problems(tmp_path / "out")] == [("duplicate", "again")]
    assert summary(tmp_path / "out")["splits"]["train_ds"]["images"]["corrupt"] is None
    assert "not opened (--no-decode)" in capsys.readouterr().out
    assert "not opened (--no-decode)" in Page(tmp_path / "out" / "report.html").text


def test_unusable_tokenizer_or_lexicon(keys, tmp_path, capsys):
    (tmp_path / "no tokenizer").mkdir()
    lacking = keys | {"dataset.vad_lexicon": tmp_path / "nowhere.csv"}
    assert run(lacking, tmp_path / "1", "--no-decode") == 1
    lacking["dataset.tokenizer"] = tmp_path / "no tokenizer"
    assert run(lacking, tmp_path / "2", "--no-decode") == 1
    one, two = (problems(tmp_path / name) for name in "12")
    assert [p["kind"] for p in one] == ["lexicon"] and "nowhere.csv" in one[0]["reason"]
    assert [p["kind"] for p in two] == ["tokenizer"] and "no tokenizer" in two[0]["reason"]
    one, two = (summary(tmp_path / name)["splits"]["train_ds"] for name in "12")
    assert one["vad"] is None and one["tokens_of_a_text"] and two["tokens_of_a_text"] is None
    assert one["votes"] == two["votes"] and two["texts"] == 32
    assert "No VAD values were counted" in capsys.readouterr().out


def test_missing_lexicon_is_no_problem(keys, tmp_path):
    assert run(keys | {"dataset.vad_lexicon": None}, tmp_path / "out", "--no-decode") == 0
    assert "dataset.vad_lexicon is not set" in Page(tmp_path / "out" / "report.html").text


def test_one_split_is_enough(keys, tmp_path):
    only = {key: value for key, value in keys.items() if "_ds." not in key or "test_ds" in key}
    assert run(only, tmp_path / "out", "--no-decode") == 0
    assert list(summary(tmp_path / "out")["splits"]) == ["test_ds"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset.train_ds.json_path": None}, r"train_ds.json_path too"),
        ({"dataset.train_ds.visual_dir": None}, r"train_ds.visual_dir too"),
        ({"dataset.tokeniser": "gpt2"}, "did you mean 'dataset.tokenizer'"),
        ({"dataset.max_length": 3}, "max_length must be"),
        ({"preset": "demo", "dataset.name": "demo"}, "not the demo's"),
        ({"dataset.name": "demo", "dataset.root": "nowhere", **NO_FILES}, "run `python -m data.demo`"),
        (NO_FILES, "there is no data: give"),
    ],
)
def test_wrong_usage_is_reported_before_reading_data(keys, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        run(keys | changes, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unwritable_output_folder(keys, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/out.* cannot be written"):
        run(keys, tmp_path / "file" / "out", "--no-decode")


def test_missing_image_folder_is_a_problem_of_its_split(keys, tmp_path):
    assert run(keys | {"dataset.test_ds.visual_dir": tmp_path / "nowhere"}, tmp_path / "out", "--no-decode") == 1
    (problem,) = problems(tmp_path / "out")
    assert (problem["split"], problem["kind"]) == ("test_ds", "file") and "nowhere" in problem["reason"]
    assert summary(tmp_path / "out")["splits"]["train_ds"]["images"]["usable"] == 8


# --- other kinds of data


def dataset(name: str, json_path: Path, visual_dir: Path, **changes: object) -> dict:
    """Return settings with one split and an unusable tokenizer, the folder of the pictures."""
    none = {"json_path": None, "visual_dir": None}
    settings = {
        "tokenizer": str(visual_dir),
        "max_length": 40,
        "vad_lexicon": None,
        "vad_scale": "auto",
        "vad_columns": None,
    }
    settings |= {"emotions": "auto", "max_pixels": 10**8, "max_frames": 4, "sign_languages": ["en", "de"]}
    settings |= {split: none for split in SPLITS} | {"name": name}
    return settings | {"train_ds": {"json_path": str(json_path), "visual_dir": str(visual_dir)}} | changes


def test_captions_without_emotions(tmp_path):
    paths = write_pictures(tmp_path / "images", 3)
    images = [{"id": i, "file_name": path.name} for i, path in enumerate(paths)]
    captions = [{"image_id": i % 3, "caption": f"a boat {i}"} for i in range(7)]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": captions}))
    report = check_dataset(dataset("coco", tmp_path / "c.json", tmp_path / "images"), decode=False, workers=1)
    texts = report.splits["train_ds"].texts
    assert texts.texts == 7 and not texts.votes and not texts.dominant
    assert {problem.kind for problem in report.problems} == {"tokenizer"}
    check.write_report(report, tmp_path / "out")
    assert "Emotions" not in Page(tmp_path / "out" / "report.html").text


def test_shards(tmp_path):
    pattern = artemis_tars(*write_artemis(tmp_path / "data", 4), tmp_path / "tars", count=2)
    keys = {**NO_FILES, "preset": "none", "dataset.name": "shards", "dataset.train_ds.json_path": pattern}
    assert run({**keys, "dataset.tokenizer": write_tokenizer(tmp_path / "tokenizer")}, tmp_path / "out") == 0
    assert summary(tmp_path / "out")["splits"]["train_ds"]["images"]["listed"] == 4
    missing = {**keys, "dataset.train_ds.json_path": pattern.replace("0001}", "0002}")}
    assert run({**missing, "dataset.tokenizer": tmp_path / "tokenizer"}, tmp_path / "out") == 1
    assert [row["reason"] for row in problems(tmp_path / "out")] == ["there is no such shard"]


def test_same_file_name_in_two_tables_is_no_leak(tmp_path):
    for part, seed in (("a", 0), ("b", 1)):
        write_pictures(tmp_path / part, 2, seed=seed)
    table = tmp_path / "t.csv"
    table.write_text("image,text\npicture-000.png,a boat\npicture-001.png,a storm\n")
    files = {"json_path": str(table), "visual_dir": str(tmp_path / "b")}
    report = check_dataset(dataset("table", table, tmp_path / "a", test_ds=files), decode=True, workers=1)
    assert {problem.kind for problem in report.problems} == {"tokenizer"}
    files["visual_dir"] = str(tmp_path / "a")
    report = check_dataset(dataset("table", table, tmp_path / "a", test_ds=files), decode=True, workers=1)
    assert [problem.kind for problem in report.problems] == ["tokenizer", "leak", "leak"]


def test_clips_are_opened(tmp_path):
    (tmp_path / "clips" / "1").mkdir(parents=True)
    (tmp_path / "clips" / "2").mkdir()
    good = write_clip(tmp_path / "clips" / "1" / "en.mp4", 6)
    (tmp_path / "clips" / "1" / "de.mp4").write_bytes(good.read_bytes()[:200])
    items = [{"id": i, "sign_list": [{"lang": c, "text": "a boat"} for c in ("en", "de")]} for i in (1, 2)]
    (tmp_path / "m.json").write_text(json.dumps(items))
    report = check_dataset(dataset("mlslt", tmp_path / "m.json", tmp_path / "clips"), decode=True, workers=1)
    found = {(problem.kind, problem.id) for problem in report.problems if problem.kind != "tokenizer"}
    assert found == {("missing", "2/en"), ("missing", "2/de"), ("corrupt", "1/de")}
    assert list(report.splits["train_ds"].images.sizes) == [(32, 32)]


# --- texts


def sample(text: str, emotion: int | None = 1, *, histogram: tuple[float, ...] | None = None) -> Sample:
    return Sample("x", Path("x"), (text,), () if emotion is None else (emotion,), histogram)


TEXTS = [
    "the tiny boat",
    "a serene sky and a gloomy storm " * 6,
    "",
    "unknown words: xyzzy, isn't it? the storm's",
    "calm",
]


@pytest.mark.parametrize("emotion", [1, None])
@pytest.mark.parametrize("max_length", [24, 40, 400])
def test_lengths_and_truncation_equal_training(template, emotion, max_length):
    training = Template(template.tokenizer, max_length=max_length)
    found = TextChecker(training, None, with_emotions=True).check(sample(text, emotion) for text in TEXTS)
    encoded = [training.encode(text, emotion) for text in TEXTS]
    assert found.truncated == sum(text.truncated for text in encoded)
    whole = [template.tokenizer(text if emotion is None else f" {text}").input_ids for text in TEXTS]
    around = 2 if emotion is None else len(template.explanation_prompt(emotion)[0]) + 1
    assert found.lengths == Counter(len(ids) + around for ids in whole)
    assert found.tokens == sum(map(len, whole))


def test_sentence_without_emotion(template):
    without, with_emotion = (
        TextChecker(template, None, with_emotions=flag).check([sample("the boat", 1)]) for flag in (False, True)
    )
    assert max(without.lengths) < max(with_emotion.lengths) and without.votes == with_emotion.votes == {1: 1}


def test_vad_coverage_by_word_and_by_token(template):
    aligner = make_aligner(template)
    found = TextChecker(template, aligner, with_emotions=True).check(sample(text) for text in TEXTS)
    assert found.coverage == aligner.coverage(TEXTS) and found.coverage["own"] == 1.0
    known = (aligner.align(template.tokenizer(f" {text}").input_ids)[1].sum() for text in TEXTS)
    assert found.tokens_known == sum(map(int, known)) > 0


def test_words_that_the_lexicon_lacks(template):
    aligner = VadAligner(Lexicon({"storm": LEXICON["storm"], "boat": (0.1, 0.2, 0.3)}), template.tokenizer)
    texts = ["the storm's boats and the sky", "Sky isn’t a tiny tree’s SKY", "it is for the tree"]
    found = TextChecker(template, aligner, with_emotions=True).check(map(sample, texts))
    assert most_frequent(found.lacking) == [("sky", 3), ("tree", 2), ("tiny", 1)]
    many = Counter({f"word{i:03}": 1 + i % 2 for i in range(3 * LACKING)})
    assert [count for _, count in most_frequent(many)] == [2] * LACKING
    assert [word for word, _ in most_frequent(many)] == sorted(word for word in many if many[word] == 2)[:LACKING]


def test_dominant_emotion_has_more_than_half_of_the_votes(template):
    third = tuple(1 / 3 if i in (1, 2, 8) else 0.0 for i in range(9))
    half = tuple(0.5 if i in (1, 2) else 0.0 for i in range(9))
    most = tuple({1: 0.4, 2: 0.6}.get(i, 0.0) for i in range(9))
    samples = [sample("x", histogram=shares) for shares in (third, half, most, None)]
    assert TextChecker(template, None, with_emotions=True).check(samples).dominant == {None: 2, 2: 1}


def test_missing_and_ambiguous_are_distinguished_by_their_reason(tmp_path):
    """The reasons come from data/readers; AMBIGUOUS must match their wording."""
    json_path, images = write_artemis(tmp_path, 3)
    for name in ("jos#U00e8.png", "jos#U00ea.png", "caf#U00e9.png"):
        (images / "Style" / name).touch()
    with edit(json_path) as data:
        for id, name in zip(data, ("jos?.png", "café.png", "caf?.png"), strict=True):
            data[id]["image_name"] = f"Style/{name}"
    report = check_dataset(dataset("artemis", json_path, images), decode=False, workers=1)
    found = report.splits["train_ds"]
    assert (found.listed, found.missing, found.ambiguous) == (3, 0, 3)
    assert set(KINDS) >= {problem.kind for problem in report.problems}


def test_emotion_folders_have_their_own_labels(tmp_path):
    root = write_emotions(tmp_path / "E6", ("joy", "fear", "surprise"), {"train": 12, "test": 2})
    (root / "test" / "joy" / "p1.png").write_bytes(b"no picture")
    keys = {"preset": "emotion_folder", "dataset.root": root, "dataset.tokenizer": write_tokenizer(tmp_path / "bpe")}
    assert run(keys, tmp_path / "out") == 1
    assert [(row["split"], row["kind"], row["image id"]) for row in problems(tmp_path / "out")] == [
        ("test_ds", "corrupt", "test/joy/p1.png")
    ]
    splits = summary(tmp_path / "out")["splits"]
    assert splits["test_ds"]["votes"] == {"fear": 2, "joy": 1, "surprise": 2} and splits["test_ds"]["texts"] == 0
    assert sum(splits[split]["images"]["usable"] for split in ("train_ds", "validation_ds")) == 36
    page = Page(tmp_path / "out" / "report.html")
    assert "surprise" in page.text and "amusement" not in page.text
