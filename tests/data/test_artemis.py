"""ArtEmis annotations in SEVLM's JSON, and the error message for every fault in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from data.emotions import EMOTIONS, INDEX
from data.readers.artemis import read_artemis


def entry(**changes: Any) -> dict[str, Any]:
    """Return the entry of an image as in SEVLM's files; None removes a key."""
    record = {
        "emotions": ["awe", "fear"],
        "explanations": ["the sky is enormous", "the boat is lost"],
        "image_name": "Realism/boat.jpg",
        "origin_emotion_distribution": [0, 0.5, 0, 0, 0, 0, 0.5, 0, 0],
        **changes,
    }
    return {key: value for key, value in record.items() if value is not None}


@pytest.fixture
def read(tmp_path: Path):
    """Return a function that writes a value to train.json and reads it with the image folder images."""
    (tmp_path / "images").mkdir()

    def reader(data: object) -> list:
        path = tmp_path / "train.json"
        if isinstance(data, bytes):
            path.write_bytes(data)
        else:
            path.write_text(json.dumps(data), encoding="utf-8")
        return read_artemis(path, tmp_path / "images")

    return reader


def error_message(read, data: object) -> str:
    with pytest.raises(UserError) as caught:
        read(data)
    message = str(caught.value)
    assert "train.json: " in message and "\n" not in message
    return message.split("train.json: ", 1)[1]


def test_sample_fields(read, tmp_path: Path) -> None:
    (sample,) = read({"1763323660598682939": entry()})
    assert sample.id == "1763323660598682939"
    assert sample.path == tmp_path.resolve() / "images/Realism/boat.jpg" and sample.path.is_absolute()
    assert sample.texts == ("the sky is enormous", "the boat is lost")
    assert sample.emotions == (INDEX["awe"], INDEX["fear"])
    assert sample.histogram == (0, 0.5, 0, 0, 0, 0, 0.5, 0, 0)


def test_samples_are_in_file_order(read) -> None:
    ids = ["30", "4", "100", "-7"]
    assert [sample.id for sample in read({id: entry() for id in ids})] == ids


def test_all_nine_labels(read) -> None:
    (sample,) = read({"1": entry(emotions=list(EMOTIONS), explanations=["x"] * 9)})
    assert sample.emotions == tuple(range(9))


def test_texts_are_stripped_and_empty_texts_drop_their_emotion(read) -> None:
    record = entry(emotions=["awe", "fear", "anger"], explanations=["  wide sky\n", " \t", "red"])
    (sample,) = read({"1": record})
    assert sample.texts == ("wide sky", "red") and sample.emotions == (INDEX["awe"], INDEX["anger"])


def test_byte_order_mark_and_non_ascii_text(read) -> None:
    record = entry(explanations=["señor", "größe"])
    (sample,) = read(b"\xef\xbb\xbf" + json.dumps({"1": record}, ensure_ascii=False).encode())
    assert sample.texts == ("señor", "größe")


# --- histogram


def test_histogram_from_either_key_or_from_emotions(read) -> None:
    other = [1, 0, 0, 0, 0, 0, 0, 0, 0]
    both = entry(image_emotion_distribution=other)
    second = entry(origin_emotion_distribution=None, image_emotion_distribution=other)
    null = {**second, "origin_emotion_distribution": None}
    neither = entry(origin_emotion_distribution=None, emotions=["awe", "awe", "fear"], explanations=["a", "b", ""])
    samples = read({"1": both, "2": second, "3": null, "4": neither})
    assert [sample.histogram for sample in samples[:3]] == [(0, 0.5, 0, 0, 0, 0, 0.5, 0, 0), tuple(other), tuple(other)]
    assert samples[3].histogram == (0, 2 / 3, 0, 0, 0, 0, 1 / 3, 0, 0)  # an empty explanation still counts as a vote


def test_vote_counts_are_divided_and_shares_are_unchanged(read) -> None:
    counts = [3, 0, 0, 0, 1, 2, 0, 0, 0]
    rounded = [0.5, 0, 0, 0, 0.1666, 0.3333, 0, 0, 0]  # division by .9999 would give a share above one half
    samples = read({"1": entry(origin_emotion_distribution=counts), "2": entry(origin_emotion_distribution=rounded)})
    assert samples[0].histogram == (0.5, 0, 0, 0, 1 / 6, 2 / 6, 0, 0, 0)
    assert samples[1].histogram == tuple(rounded)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, 0], "has 2 numbers instead of 9"),
        ("half", "must be a list of 9 numbers, not text"),
        ([0] * 9, "sums to 0"),
        ([2, -1, 0, 0, 0, 0, 0, 0, 0], "holds -1, which is not a share"),
        ([float("nan")] * 9, "holds nan"),
        ([float("inf")] + [0] * 8, "holds inf"),
        ([10**400] + [0] * 8, "holds 1000"),
        (["1"] + [0] * 8, "holds '1'"),
        ([True] + [0] * 8, "holds True"),
        ([None] + [0] * 8, "holds None"),
    ],
)
@pytest.mark.parametrize("key", ["origin_emotion_distribution", "image_emotion_distribution"])
def test_invalid_histograms(read, key: str, value: object, expected: str) -> None:
    record = {**entry(origin_emotion_distribution=None), key: value}
    message = error_message(read, {"good": entry(), "77": record})
    assert message.startswith(f"image '77': '{key}' ") and expected in message


