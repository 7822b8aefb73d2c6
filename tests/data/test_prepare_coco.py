"""`python -m data.prepare coco`: splits, references, missing pictures, VizWiz's rejected captions, and its messages."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from data.prepare import coco
from data.prepare.__main__ import main
from data.readers.coco import read_coco


def pictures(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "teal").save(root / name)


def write(path: Path, captions: dict[str, list], **more: object) -> Path:
    """Write a captions file; a caption is a text or an annotation with one."""
    images = [{"id": i, "file_name": name} for i, name in enumerate(captions)]
    found = [
        {"image_id": i, "caption": c} | (c if isinstance(c, dict) else {})
        for i, n in enumerate(captions)
        for c in captions[n]
    ]
    path.write_text(json.dumps({"images": images, "annotations": found, **more}), encoding="utf-8")
    return path


def prepared(tmp_path: Path, *files: Path) -> tuple[dict[str, dict[str, tuple[str, ...]]], Counter]:
    """Run the command; return the captions by split and picture, as training reads them, and what was left out."""
    out, images = tmp_path / "out", tmp_path / "images"
    assert main(["coco", *map(str, files), "--images", str(images), "--out", str(out)]) == 0
    found = {}
    for split, part in coco.SPLITS.items():
        samples = read_coco(out / f"{split}.json", images, split=part)
        found[split] = {sample.path.relative_to(images).as_posix(): sample.texts for sample in samples}
    with (out / "left_out.csv").open(newline="") as file:
        return found, Counter(row["reason"] for row in csv.DictReader(file))


def test_karpathys_split(tmp_path: Path, capsys):
    pictures(tmp_path / "images", *(f"train2014/{i}.jpg" for i in range(3)), "val2014/3.jpg", "val2014/4.jpg")
    parts = ("train", "restval", "test", "val", "test", "train")
    images = [
        {
            **{
                "filename": f"{i}.jpg",
                "filepath": "val2014" if i in (3, 4) else "train2014",
                "cocoid": i,
                "split": part,
            },
            "sentences": [{"raw": f"caption {i} {n}"} for n in range(7)],
        }
        for i, part in enumerate(parts)
    ]
    file = tmp_path / "dataset_coco.json"
    file.write_text(json.dumps({"images": images, "dataset": "coco"}))
    found, left_out = prepared(tmp_path, file)
    assert {split: [*names] for split, names in found.items()} == {
        "train": ["train2014/0.jpg", "train2014/1.jpg"],
        "val": ["val2014/3.jpg"],
        "test": ["train2014/2.jpg", "val2014/4.jpg"],
    }
    assert left_out == {"missing picture": 1} and {len(texts) for texts in found["test"].values()} == {7}
    assert {len(texts) for texts in found["train"].values()} == {5}
    images = json.loads((tmp_path / "out/test.json").read_text())["images"]
    assert images[1] == {"id": 4, "file_name": "val2014/4.jpg"}, "the id is COCO's"
    assert "dataset_coco.json has 6 pictures and 42 captions, where 123,287 and 616,767 were published" in (
        capsys.readouterr().out
    )


def test_validation_is_held_out_by_name(tmp_path: Path):
    names = [f"train/{i}.jpg" for i in range(200)]
    pictures(tmp_path / "images", *names, "val/x.jpg")
    train = write(tmp_path / "a.json", {Path(name).name: ["a"] * 6 for name in names})
    found, _ = prepared(tmp_path, train, write(tmp_path / "b.json", {"x.jpg": ["b"] * 6}))
    assert {*found["train"]} | {*found["val"]} == {*names} and 1 <= len(found["val"]) <= 20
    assert found["test"] == {"val/x.jpg": ("b",) * 6}
    assert {len(texts) for texts in found["val"].values()} == {6}


def test_rejected_captions_of_vizwiz_are_left_out(tmp_path: Path, capsys):
    pictures(tmp_path / "images", *(f"{i}.jpg" for i in range(40)), "v.jpg", "w.jpg", "gone/q.jpg")
    spam = {"caption": "asdf", "is_rejected": True, "is_precanned": False}
    canned = {"caption": "Quality issues are too severe.", "is_rejected": False, "is_precanned": True}
    fine = {"caption": "a can", "is_rejected": False, "is_precanned": False}
    train = write(tmp_path / "train.json", {f"{i}.jpg": ["a box"] for i in range(40)})
    found, left_out = prepared(
        tmp_path, train, write(tmp_path / "val.json", {"v.jpg": [spam, fine, canned], "w.jpg": [spam]})
    )
    assert found["test"] == {"v.jpg": ("a can",)} and not left_out
    shown = capsys.readouterr().out
    assert "val.json: 2 captions left out (is_rejected)" in shown and "1 captions left out (is_precanned)" in shown


def test_every_reference_is_kept_in_the_test(tmp_path: Path, shared_data: Path):
    case = shared_data.parent / "cases" / "coco_more_than_5_refs"
    if not case.is_dir():
        pytest.skip(f"no test data at {case}")
    shutil.copytree(case / "img", tmp_path / "images")
    names = [f"t{i}.png" for i in range(60)]
    pictures(tmp_path / "images", *names)
    train = write(tmp_path / "train.json", {name: ["one"] for name in names})
    found, _ = prepared(tmp_path, train, case / "c.json")
    captions = json.loads((case / "c.json").read_text())["annotations"]
    assert sum(map(len, found["test"].values())) == len(captions) == 168


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["one"], "one.json: give Karpathy's split file, or two files of captions"),
        (["split", "one"], "split.json: give Karpathy's split file, or two files"),
        (["one", "one"], "1 pictures are in train and in test, such as a.jpg; give other files"),
        (["one", "two"], "none of the 1 pictures of test is there, such as b.jpg"),
        (["one"] * 4, "4 files: give a split file"),
        (["one", "odd"], "odd.json: annotations[0]: must be an object"),
        (["none", "one"], "none.json: there is no such annotation file"),
    ],
)
def test_unusable_files(tmp_path: Path, capsys, monkeypatch, files: list[str], message: str):
    monkeypatch.setattr(coco, "HELD_OUT", 0)
    pictures(tmp_path / "images", "a.jpg")
    write(tmp_path / "one.json", {"a.jpg": ["x"]})
    write(tmp_path / "two.json", {"b.jpg": ["x"]})
    (tmp_path / "split.json").write_text('{"images": [{"filename": "a.jpg", "split": "train", "sentences": []}]}')
    (tmp_path / "odd.json").write_text('{"images": [], "annotations": ["x"]}')
    paths = [str(tmp_path / f"{name}.json") for name in files]
    assert main(["coco", *paths, "--images", str(tmp_path / "images"), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
