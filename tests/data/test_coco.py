"""COCO captions files and the Karpathy split file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from data.readers.coco import read_coco


def coco(images: list[Any], annotations: list[Any]) -> dict[str, Any]:
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations}


def image(id: Any, **changes: Any) -> dict[str, Any]:
    record = {"id": id, "file_name": f"COCO_{id}.jpg", "height": 1, "width": 1, **changes}
    return {key: value for key, value in record.items() if value is not None}


def caption(image_id: Any, text: Any, id: int = 0) -> dict[str, Any]:
    return {"id": id, "image_id": image_id, "caption": text}


@pytest.fixture
def read(tmp_path: Path):
    """Return a function that writes a value to captions.json and reads it with the image folder images."""
    (tmp_path / "images").mkdir()

    def reader(data: object, **options: Any) -> list:
        path = tmp_path / "captions.json"
        path.write_text(json.dumps(data))
        return read_coco(path, tmp_path / "images", **options)

    return reader


def error_message(read, data: object) -> str:
    with pytest.raises(UserError) as caught:
        read(data)
    return str(caught.value).split("captions.json: ", 1)[1]


def test_images_and_captions_are_in_file_order(read, tmp_path: Path) -> None:
    samples = read(coco([image(9), image(2)], [caption(2, "b", 5), caption(9, " a\n", 4), caption(2, "c", 1)]))
    assert [sample.id for sample in samples] == ["9", "2"]
    assert [sample.texts for sample in samples] == [("a",), ("b", "c")]
    assert samples[0].path == tmp_path.resolve() / "images/COCO_9.jpg"
    assert samples[0].emotions == () and samples[0].histogram is None


def test_an_image_is_trained_on_by_its_first_captions_and_scored_against_all(read) -> None:
    data = coco([image(1)], [caption(1, text) for text in ("a", " ", "b", "c", "d", "e", "f")])
    assert read(data)[0].texts == ("a", "b", "c", "d", "e")
    assert read(data, split="test_ds")[0].texts == ("a", "b", "c", "d", "e", "f")


def test_images_without_captions_are_skipped(read) -> None:
    samples = read(coco([image(1), image(2), image(3)], [caption(2, "b"), caption(3, "")]))
    assert [sample.id for sample in samples] == ["2"]


def test_integer_and_text_ids_are_equal(read) -> None:
    assert read(coco([image("7")], [caption(7, "a")]))[0].id == "7"


def test_no_captions_at_all(read) -> None:
    assert error_message(read, coco([image(1), image(2)], [])) == "none of its 2 images has a caption"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([], "images and annotations, or images with sentences, but this is an empty list"),
        ({}, "but this is an empty object"),
        ({"images": []}, "but this is an object with 'images'"),
        ({"12": {"emotions": [], "explanations": []}}, "it looks like one for dataset.name=artemis"),
        (coco({}, []), "'images' must be a list, not an empty object"),
        (coco([], "x"), "'annotations' must be a list, not text"),
        (coco([5], []), "images[0]: must be an object, not a number"),
        (coco([{"file_name": "a.jpg"}], []), "images[0]: the key 'id' is missing"),
        (coco([image(1.5)], []), "images[0]: 'id' must be a whole number or text, not 1.5"),
        (coco([image(True)], []), "images[0]: 'id' must be a whole number or text, not True"),
        (coco([image(1), image(1)], []), "images[1]: the image id '1' appears twice"),
        (coco([image(1, file_name=None)], []), "image '1': the key 'file_name' is missing"),
        (coco([image(1, file_name=3)], []), "image '1': 'file_name' must be text, not a number"),
        (coco([image(1, file_name="../a.jpg")], [caption(1, "a")]), "image '1': image name '../a.jpg' leads out of"),
        (coco([image(1)], [[]]), "annotations[0]: must be an object, not an empty list"),
        (coco([image(1)], [{"caption": "a"}]), "annotations[0]: the key 'image_id' is missing"),
        (coco([image(1)], [{"image_id": 1}]), "annotations[0], image '1': the key 'caption' is missing"),
        (coco([image(1)], [caption(1, None)]), "annotations[0], image '1': 'caption' must be text, not null"),
        (
            coco([image(1)], [caption(1, "a"), caption(2, "b")]),
            "annotations[1]: 'image_id' is '2', which is not the id",
        ),
    ],
)
def test_faults(read, data: object, expected: str) -> None:
    assert expected in error_message(read, data)


def split_file(path: Path, entries: list[dict]) -> Path:
    path.write_text(json.dumps({"dataset": "coco", "images": entries}), encoding="utf-8")
    return path


def split_entry(id: int, split: str, *texts: str, filepath: str | None = "val2014") -> dict:
    entry = {"cocoid": id, "imgid": id + 100, "split": split, "filename": f"{id}.jpg"}
    entry |= {"sentences": [{"raw": text, "tokens": text.split()} for text in texts]}
    return entry if filepath is None else {**entry, "filepath": filepath}


SPLIT_ENTRIES = [
    split_entry(1, "train", "A dog.", " A cat. "),
    split_entry(2, "restval", "A bird."),
    split_entry(3, "val", "A fish.", ""),
    split_entry(4, "test", *(f"caption {i}" for i in range(7))),
    split_entry(5, "test", ""),
]


@pytest.mark.parametrize(("split", "ids"), [("train_ds", ["1", "2"]), ("validation_ds", ["3"]), ("test_ds", ["4"])])
def test_split_file_has_images_of_every_split(tmp_path: Path, split: str, ids: list[str]) -> None:
    samples = read_coco(split_file(tmp_path / "dataset_coco.json", SPLIT_ENTRIES), tmp_path, split=split)
    assert [sample.id for sample in samples] == ids and all(s.texts for s in samples)
    if split == "train_ds":
        assert samples[0].texts == ("A dog.", "A cat.")
    if split == "test_ds":
        assert len(samples[0].texts) == 7


def test_folder_of_a_split_file_is_optional(tmp_path: Path) -> None:
    file = split_file(tmp_path / "dataset_coco.json", SPLIT_ENTRIES[:1])
    assert read_coco(file, tmp_path)[0].path == tmp_path / "1.jpg"
    (tmp_path / "val2014").mkdir()
    assert read_coco(file, tmp_path)[0].path == tmp_path / "val2014" / "1.jpg"
    plain = split_file(tmp_path / "dataset_flickr8k.json", [split_entry(1, "train", "x", filepath=None)])
    assert read_coco(plain, tmp_path)[0].path == tmp_path / "1.jpg"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (split_entry(1, "train", "x"), "the image id '1' appears twice"),
        ({**split_entry(9, "train"), "sentences": "x"}, "'sentences' must be a list"),
        ({**split_entry(9, "train"), "sentences": [{"tokens": []}]}, "the key 'raw' is missing"),
        ({**split_entry(9, "train", "x"), "filename": "../9.jpg"}, "leads out of"),
        (split_entry(9, "training", "x"), "'split' is 'training', not one of train, restval, val, test"),
    ],
)
def test_split_file_faults(tmp_path: Path, entry: dict, message: str) -> None:
    file = split_file(tmp_path / "dataset_coco.json", [*SPLIT_ENTRIES, entry])
    with pytest.raises(UserError, match=message):
        read_coco(file, tmp_path)
    faults: list[str] = []
    assert len(read_coco(file, tmp_path, faults=faults)) == 2 and len(faults) == 1


def test_split_file_without_the_requested_split(tmp_path: Path) -> None:
    file = split_file(tmp_path / "dataset_coco.json", SPLIT_ENTRIES[:1])
    with pytest.raises(UserError, match="none of its 1 images has a caption and 'split' val"):
        read_coco(file, tmp_path, split="validation_ds")


def test_filepath_that_is_too_long(tmp_path: Path) -> None:
    file = split_file(tmp_path / "dataset_coco.json", [split_entry(1, "train", "x", filepath="f" * 5000)])
    assert read_coco(file, tmp_path)[0].path == tmp_path / "1.jpg"
