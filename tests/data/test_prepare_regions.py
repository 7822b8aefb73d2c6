"""`python -m data.prepare regions`: which objects a caption names, boxes in shares of the picture, and its messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data.prepare.__main__ import main
from data.prepare.regions import CategoryNames
from data.readers.picture_rows import PictureRows

NAMES = ("person", "dog", "hot dog", "bus", "knife", "sheep", "scissors", "wine glass", "tv")
CATEGORIES = [{"id": i, "name": name, "supercategory": "x"} for i, name in enumerate(NAMES, start=1)]


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("A dog and a person.", {"dog", "person"}),
        ("two DOGS near buses", {"dog", "bus"}),
        ("people with knives", {"person", "knife"}),
        ("a hot dog", {"hot dog"}),
        ("a dog eats hot dogs", {"dog", "hot dog"}),
        ("sheep, scissors; wine glasses", {"sheep", "scissors", "wine glass"}),
        ("a doghouse in a business", set()),
        ("a man on the couch", set()),
    ],
)
def test_caption_names_categories_as_whole_words(caption: str, named: set[str]) -> None:
    assert CategoryNames(NAMES)(caption) == named


def item(picture: int, category: int, *bbox: float, **more: object) -> dict:
    return {"image_id": picture, "category_id": category, "bbox": [*bbox], "segmentation": [[1, 2, 3, 4]], **more}


def instances() -> dict:
    sizes = {1: (200, 100), 2: (640, 480), 3: (10, 10)}
    return {
        "categories": CATEGORIES,
        "images": [
            {"id": id, "file_name": f"{id:03}.jpg", "width": width, "height": height}
            for id, (width, height) in sizes.items()
        ],
        "annotations": [
            item(1, 2, 20, 10, 100, 50),
            item(1, 2, 150, 50, 60, 50.01),  # 10 pixels beyond the right edge
            item(1, 4, 0, 0, 200, 100, iscrowd=1),
            item(1, 2, 5, 5, 0, 10),  # without area
            item(3, 1, 0, 0, 5, 5),
        ],
    }


def captions() -> dict:
    pairs = [(1, "Two dogs."), (2, "a quiet room "), (1, "a bus, a tv"), (2, " ")]
    return {"annotations": [{"image_id": id, "caption": text} for id, text in pairs]}


Change = Callable[[dict, dict], object]


@pytest.fixture
def prepare(tmp_path: Path):
    """Return a function that writes both files, changed by `change`, and runs the command."""

    def run(change: Change = lambda instances, captions: None, *options: str) -> int:
        files = {"instances": instances(), "captions": captions()}
        change(files["instances"], files["captions"])
        for name, value in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(value))
        paths = [f"--{name}={tmp_path / name}.json" for name in files]
        return main(["regions", *paths, f"--out={tmp_path / 'rows.jsonl'}", *options])

    return run


def test_rows_have_captions_with_boxes(prepare, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("001.jpg", "002.jpg"):
        (tmp_path / "train2014").mkdir(exist_ok=True)
        (tmp_path / "train2014" / name).touch()
    assert prepare(lambda *_: None, "--prefix=train2014") == 0
    rows = PictureRows(tmp_path / "rows.jsonl", tmp_path)
    first, second = [0.1, 0.1, 0.6, 0.6], [0.75, 0.5, 1.0, 1.0]
    assert rows[0] == {
        "id": "1",
        "image": "train2014/001.jpg",
        "questions": [],
        "texts": [{"text": "Two dogs.", "boxes": [first, second]}, {"text": "a bus, a tv", "boxes": [[0, 0, 1, 1]]}],
        "objects": [
            {"name": "dog", "box": first},
            {"name": "dog", "box": second},
            {"name": "bus", "box": [0, 0, 1, 1]},
        ],
    }
    assert rows[1]["texts"] == [{"text": "a quiet room", "boxes": []}]
    assert rows[1]["objects"] == []
    assert len(rows) == 2
    printed = capsys.readouterr().out
    for count in ("2 pictures", "3 captions", "3 objects", "2 captions that name", "1 boxes", "1 pictures without a"):
        assert count in printed


DAMAGED = {
    "other split": (lambda i, c: c["annotations"].clear(), "none of its pictures has a caption"),
    "category": (lambda i, c: i["annotations"][1].update(category_id=99), "annotations[1]: the 'category_id' '99'"),
    "bbox": (lambda i, c: i["annotations"][0].update(bbox=[1, 2, 3]), "'bbox' must be [x, y, width, height]"),
    "size": (lambda i, c: i["images"][0].update(width=0), "'width' and 'height' must be positive"),
    "no size": (lambda i, c: i["images"][0].pop("height"), "images[0]: the key 'height' is missing"),
    "caption": (lambda i, c: c["annotations"][2].update(caption=3), "annotations[2]: 'caption' must be text"),
    "categories": (lambda i, c: i.pop("categories"), "instances.json: the key 'categories' is missing"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_named(
    prepare, tmp_path: Path, capsys: pytest.CaptureFixture, change: Change, message: str
) -> None:
    assert prepare(change) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "rows.jsonl").exists()
