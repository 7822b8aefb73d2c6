"""Samples of a configured split: the reader, and images that are missing, ambiguous or renamed."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from common.errors import UserError
from data.readers.split import read_samples, read_split
from tests.helpers.tiny import sentences, write_artemis


def settings(json_path: Path, images: Path, *, name: str = "artemis", strict: bool = False) -> dict:
    files = {"json_path": str(json_path), "visual_dir": str(images)}
    return {"name": name, "strict": strict, "sign_languages": ["en"], "train_ds": files}


def test_missing_images_are_skipped(tmp_path):
    json_path, images = write_artemis(tmp_path, 5)
    gone = images / "Style" / "picture-002.png"
    gone.unlink()
    found = read_samples(settings(json_path, images), "train_ds")
    assert [s.id for s in found.samples] == ["1000", "1001", "1003", "1004"]
    assert [(s.id, s.path, s.reason) for s in found.skipped] == [("1002", gone.resolve(), "there is no such file")]


def test_strict_refuses_missing_images(tmp_path):
    json_path, images = write_artemis(tmp_path, 5)
    for i in (2, 4):
        (images / "Style" / f"picture-00{i}.png").unlink()
    with pytest.raises(UserError, match=r"2 of 5 images cannot be used.*picture-002\.png \(image 1002\).*strict=false"):
        read_samples(settings(json_path, images, strict=True), "train_ds")


def test_error_names_a_folder_without_the_images(tmp_path):
    json_path, _ = write_artemis(tmp_path, 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"none of its 3 images is in {tmp_path / 'empty'}, e\.g\. .*picture-000\.png"):
        read_samples(settings(json_path, tmp_path / "empty"), "train_ds")


def test_error_names_a_missing_folder_and_its_key(tmp_path):
    json_path, _ = write_artemis(tmp_path, 1)
    with pytest.raises(UserError, match=rf"dataset\.train_ds\.visual_dir: there is no folder {tmp_path / 'nowhere'}"):
        read_samples(settings(json_path, tmp_path / "nowhere"), "train_ds")


def test_dataset_name_selects_the_reader(tmp_path):
    _, images = write_artemis(tmp_path, 2)
    names = [{"id": i, "file_name": f"Style/picture-00{i}.png"} for i in range(2)]
    captions = [{"image_id": i, "caption": text} for i in range(2) for text in sentences(2, seed=i)]
    coco = tmp_path / "captions.json"
    coco.write_text(json.dumps({"images": names, "annotations": captions}))
    found = read_samples(settings(coco, images, name="coco"), "train_ds")
    assert [s.id for s in found.samples] == ["0", "1"] and not found.skipped
    assert all(s.emotions == () and len(s.texts) == 2 for s in found.samples)


def rename(json_path: Path, old: str, new: str) -> None:
    json_path.write_text(json_path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def test_images_with_another_spelling_are_used_and_reported(tmp_path):
    json_path, images = write_artemis(tmp_path, 3)
    stored = images / "Style" / unicodedata.normalize("NFD", "josé.png")
    (images / "Style" / "picture-001.png").rename(stored)
    rename(json_path, "picture-001.png", "josé.png")
    found = read_split(settings(json_path, images), "train_ds")
    assert [s.id for s in found.samples] == ["1000", "1001", "1002"] and not found.skipped
    assert [(r.id, r.name, r.path.name) for r in found.renamed] == [("1001", "Style/josé.png", stored.name)]
    assert found.samples[1].path == found.renamed[0].path and found.samples[1].path.is_file()


def test_file_with_an_exact_name_is_not_used_for_another_entry(tmp_path):
    """`josé.png` is missing; the file with the exact name `jos.png` must not be used for it."""
    json_path, images = write_artemis(tmp_path, 3)
    (images / "Style" / "picture-000.png").rename(images / "Style" / "jos.png")
    (images / "Style" / "picture-001.png").unlink()
    rename(json_path, "picture-000.png", "jos.png")
    rename(json_path, "picture-001.png", "josé.png")
    found = read_split(settings(json_path, images), "train_ds")
    assert [s.id for s in found.samples] == ["1000", "1002"] and not found.renamed
    assert [s.id for s in found.skipped] == ["1001"] and "'jos.png' might be meant" in found.skipped[0].reason


def test_two_damaged_names_do_not_share_a_file(tmp_path):
    json_path, images = write_artemis(tmp_path, 3)
    for i, name in enumerate(("jos?.png", "jos??.png")):
        (images / "Style" / f"picture-00{i}.png").unlink()
        rename(json_path, f"picture-00{i}.png", name)
    Image.new("RGB", (8, 8)).save(images / "Style" / "josé.png")
    found = read_split(settings(json_path, images), "train_ds")
    assert [s.id for s in found.samples] == ["1002"] and len(found.skipped) == 2 and not found.renamed


def test_image_with_an_ambiguous_name_is_skipped(tmp_path):
    json_path, images = write_artemis(tmp_path, 3)
    for i, name in enumerate(("josé.png", "josè.png")):
        (images / "Style" / f"picture-00{i}.png").rename(images / "Style" / name)
        rename(json_path, f"picture-00{i}.png", ("jos?.png", "picture-002.png")[i])
    found = read_split(settings(json_path, images), "train_ds")
    assert [s.id for s in found.samples] == ["1001", "1002"], "two entries may have the same image name"
    assert "'josè.png', 'josé.png'" in found.skipped[0].reason and "rename" in found.skipped[0].reason
    with pytest.raises(UserError, match=r"1 of 3 images cannot be used.*may stand for any of.*dataset\.strict=false"):
        read_samples(settings(json_path, images, strict=True), "train_ds")


def test_link_out_of_the_folder_is_skipped(tmp_path):
    json_path, images = write_artemis(tmp_path, 2)
    picture = images / "Style" / "picture-000.png"
    picture.rename(tmp_path / "outside.png")
    picture.symlink_to(tmp_path / "outside.png")
    found = read_split(settings(json_path, images), "train_ds")
    assert [s.id for s in found.samples] == ["1001"] and "symbolic link out of" in found.skipped[0].reason
    assert "dataset.follow_links=true" in found.skipped[0].reason
    trusted = settings(json_path, images) | {"follow_links": True}
    assert [s.id for s in read_split(trusted, "train_ds").samples] == ["1000", "1001"]
    json_path.write_text(json_path.read_text().replace("Style/picture-000", "../outside"))
    with pytest.raises(UserError, match="leads out of"):
        read_split(trusted, "train_ds")


def test_folder_of_links(tmp_path):
    """A subset, made of links to single pictures and to a folder."""
    json_path, images = write_artemis(tmp_path, 2)
    (tmp_path / "subset").mkdir()
    (tmp_path / "subset" / "Style").symlink_to(images / "Style")
    found = read_split(settings(json_path, tmp_path / "subset"), "train_ds")
    assert not found.samples and len(found.skipped) == 2
    trusted = settings(json_path, tmp_path / "subset") | {"follow_links": True}
    assert len(read_split(trusted, "train_ds").samples) == 2


def test_faults_of_single_entries_are_collected(tmp_path):
    json_path, images = write_artemis(tmp_path, 4)
    entries = json.loads(json_path.read_text())
    entries["1001"]["emotions"][0] = "joy"
    entries["1003"]["image_name"] = "../outside.png"
    json_path.write_text(json.dumps(entries))
    faults: list[str] = []
    found = read_split(settings(json_path, images), "train_ds", faults=faults)
    assert [s.id for s in found.samples] == ["1000", "1002"] and len(faults) == 2
    assert "image '1001'" in faults[0] and "'joy'" in faults[0] and "image '1003'" in faults[1]
    with pytest.raises(UserError, match="1001"):
        read_split(settings(json_path, images), "train_ds")


def test_error_for_a_raw_table_names_the_converter(tmp_path):
    _, images = write_artemis(tmp_path, 1)
    (tmp_path / "artemis.csv").write_text("art_style,painting,emotion,utterance,repetition\n")
    with pytest.raises(UserError, match=r"artemis\.csv is a table.*dataset\.name=table.*data\.prepare artemis"):
        read_samples(settings(tmp_path / "artemis.csv", images), "train_ds")


def test_error_for_a_missing_file_names_the_converter(tmp_path):
    _, images = write_artemis(tmp_path, 1)
    with pytest.raises(UserError, match=r"dataset\.train_ds\.json_path: there is no file .*data\.prepare artemis"):
        read_split(settings(tmp_path / "artEmisX_train.json", images), "train_ds")
