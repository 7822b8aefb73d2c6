"""Images in folders named after their emotion: samples, labels, and images held out for validation."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from common.errors import UserError
from data.prepare.check.command import compose_dataset
from data.readers.emotion_folder import SPLITS, hold_out
from data.readers.split import read_samples, read_split
from tests.helpers.folders import MIKELS, section, write_emotions, write_picture

SIX = ("anger", "disgust", "fear", "joy", "sadness", "surprise")


def assert_refused(dataset: dict, split: str, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        read_samples(dataset, split)
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
    assert "\n" not in message


def ids(dataset: dict, split: str) -> list[str]:
    return [sample.id for sample in read_samples(dataset, split).samples]


# --- samples ---------------------------------------------------------------------------------------------------------


def test_folder_name_is_the_emotion_and_texts_are_empty(tmp_path):
    root = write_emotions(tmp_path / "E6", SIX, {"train": 3, "val": 2, "test": 1})
    for split, count, folder in zip(SPLITS, (3, 2, 1), ("train", "val", "test"), strict=True):
        found = read_samples(section(root), split)
        assert found.samples.labels == SIX and len(found.samples) == 6 * count and not found.skipped
        assert found.samples.has_emotions and not found.samples.has_texts
        for sample in found.samples:
            name = SIX[sample.emotions[0]]
            assert sample.path == root / folder / name / sample.path.name and sample.path.is_file()
            assert sample.id == f"{folder}/{name}/{sample.path.name}"
            assert sample.texts == ("",) and sample.histogram == tuple(float(other == name) for other in SIX)


def test_samples_do_not_depend_on_the_order_of_creation(tmp_path):
    counts = {"test": 5, "train": 8}
    roots = [tmp_path / "a" / "FI", tmp_path / "b" / "FI"]
    write_emotions(roots[0], MIKELS, counts)
    write_emotions(roots[1], MIKELS, dict(reversed(counts.items())), order=(5, 0, 7, 3, 1, 6, 2, 4))
    for split in SPLITS:
        one, other = (read_samples(section(root), split).samples for root in roots)
        assert one.labels == other.labels == MIKELS
        assert [(s.id, s.emotions, s.histogram) for s in one] == [(s.id, s.emotions, s.histogram) for s in other]
        assert [s.path.relative_to(roots[0]) for s in one] == [s.path.relative_to(roots[1]) for s in other]


@pytest.mark.parametrize("listing", [sorted, lambda entries: sorted(entries, key=lambda e: e.name, reverse=True)])
def test_samples_do_not_depend_on_the_order_of_listing(tmp_path, monkeypatch, listing):
    root = write_emotions(tmp_path / "x", ("positive", "negative"), {"train": 20, "test": 2})
    expected = {split: ids(section(root), split) for split in SPLITS}
    real = os.scandir

    class Listed:
        def __init__(self, path):
            with real(path) as entries:
                self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=listing is not sorted))

        def __iter__(self):
            return self.entries

        def __next__(self):
            return next(self.entries)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def close(self):
            return None

    monkeypatch.setattr(os, "scandir", Listed)
    assert {split: ids(section(root), split) for split in SPLITS} == expected
    assert read_samples(section(root), "test_ds").samples.labels == ("negative", "positive")


def test_subfolders_are_read_and_system_files_are_ignored(tmp_path):
    root = write_emotions(tmp_path / "x", ("joy", "fear"), {"train": 2, "test": 1})
    write_picture(root / "train" / "joy" / "web" / "a" / "deep.JPG")
    for odd in (".cache", "__MACOSX", "@eaDir"):
        write_picture(root / "train" / odd / "p.png")
    write_picture(root / "train" / "joy" / ".hidden.png")
    (root / "train" / "neutral").mkdir()
    (root / "train" / "neutral" / "notes.txt").write_text("none yet")
    (root / "train" / "joy" / "Thumbs.db").write_bytes(b"x")
    write_picture(root / "train" / "loose.png")
    found = read_samples(section(root, validation="test"), "train_ds").samples
    assert found.labels == ("fear", "joy") and len(found) == 5
    assert "train/joy/web/a/deep.JPG" in [sample.id for sample in found]


def test_folder_names_are_normalized_to_labels(tmp_path):
    root = write_emotions(tmp_path / "x", ("Joy", "something_else", "喜"), {"train": 2, "test": 1})
    found = read_samples(section(root, validation="test"), "train_ds").samples
    assert found.labels == ("joy", "something else", "喜")
    assert {sample.id.split("/")[1]: found.labels[sample.emotions[0]] for sample in found} == {
        "Joy": "joy", "something_else": "something else", "喜": "喜",
    }  # fmt: skip


# --- labels ----------------------------------------------------------------------------------------------------------


def test_configured_labels_are_used(tmp_path):
    root = write_emotions(tmp_path / "x", ("fear", "joy"), {"train": 2, "val": 1, "test": 1})
    found = read_samples(section(root, labels=["Joy", "awe", "fear"]), "test_ds").samples
    assert found.labels == ("joy", "awe", "fear")
    assert {sample.id: (sample.emotions, sample.histogram) for sample in found} == {
        "test/fear/p0.png": ((2,), (0.0, 0.0, 1.0)),
        "test/joy/p0.png": ((0,), (1.0, 0.0, 0.0)),
    }


def test_error_names_emotions_that_are_not_configured(tmp_path):
    root = write_emotions(tmp_path / "x", SIX, {"train": 1, "test": 1})
    dataset = section(root, labels=["anger", "disgust", "fear", "sadness", "something else"])
    assert_refused(
        dataset,
        "test_ds",
        f"{root / 'test'}: 'joy', 'surprise' are not in dataset.labels (anger, disgust, ",
        "dataset.labels=[anger,disgust,fear,joy,sadness,surprise]",
    )


@pytest.mark.parametrize("odd", ["train", "val", "test"])
def test_error_names_the_split_with_another_emotion(tmp_path, odd):
    root = write_emotions(tmp_path / "x", ("fear", "joy"), {"train": 2, "val": 1, "test": 1})
    write_picture(root / odd / "Boredom" / "p.png")
    other = root / ("val" if odd == "train" else "train")
    expected = (f"{root / odd} has pictures of 'boredom' and {other} has none", "dataset.labels=[boredom,fear,joy]")
    assert_refused(section(root), "train_ds", *expected)
    assert len(read_samples(section(root, labels=["boredom", "fear", "joy"]), "train_ds").samples.labels) == 3


# --- validation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_accepted_names_of_the_validation_folder(tmp_path, name):
    root = write_emotions(tmp_path / "x", ("fear", "joy"), {"train": 9, name: 1, "test": 1})
    assert ids(section(root), "validation_ds") == [f"{name}/fear/p0.png", f"{name}/joy/p0.png"]
    assert len(ids(section(root), "train_ds")) == 18


@pytest.mark.parametrize("validation", ["val", None])
def test_without_validation_folder_images_of_each_emotion_are_held_out(tmp_path, validation):
    root = write_emotions(tmp_path / "x", MIKELS, {"train": 30, "test": 1})
    dataset = section(root, validation=validation, share=0.2)
    held_out, train = ids(dataset, "validation_ds"), ids(dataset, "train_ds")
    assert not {*held_out} & {*train} and len({*held_out} | {*train}) == 240
    assert {id.split("/")[1] for id in held_out} == {id.split("/")[1] for id in train} == {*MIKELS}
    assert 30 < len(held_out) < 66, "expected about 48"


def test_held_out_images_do_not_depend_on_other_images(tmp_path):
    root = write_emotions(tmp_path / "x", ("fear", "joy"), {"train": 30, "test": 1})
    before = {split: {*ids(section(root), split)} for split in SPLITS}
    for i in range(30):
        write_picture(root / "train" / "joy" / f"new{i}.png")
        write_picture(root / "test" / "fear" / f"new{i}.png")
    after = {split: {*ids(section(root), split)} for split in SPLITS}
    assert all(before[split] <= after[split] for split in SPLITS)
    new = (after["validation_ds"] | after["train_ds"]) - (before["validation_ds"] | before["train_ds"])
    assert len(new) == 30 and all("joy/new" in id for id in new)


def test_held_out_share_of_few_images():
    many = [("joy", f"train/joy/{i}") for i in range(1000)]
    assert 70 < len(hold_out(many, share=0.1)) < 130
    for count in range(2, 12):
        few = [("joy", f"a{i}") for i in range(count)] + [("fear", "b")]
        for share in (0.001, 0.5, 0.999):
            found = hold_out(few, share=share)
            assert 1 <= len(found) < count and "b" not in found
            assert found == hold_out(few[::-1], share=share)


def test_too_few_images_to_hold_out(tmp_path):
    root = write_emotions(tmp_path / "x", ("fear", "joy"), {"train": 1, "test": 1})
    assert_refused(section(root), "validation_ds", str(root / "train"), "no emotion has two pictures")


def test_validation_folder_of_another_name_must_exist(tmp_path):
    root = write_emotions(tmp_path / "x", ("fear", "joy"), {"train": 4, "test": 1})
    assert_refused(section(root, validation="held"), "validation_ds", "dataset.validation_ds.visual_dir", "held")
    assert_refused(section(root, validation="held"), "train_ds", "dataset.validation_ds.visual_dir", "held")


# --- invalid folders -------------------------------------------------------------------------------------------------


def test_missing_and_empty_folders(tmp_path):
    assert_refused(
        section(tmp_path), "train_ds", f"dataset.train_ds.visual_dir: there is no folder {tmp_path / 'train'}"
    )
    (tmp_path / "train").mkdir()
    assert_refused(section(tmp_path), "train_ds", str(tmp_path / "train"), "no folder of pictures")
    write_picture(tmp_path / "train" / "p.png")
    assert_refused(section(tmp_path), "train_ds", str(tmp_path / "train"), "no folder of pictures")
    write_picture(tmp_path / "train" / "joy" / "p.png")
    assert_refused(section(tmp_path), "train_ds", "1 names, joy")
    assert_refused(section(tmp_path, train=None), "train_ds", "dataset.train_ds.visual_dir=FOLDER")


def test_folder_of_all_splits_is_refused(tmp_path):
    root = write_emotions(tmp_path / "x", ("fear", "joy"), {"train": 1, "test": 1})
    assert_refused(section(root, train=""), "train_ds", f"{root} contains the splits", str(root / "t"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("Joy", "joy", "fear"), "cannot be told apart"),
        (("something_else", "something else"), "cannot be told apart"),
        (("joy", "f\x1bear"), "cannot be the name of an emotion"),
        (("joy", "f" * 70), "cannot be the name of an emotion"),
        (("joy", os.fsdecode(b"\xff\xfe")), "cannot be the name of an emotion"),
    ],
)
def test_folder_names_that_cannot_be_labels(tmp_path, names, message):
    root = write_emotions(tmp_path / "x", names, {"train": 1, "test": 1})
    assert_refused(section(root), "train_ds", str(root / "train"), message)


def test_unusual_file_names(tmp_path):
    root = write_emotions(tmp_path / "x", ("fear", "joy"), {"train": 1, "test": 1})
    names = ["a b.png", "line\nbreak.png", "ü.png", "'; rm -rf.png", "<script>.png", os.fsdecode(b"\xff.png")]
    for name in names:
        write_picture(root / "test" / "joy" / name)
    found = read_samples(section(root), "test_ds").samples
    assert {sample.path.name for sample in found} >= {*names}
    assert len({sample.id for sample in found}) == 8
    assert json.loads(json.dumps([sample.id for sample in found]).encode()) == [sample.id for sample in found]
    [strange] = [sample for sample in found if sample.path.name == names[-1]]
    assert strange.id == "test/joy/\\xff.png" and strange.id.encode()


def test_links_out_of_the_folder_are_skipped(tmp_path):
    root = write_emotions(tmp_path / "x", ("fear", "joy"), {"train": 3, "test": 1})
    secret = write_picture(tmp_path / "secret.png")
    (root / "train" / "joy" / "link.png").symlink_to(secret)
    (root / "train" / "joy" / "own.png").symlink_to(root / "train" / "joy" / "p0.png")
    found = read_samples(section(root, validation="test"), "train_ds")
    assert [s.id for s in found.skipped] == ["train/joy/link.png"]
    assert "symbolic link out of the folder" in found.skipped[0].reason
    assert "train/joy/own.png" in [sample.id for sample in found.samples]
    (root / "train" / "awe").symlink_to(write_picture(tmp_path / "elsewhere" / "p.png").parent)
    assert_refused(section(root, validation="test"), "train_ds", f"{root / 'train' / 'awe'} is a symbolic link out of")
    trusted = section(root, validation="test", labels=["awe", "fear", "joy"]) | {"follow_links": True}
    found = read_samples(trusted, "train_ds")
    assert not found.skipped and {"train/awe/p.png", "train/joy/link.png"} <= {s.id for s in found.samples}


# --- EmoSet's list ---------------------------------------------------------------------------------------------------


def write_emoset(root: Path, *, count: int = 12) -> dict:
    """Write the layout of EmoSet-118K, in which each picture also has a file of attributes."""
    entries = {"train": [], "val": [], "test": []}
    for k, name in enumerate(reversed(MIKELS)):
        for i in range(count):
            split = ("val", "test")[i] if i < 2 else "train"
            stem = f"{name}/{name}_{i:05d}"
            write_picture(root / "image" / f"{stem}.jpg", (30 * k, 200, 200))
            about = {"image_id": f"{name}_{i:05d}", "emotion": name, "brightness": 0.5, "colorfulness": 0.4}
            (root / "annotation" / name).mkdir(parents=True, exist_ok=True)
            (root / "annotation" / f"{stem}.json").write_text(json.dumps(about))
            entries[split].append([name, f"image/{stem}.jpg", f"annotation/{stem}.json"])
    dataset = section(root, train="", validation="", test="")
    for split, listed in entries.items():
        (root / f"{split}.json").write_text(json.dumps(listed))
        key = {"val": "validation"}.get(split, split)
        dataset[f"{key}_ds"]["json_path"] = str(root / f"{split}.json")
    return dataset


def test_emoset_lists(tmp_path):
    dataset = write_emoset(tmp_path)
    for split, count in zip(SPLITS, (80, 8, 8), strict=True):
        found = read_samples(dataset, split)
        assert found.samples.labels == MIKELS and len(found.samples) == count and not found.skipped
        for sample in found.samples:
            name = MIKELS[sample.emotions[0]]
            assert sample.path == tmp_path / "image" / name / sample.path.name
            assert sample.id == f"image/{name}/{sample.path.name}"


def test_emoset_lists_with_the_id_of_a_picture(tmp_path):
    dataset = write_emoset(tmp_path)
    plain = {split: read_samples(dataset, split).samples for split in SPLITS}
    for split in SPLITS:
        path = Path(dataset[split]["json_path"])
        path.write_text(
            json.dumps([[entry[0], str(i), *entry[1:]] for i, entry in enumerate(json.loads(path.read_text()))])
        )
    for split in SPLITS:
        assert [(s.id, s.path) for s in read_samples(dataset, split).samples] == [(s.id, s.path) for s in plain[split]]


def test_images_of_an_emoset_list_are_held_out_for_validation(tmp_path):
    dataset = write_emoset(tmp_path)
    dataset["validation_ds"] = {"visual_dir": None, "json_path": None}
    held_out, train = ids(dataset, "validation_ds"), ids(dataset, "train_ds")
    assert len(held_out) >= 8 and len(held_out) + len(train) == 80 and not {*held_out} & {*train}


def test_missing_image_of_a_list_is_skipped(tmp_path):
    dataset = write_emoset(tmp_path)
    gone = tmp_path / "image" / "awe" / "awe_00001.jpg"
    gone.unlink()
    found = read_samples(dataset, "test_ds")
    assert [(s.id, s.path, s.reason) for s in found.skipped] == [
        ("image/awe/awe_00001.jpg", gone, "there is no such file")
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "an EmoSet file is a list of lists"),
        ({"a": ["joy", "a.jpg"]}, "an EmoSet file is a list of lists"),
        ([["joy"]], "[0]: must be a list with an emotion and the path of a picture"),
        ([["joy", 3, "x"]], "[0]: must be a list"),
        ([["joy", "a.jpg"], ["fear", "../../etc/passwd"]], "[1]: image name '../../etc/passwd' leads out"),
        ([["joy", "/etc/passwd"]], "leads out"),
        ([["joy", "a.jpg"], ["fear", "a.jpg"]], "[1]: the picture 'a.jpg' appears twice"),
    ],
)
def test_invalid_emoset_list(tmp_path, content, message):
    dataset = section(tmp_path, train="", validation="", test="")
    path = tmp_path / "list.json"
    path.write_text(json.dumps(content))
    dataset["test_ds"]["json_path"] = str(path)
    assert_refused(dataset, "test_ds", str(path), message)


def test_faults_of_list_entries_are_collected(tmp_path):
    dataset = write_emoset(tmp_path)
    path = Path(dataset["test_ds"]["json_path"])
    path.write_text(json.dumps([*json.loads(path.read_text()), ["awe"], ["awe", ""]]))
    faults: list[str] = []
    assert len(read_split(dataset, "test_ds", faults=faults).samples) == 8
    assert len(faults) == 2 and all(fault.startswith(f"{path}: [") for fault in faults)


# --- presets of data sets in common use -------------------------------------------------------------------------------

PRESETS = {
    **dict.fromkeys(("FI", "emoset", "abstract", "artphoto"), MIKELS),
    "emotion6": SIX,
    **dict.fromkeys(("flickr", "instagram"), ("negative", "positive")),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_reads_folders_of_its_labels_only(preset, tmp_path):
    keys, labels = [f"preset={preset}"], PRESETS[preset]
    assert compose_dataset(keys)["root"].casefold() == f"datasets/{preset}".casefold()
    dataset = compose_dataset([*keys, f"dataset.root={write_emotions(tmp_path, labels[:2], {'train': 3, 'test': 1})}"])
    for split, count in (("train_ds", 4), ("validation_ds", 2), ("test_ds", 2)):
        samples = read_samples(dataset, split).samples
        assert samples.labels == labels and len(samples) == count
    write_emotions(tmp_path, ("calm",), {"train": 2})
    assert_refused(dataset, "train_ds", "'calm' is not in dataset.labels", "; set dataset.labels=[")
