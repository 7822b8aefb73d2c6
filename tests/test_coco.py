"""data/coco.py: COCO captions files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.coco import read_coco
from errors import UserError


def coco(images: list[Any], annotations: list[Any]) -> dict[str, Any]:
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations}


def image(id: Any, **changes: Any) -> dict[str, Any]:
    record = {"id": id, "file_name": f"COCO_{id}.jpg", "height": 1, "width": 1, **changes}
    return {key: value for key, value in record.items() if value is not None}


def caption(image_id: Any, text: Any, id: int = 0) -> dict[str, Any]:
    return {"id": id, "image_id": image_id, "caption": text}


@pytest.fixture
def read(tmp_path: Path):
    """Reads a value as captions.json with the image folder images."""
    (tmp_path / "images").mkdir()

    def reader(data: object, **options: Any) -> list:
        path = tmp_path / "captions.json"
        path.write_text(json.dumps(data))
        return read_coco(path, tmp_path / "images", **options)

    return reader


def complaint(read, data: object) -> str:
    with pytest.raises(UserError) as caught:
        read(data)
    return str(caught.value).split("captions.json: ", 1)[1]


def test_images_in_order_and_captions_in_order(read, tmp_path: Path) -> None:
    samples = read(coco([image(9), image(2)], [caption(2, "b", 5), caption(9, " a\n", 4), caption(2, "c", 1)]))
    assert [sample.id for sample in samples] == ["9", "2"]
    assert [sample.texts for sample in samples] == [("a",), ("b", "c")]
    assert samples[0].path == tmp_path.resolve() / "images/COCO_9.jpg"
    assert samples[0].emotions == () and samples[0].histogram is None


def test_the_first_five_captions(read) -> None:
    data = coco([image(1)], [caption(1, text) for text in ("a", " ", "b", "c", "d", "e", "f")])
    assert read(data)[0].texts == ("a", "b", "c", "d", "e")
    assert read(data, captions_per_image=2)[0].texts == ("a", "b")


def test_images_without_captions_are_left_out(read) -> None:
    samples = read(coco([image(1), image(2), image(3)], [caption(2, "b"), caption(3, "")]))
    assert [sample.id for sample in samples] == ["2"]


def test_ids_as_numbers_and_as_text_are_the_same(read) -> None:
    assert read(coco([image("7")], [caption(7, "a")]))[0].id == "7"


def test_no_captions_at_all(read) -> None:
    assert complaint(read, coco([image(1), image(2)], [])) == "none of its 2 images has a caption"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([], "a COCO captions file is an object with the lists images and annotations, but this is an empty list"),
        ({}, "but this is an empty object"),
        ({"images": []}, "but this is an object with 'images'"),
        ({"12": {"emotions": [], "explanations": []}}, "it looks like one for dataset.name=artemis"),
        (coco({}, []), "'images' must be a list, not an empty object"),
        (coco([], "x"), "'annotations' must be a list, not text"),
        (coco([5], []), "images[0]: must be an object, not a number"),
        (coco([{"file_name": "a.jpg"}], []), "images[0]: the key 'id' is missing"),
        (coco([image(1.5)], []), "images[0]: 'id' must be a whole number or text, not 1.5"),
        (coco([image(True)], []), "images[0]: 'id' must be a whole number or text, not True"),
        (coco([image(1), image(1)], []), "images[1]: the image id '1' stands twice"),
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
    assert expected in complaint(read, data)
