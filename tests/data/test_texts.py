"""Texts of every format of annotation file, in order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import UserError
from data.readers.texts import read_annotated_texts, read_texts

TEXTS = ["a calm lake", "one, two; “three”", "it's late"]


def coco() -> dict:
    captions = [{"id": i, "image_id": 1, "caption": text} for i, text in enumerate(TEXTS)]
    return {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": captions}


FILES = {
    "artemis.json": json.dumps(
        {"1": {"emotions": ["awe"], "explanations": TEXTS[:1]}, "2": {"explanations": TEXTS[1:]}}
    ),
    "coco.json": json.dumps(coco()),
    "karpathy.json": json.dumps({"images": [{"sentences": [{"raw": text} for text in TEXTS]}]}),
    "artemis.csv": "art_style,painting,emotion,utterance,repetition\n"
    'A,b,awe,a calm lake,3\nA,b,awe,"one, two; “three”",3\nA,c,fear,it\'s late,3\n',
    "own.csv": 'Image;Text\r\na.jpg;a calm lake\r\nb.jpg;"one, two; “three”"\r\nb.jpg;\r\nc.jpg;it\'s late\r\n',
    "own.tsv": "caption\tn\na calm lake\t1\none, two; “three”\t2\nit's late\t3\n",
    "own.jsonl": "\n".join(json.dumps({"text": text}) for text in TEXTS),
    "own.txt": "\ufeff" + "\n\n".join(TEXTS) + "\n",
}


@pytest.mark.parametrize("name", FILES)
def test_texts_in_order(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8", newline="")
    assert read_texts(path) == TEXTS


@pytest.mark.parametrize(
    ("name", "emotions"),
    [
        ("artemis.json", ["awe", None, None]),
        ("artemis.csv", ["awe", "awe", "fear"]),
        ("coco.json", [None] * 3),
        ("own.txt", [None] * 3),
    ],
)
def test_emotions_of_the_texts_if_the_file_has_them(tmp_path, name, emotions):
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8", newline="")
    assert read_annotated_texts(path) == [(*pair, "") for pair in zip(TEXTS, emotions, strict=True)]


FAULTS = {
    "none.csv": (None, "there is no such annotation file"),
    "empty.txt": ("\n", "the file has no text"),
    "heads.csv": ("word,valence\ncalm,1\n", "none of its columns is named text"),
    "other.json": ("[1, 2]", "neither ArtEmis nor COCO"),
    "broken.json": ("{", "not JSON"),
    "broken.jsonl": ('{"text": "a"}\n{', "line 2: not JSON"),
    "latin.txt": (b"caf\xe9", "not UTF-8"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_errors_name_the_file(tmp_path: Path, name: str) -> None:
    content, message = FAULTS[name]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        read_texts(path)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_real_json_and_csv_have_the_same_texts(shared_data: Path) -> None:
    folder = shared_data / "paintings"
    from_json = [text for split in ("train", "val", "test") for text in read_texts(folder / f"artEmisX_{split}.json")]
    assert sorted(from_json) == sorted(read_texts(folder / "artemis_dataset_release_v0.csv"))
