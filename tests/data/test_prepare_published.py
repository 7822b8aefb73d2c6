"""`python -m data.prepare affection|emoart|emoset|ldl`: the layouts as published, with the faults of such files."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from data.emotions import EMOTIONS, NEGATIVE, POSITIVE, valence
from data.prepare.__main__ import main
from data.prepare.layouts import EMOART, LAYOUTS, MIKELS
from data.readers.artemis import read_artemis
from data.samples import Samples


def pictures(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "teal").save(root / name)


def prepared(tmp_path: Path, *arguments: object) -> tuple[dict[str, dict], Counter]:
    """Run a command; return all entries by split, and the number of records left out by reason."""
    assert main([*map(str, arguments), "--out", str(tmp_path / "out")]) == 0
    files = {split: tmp_path / f"out/artEmisX_{split}.json" for split in ("train", "val", "test")}
    entries = {split: json.loads(file.read_text()) if file.exists() else {} for split, file in files.items()}
    with (tmp_path / "out/left_out.csv").open(newline="") as file:
        return entries, Counter(row["reason"].partition(":")[0] for row in csv.DictReader(file))


def samples(tmp_path: Path, split: str, images: Path, labels: tuple[str, ...] = EMOTIONS) -> Samples:
    return read_artemis(tmp_path / f"out/artEmisX_{split}.json", images, labels=labels)


HEAD = "workerid,utterance,emotion,dataset,image_name,utterance_spelled,tokens,tokens_len,tokens_encoded,split"


def affection(*rows: str) -> str:
    return "\n".join([HEAD, *(f"{row.rpartition(',')[0]},x,x,1,[1],{row.rpartition(',')[2]}" for row in rows)])


def test_affection_keeps_every_response_and_the_published_split(tmp_path: Path, capsys):
    photos = tmp_path / "photos"
    pictures(photos, "coco_affective/train2014/COCO_1.jpg", "flickr30k_affective/7.JPG", "you_aaai_affective/awe/7.jpg")
    rows = [
        'w1,"so calm, so still",contentment,coco_affective,COCO_1.jpg,train',
        "w2,It scares me,fear,coco_affective,COCO_1.jpg,train",
        "w3,what a view,Awe,flickr30k_affective,7.jpg,test",
        "w4,nice,something_else,you_aaai_affective,7.jpg,val",
        "w5,lovely,joy,coco_affective,COCO_1.jpg,train",
        "w6,gone,awe,coco_affective,COCO_2.jpg,train",
        "w7,late,awe,coco_affective,COCO_1.jpg,val",
        "w8, ,awe,coco_affective,COCO_1.jpg,train",
    ]
    file = tmp_path / "affection.csv"
    file.write_bytes(
        f"\ufeff{affection(*rows)}\n,,,,,,,,,\n".encode()
    )  # byte order mark, and a spreadsheet's empty row
    entries, left_out = prepared(tmp_path, "affection", file, "--images", photos)
    assert left_out == {"unknown emotion": 1, "missing picture": 1, "picture in two splits": 1, "no utterance": 1}
    assert entries["train"] == {
        "coco_affective/train2014/COCO_1.jpg": {
            "image_name": "coco_affective/train2014/COCO_1.jpg",
            "emotions": ["contentment", "fear"],
            "explanations": ["so calm, so still", "It scares me"],
            "dataset": "coco_affective",
        }
    }
    assert sum(len(e["emotions"]) for split in entries.values() for e in split.values()) == len(rows) - 4
    [other] = samples(tmp_path, "val", photos)
    assert other.path == photos / "you_aaai_affective/awe/7.jpg" and other.emotions == (8,)
    assert "train: 1 pictures, 2 annotations" in capsys.readouterr().out


def test_affection_without_split_is_divided_by_name_alone(tmp_path: Path):
    names = [f"{i}.jpg" for i in range(300)]
    pictures(tmp_path / "photos/coco_affective", *names)
    lines = [f"w,text {name},awe,coco_affective,{name}" for name in names]
    file = tmp_path / "raw.csv"
    splits = []
    for order in (lines, lines[::-1]):
        file.write_text("\n".join(["workerid,utterance,emotion,dataset,image_name", *order]))
        entries, _ = prepared(tmp_path, "affection", file, "--images", tmp_path / "photos")
        splits.append({split: {*found} for split, found in entries.items()})
    sizes = {split: len(found) for split, found in splits[0].items()}
    assert splits[0] == splits[1] and sum(sizes.values()) == 300
    assert 15 < sizes["test"] < 45 and 4 < sizes["val"] < 30


def test_joined_table_is_refused(tmp_path: Path, capsys):
    pictures(tmp_path / "coco_affective", "a.jpg")
    rows = affection("w1,one,awe,coco_affective,a.jpg,train", "w2,two,fear,coco_affective,a.jpg,train")
    (tmp_path / "twice.csv").write_text(rows + "\n" + "\n".join(rows.splitlines()[1:]))
    assert main(["affection", str(tmp_path / "twice.csv"), "--out", str(tmp_path / "out")]) == 2
    assert "joined to itself" in capsys.readouterr().err and not (tmp_path / "out").exists()


def art(path: str, emotion: object = "Calm", impact: str = "It soothes.", **more: str) -> dict:
    third = {"dominant_emotion": emotion, "emotional_valence": "Positive", "emotional_arousal_level": "Low"}
    sections = {"first_section": {"description": "x"}, "second_section": {"emotional_impact": impact}}
    return {"request_id": "1", "image_path": path, "description": {**sections, "third_section": third}, **more}


@pytest.mark.parametrize("as_object", [False, True])
def test_emoart_has_its_twelve_emotions_valence_and_arousal(tmp_path: Path, as_object: bool):
    pictures(tmp_path / "art", "Gongbi/001.jpg", "Cubism/001.jpg", "Cubism/two.jpg")
    rows: list[object] = [
        art("Images\\Gongbi\\001.jpg"),
        art("Images\\Cubism\\001.jpg", "Content"),
        art("Images\\Ukiyo-e\\001.jpg"),  # pictures of that name are of other styles
        art("Images\\Gongbi\\001.jpg"),
        art("Images\\Cubism\\two.jpg", "Melancholic"),
        art("Images\\Cubism\\two.jpg", None),
        "torn",
    ]
    file = tmp_path / "art/Annotation.json"
    file.write_text(json.dumps(dict(enumerate(rows)) if as_object else rows), encoding="utf-8-sig")
    entries, left_out = prepared(tmp_path, "emoart", file)
    assert left_out == {
        **{"missing picture": 1, "picture twice": 1, "unknown emotion": 1},
        **{"no dominant_emotion": 1, "not an object": 1},
    }
    found = {name: entry for split in entries.values() for name, entry in split.items()}
    assert found["Gongbi/001.jpg"]["emotions"] == ["calm"] and found["Cubism/001.jpg"]["emotions"] == ["contentment"]
    assert {key: found["Gongbi/001.jpg"][key] for key in ("explanations", "valence", "arousal")} == {
        **{"explanations": ["It soothes."], "valence": "Positive", "arousal": "Low"},
    }
    assert len(found) == len(rows) - left_out.total()


@pytest.mark.parametrize("with_id", [True, False])
def test_emoset_has_its_splits_and_attributes(tmp_path: Path, with_id: bool):
    root = tmp_path / "EmoSet-118K"
    pictures(root, "image/awe/awe_1.jpg", "image/fear/fear_1.jpg")
    for name in ("awe_1", "awe_2", "fear_1"):
        (root / "annotation").mkdir(exist_ok=True)
        annotation = {"image_id": name, "emotion": name[:-2], "brightness": 0.7, "object": ["Tree"]}
        (root / f"annotation/{name}.json").write_text(json.dumps(annotation))

    def entry(emotion: str, name: str) -> list[str]:
        picture, annotation = f"image/{emotion}/{name}.jpg", f"annotation/{name}.json"
        return [emotion, *([name] * with_id), picture, annotation]

    lists = {"train": [entry("awe", "awe_1"), entry("awe", "awe_2"), entry("awe", "awe_3"), ["awe"]], "val": []}
    lists["test"] = [entry("fear", "fear_1"), entry("fear", "fear_1"), ["awe", "../x.jpg", "../../secret.json"]]
    for split, rows in lists.items():
        (root / f"{split}.json").write_text(json.dumps(rows))
    entries, left_out = prepared(tmp_path, "emoset", root)
    assert {split: [*found] for split, found in entries.items()} == {
        **{"train": ["image/awe/awe_1.jpg"], "val": [], "test": ["image/fear/fear_1.jpg"]},
    }
    assert left_out == {
        **{"missing picture": 1, "picture twice": 1, "annotation": 2, "not [emotion, id, picture, annotation]": 1},
    }
    assert entries["test"]["image/fear/fear_1.jpg"]["brightness"] == "0.7"
    [sample] = samples(tmp_path, "train", root, MIKELS)
    assert (sample.texts, sample.emotions, sample.histogram) == (("",), (1,), (0, 1, 0, 0, 0, 0, 0, 0))


VOTES = "images-name Amusement Awe Contentment Excitement Anger Disgust Fear Sadness"


@pytest.mark.parametrize("separator", [" ", ",", "\t"])
def test_votes_become_histograms(tmp_path: Path, separator: str):
    pictures(tmp_path / "images", *(f"{i}.jpg" for i in range(1, 8)))
    rows = [
        "1.jpg 0 3 5 0 0 0 1 2",
        "2 1.0 0 0 0 0 0 0 10",  # pandas' whole number; a name without its suffix
        "3.jpg 0 0 0 0 0 0 0 0",
        "4.jpg 0.5 0.5 0 0 0 0 0 0",
        "5.jpg -1 2 0 0 0 0 0 0",
        "6.jpg 0 x 0 0 0 0 0 0",
        "9.jpg 0 1 0 0 0 0 0 0",
        "1.jpg 0 3 5 0 0 0 1 2 ".strip(),
    ]
    text = "\n".join([VOTES, *rows]).replace(" ", separator)
    file = tmp_path / ("ground_truth.csv" if separator == "," else "ground_truth.txt")
    file.write_text(text, encoding="utf-8-sig")
    entries, left_out = prepared(tmp_path, "ldl", file, "--images", tmp_path / "images")
    assert left_out == {"no votes": 1, "votes that are not a count": 3, "missing picture": 1, "picture twice": 1}
    assert sum(map(len, entries.values())) == len(rows) - left_out.total() == 2
    found = [one for split in entries for one in (samples(tmp_path, split, tmp_path, MIKELS) if entries[split] else ())]
    histograms = {sample.id: sample.histogram for sample in found}
    assert histograms["1.jpg"] == tuple(votes / 11 for votes in (0, 3, 5, 0, 0, 0, 1, 2))
    assert histograms["2.jpg"] == tuple(votes / 11 for votes in (1, 0, 0, 0, 0, 0, 0, 10))
    assert {text for sample in found for text in sample.texts} == {""}


@pytest.mark.parametrize("form", ["images", "list", "lines"])
def test_votes_in_json(tmp_path: Path, form: str):
    """20 annotators may choose several emotions each, so votes do not sum to 20."""
    pictures(tmp_path / "images", *(f"{i}.jpg" for i in range(1, 4)))
    votes = {"1.jpg": {"Awe": 15, "contentment": 15}, "2.jpg": {"fear": 2, "joy": 1}, "3.jpg": {"sadness": 1.5}}
    if form == "images":
        text = json.dumps(votes)
    else:
        objects = [json.dumps({"file_name": name, "id": 1, "votes": found}) for name, found in votes.items()]
        text = "\n".join(objects) if form == "lines" else f"[{','.join(objects)}]"
    (tmp_path / "votes.json").write_text(text, encoding="utf-8")
    entries, left_out = prepared(tmp_path, "multiemo", tmp_path / "votes.json", "--images", tmp_path / "images")
    assert left_out == {"votes that are not a count": 1}
    found = [one for split in entries for one in (samples(tmp_path, split, tmp_path, MIKELS) if entries[split] else ())]
    histograms = {sample.id: sample.histogram for sample in found}
    assert histograms == {"1.jpg": (0, 0.5, 0.5, 0, 0, 0, 0, 0), "2.jpg": (0, 0, 0, 0, 0, 0, 1, 0)}


@pytest.mark.parametrize(
    ("command", "content", "message"),
    [
        ("affection", "image,text\na.jpg,x\n", "none of its records can be used (no dataset); give affection_pre"),
        ("emoart", "3", "must be a list of objects"),
        ("ldl", "image Awe\na.jpg 1\n", "(votes that are not a count); give ground_truth.txt"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, capsys, command: str, content: str, message: str):
    pictures(tmp_path, "a.jpg")
    file = tmp_path / ("x.csv" if command == "affection" else "x.json")
    file.write_text(content)
    assert main([command, str(file), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_missing_folder_of_pictures_is_refused(tmp_path: Path, capsys):
    (tmp_path / "ground_truth.txt").write_text(VOTES)
    arguments = ["ldl", str(tmp_path / "ground_truth.txt"), "--out", str(tmp_path / "out"), "--images"]
    for folder, message in ((tmp_path / "none", "give that of the pictures with --images"), (tmp_path, "no picture")):
        assert main([*arguments, str(folder)]) == 2
        assert message in capsys.readouterr().err


def test_copies_of_the_pictures_are_made_for_any_labels(tmp_path: Path):
    pictures(tmp_path / "art", "Gongbi/001.jpg", "Gongbi/002.jpg")
    (tmp_path / "art/Annotation.json").write_text(json.dumps([art("Images\\Gongbi\\001.jpg", "Happy")]))
    prepared(tmp_path, "emoart", tmp_path / "art/Annotation.json")
    assert main(["images", str(tmp_path / "art"), "--out", str(tmp_path / "out/images")]) == 0
    assert [path.name for path in (tmp_path / "out/images").rglob("*.jpg")] == ["001.jpg"]


def test_every_label_set_has_both_valences():
    for layout in LAYOUTS.values():
        assert {valence(label) for label in layout.labels} >= {POSITIVE, NEGATIVE}
    assert [label for label in EMOART if not valence(label)] == ["aroused"] and len(EMOART) == 12