# --- file


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: there is no such annotation file"):
        read_artemis(tmp_path / "none.json", tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        read_artemis(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "the annotation file is empty"),
        (b" \n", "the annotation file is empty"),
        (b"{}", "holds no image"),
        (b'{"1": {"caf\xe9": 1}}', r"not UTF-8 text \(byte 11\); save it as UTF-8 text"),
        ('{"1": 2}'.encode("utf-16"), "not UTF-8 text"),
        (b'{"1":\n {"a": 1,}}', r"not JSON that can be read: .*line 2 column \d+"),
        (b'{"1": {}', r"not JSON that can be read: .*line 1 column 9 "),
        (b'{"1": ' + b"9" * 5000 + b"}", "not JSON that can be read: .*5000"),
        (b"[" * 200_000, "not JSON that can be read: .*recursion"),
        (b'{"1": {}, "2": {}, "1": {}}', "the key '1' appears twice"),
        (b"[]", "object of image ids.*but this is an empty list"),
        (b'"text"', "but this is text"),
        (b"3", "but this is a number"),
        (b"null", "but this is null"),
        (b"true", "but this is true or false"),
        (b'{"images": [], "annotations": [], "type": "captions"}', "'images', 'annotations', .*dataset.name=coco"),
        (b'[{"id": "1", "sign_list": []}]', "but this is a list; it looks like one for dataset.name=mlslt"),
    ],
)
def test_files_in_another_format(read, data: bytes, expected: str) -> None:
    assert re.search(expected, error_message(read, data))


# --- image


@pytest.mark.parametrize("key", ["image_name", "emotions", "explanations"])
def test_missing_key(read, key: str) -> None:
    assert (
        error_message(read, {"good": entry(), "77": entry(**{key: None})}) == f"image '77': the key {key!r} is missing"
    )


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ([], "must be an object, not an empty list"),
        ("x", "must be an object, not text"),
        (entry(image_name=5), "'image_name' must be text, not a number"),
        (entry(image_name=""), "image name '' is not the name of a file"),
        (entry(image_name="../x.jpg"), "image name '../x.jpg' leads out of"),
        (entry(image_name="/etc/passwd"), "image name '/etc/passwd' leads out of"),
        (entry(image_name="\ud800.jpg"), "'image_name' holds half of a surrogate pair"),
        (entry(emotions="awe"), "'emotions' must be a list, not text"),
        (entry(emotions=["awe", 6]), "'emotions[1]' must be text, not a number"),
        (entry(explanations={"a": 1}), "'explanations' must be a list, not an object"),
        (entry(explanations=["a", []]), "'explanations[1]' must be text, not an empty list"),
        (entry(explanations=["a"]), "'emotions' has 2 entries and 'explanations' 1"),
        (entry(emotions=[], explanations=[]), "'emotions' is empty"),
        (entry(explanations=["", "  "]), "'explanations' holds no text"),
        (entry(emotions=["awe", "joy"]), "'emotions[1]': 'joy' is not one of the nine emotions (amusement, awe, "),
        (entry(emotions=["awe", "Sadnes"]), "; did you mean 'sadness'?"),
        (entry(emotions=["awe", "something els"]), "; did you mean 'something else'?"),
    ],
)
def test_invalid_image(read, record: object, expected: str) -> None:
    message = error_message(read, {"good": entry(), "77": record})
    assert message.startswith("image '77': ") and expected in message


def test_no_suggestion_without_a_similar_name(read) -> None:
    assert "did you mean" not in error_message(read, {"1": entry(emotions=["awe", "xyzzy"])})


# --- real data


@pytest.mark.parametrize(("split", "count"), [("train", 64), ("val", 17), ("test", 9)])
def test_real_paintings(shared_data: Path, split: str, count: int) -> None:
    folder = shared_data / "paintings"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    samples = read_artemis(folder / f"artEmisX_{split}.json", folder / "wikiart")
    assert len(samples) == count == len({sample.id for sample in samples})
    for sample in samples:
        assert sample.path.is_file()
        assert len(sample.texts) == len(sample.emotions) >= 1 and all(sample.texts)
        assert sum(sample.histogram) == pytest.approx(1)
        # In these files the histograms are the shares of the listed emotions.
        assert sample.histogram[sample.emotions[0]] > 0


def test_custom_labels(tmp_path):
    path = tmp_path / "own.json"
    entry = {"image_name": "a.jpg", "emotions": ["joy", "calm"], "explanations": ["a", "b"]}
    shares = {**entry, "origin_emotion_distribution": [3, 1]}
    path.write_text(json.dumps({"1": entry, "2": shares}))
    found = read_artemis(path, tmp_path, labels=("joy", "calm"))
    assert found.labels == ("joy", "calm")
    assert [(s.emotions, s.histogram) for s in found] == [((0, 1), (0.5, 0.5)), ((0, 1), (0.75, 0.25))]
    with pytest.raises(UserError, match=r"'joy' is not one of the two emotions \(awe, calm\)"):
        read_artemis(path, tmp_path, labels=("awe", "calm"))
