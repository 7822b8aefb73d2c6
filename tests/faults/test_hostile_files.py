"""Malicious names, links, devices and texts: no other file is read or written, and nothing is run."""

from __future__ import annotations

import csv
import json
import os
import platform
from pathlib import Path

import pytest
from PIL import Image

from common.files import write_csv, write_text
from common.locks import locked
from data.cache.digests import FileDigests
from data.cache.feature_cache import MEMO
from data.image_files import find_images
from data.images import ImageError, open_image
from data.prepare import images as copies
from data.readers.split import read_split
from data.text import Template
from data.tokenizer import load_tokenizer
from data.vad.lexicon_files import read_lexicon
from tests.helpers.data_files import dataset
from tests.helpers.hostile import confined, refusal, time_limit
from tests.helpers.html_page import Page
from tests.helpers.tiny import write_pictures, write_tokenizer
from trainer.report.page import write_predictions_page, write_test_report
from trainer.report.thumbnails import thumbnail
from trainer.score.commands import picture_of
from trainer.score.predictions import read_predictions
from trainer.text_emotion.word_vectors import read_vectors

LONG = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 30}


@pytest.fixture
def private(tmp_path) -> Path:
    (tmp_path / "private").write_text("mine")
    return tmp_path / "private"


def test_temporary_files_locks_and_memos_do_not_follow_links(tmp_path, private):
    (tmp_path / f".a.{platform.node()}.{os.getpid()}.tmp").symlink_to(private)
    write_text(tmp_path / "a", "new")
    (tmp_path / "lock").symlink_to(private)
    with pytest.raises(OSError), locked(tmp_path / "lock", purpose="testing"):
        pass
    (tmp_path / MEMO).symlink_to(private)
    pictures = write_pictures(tmp_path / "pictures", 2)
    for path in pictures:
        os.utime(path, (0, 0))
    FileDigests(tmp_path / MEMO).contents(pictures, show=False)
    assert private.read_text() == "mine" and (tmp_path / "a").read_text() == "new"


def test_links_out_of_an_image_folder_are_ignored(tmp_path):
    inside, outside = write_pictures(tmp_path / "in", 2), write_pictures(tmp_path / "out", 1)
    (tmp_path / "in" / "out.png").symlink_to(outside[0])
    (tmp_path / "in" / "near.png").symlink_to(inside[0])
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "out")
    found = find_images(tmp_path / "in")
    assert found.images == sorted([*inside, tmp_path / "in" / "near.png"])
    assert found.links == [tmp_path / "in" / "folder", tmp_path / "in" / "out.png"]
    outcome = copies.copy_pictures(
        tmp_path / "in", tmp_path / "copies", copies.Settings(60, 95), max_pixels=10**6, workers=1
    )
    assert set(outcome.left_out) == {"out.png", "folder"} and len(outcome.copies) == 3


def test_annotations_cannot_name_images_outside_the_folder(tmp_path):
    write_pictures(tmp_path / "images", 1)
    outside = write_pictures(tmp_path / "out", 1)[0]
    (tmp_path / "images" / "link.png").symlink_to(outside)
    entry = {"emotions": ["awe"], "explanations": ["x"]}
    (tmp_path / "a.json").write_text(json.dumps({"1": entry | {"image_name": "link.png"}}))
    split = read_split(dataset("artemis", tmp_path / "a.json", tmp_path / "images"), "train_ds")
    assert len(split.samples) == 0 and "symbolic link out of" in split.skipped[0].reason
    for name in ("../out/picture-000.png", str(outside)):
        (tmp_path / "a.json").write_text(json.dumps({"1": entry | {"image_name": name}}))
        assert "leads out of" in refusal(
            lambda: read_split(dataset("artemis", tmp_path / "a.json", tmp_path), "train_ds")
        )


def test_predictions_cannot_name_images_outside_the_folder(tmp_path):
    outside = write_pictures(tmp_path / "out", 1)[0]
    picture = write_pictures(tmp_path / "images" / "Style", 1)[0]
    (tmp_path / "images" / "link.png").symlink_to(outside)
    folder = tmp_path / "images"
    assert picture_of(folder, {"id": "1", "image": f"/home/somebody/Style/{picture.name}"}) == picture
    for name in (str(outside), "../out/picture-000.png", "Style/../../out/picture-000.png", "link.png", "..", "/", "."):
        found = picture_of(folder, {"id": name, "image": name})
        assert found.is_relative_to(folder) and (not found.is_file() or found == picture)


@pytest.mark.parametrize("name", ["/dev/zero", "pipe"])
def test_devices_and_pipes_are_refused(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / name
    table = lambda path: read_split(dataset("table", path, tmp_path), "train_ds")  # noqa: E731
    for read in (read_lexicon, read_predictions, table, lambda path: read_vectors(path, ["sky"])):
        refusal(lambda read=read: read(path), "not an ordinary file", seconds=30)
    with time_limit(5), pytest.raises(ImageError, match="not a file"):
        open_image(path)


def test_thumbnails_are_made_of_images_only(tmp_path):
    page = tmp_path / "a.png"
    page.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\nshowpage\n")
    assert thumbnail(page) is None
    Image.new("RGB", (9, 9)).save(tmp_path / "b.png")
    assert thumbnail(tmp_path / "b.png")["width"] == 9


def test_texts_are_escaped_in_pages(tmp_path):
    evil = "</p><script>alert(1)</script>\" onmouseover='x' {{ 7*7 }} ${x} \u202e"
    picture = write_pictures(tmp_path / "<img src=x onerror=alert(1)>", 1)[0]
    row = {"image": str(picture), "emotion": None, "emotion_distribution": None, "explanation": evil}
    row |= {"emotion_text": evil, "id": evil}
    details = {"title": evil, "facts": {evil: evil}, "skipped": [(evil, evil)]}
    write_predictions_page([row], tmp_path / "p.html", **details)
    tested = row | {"references": [evil], "reference_emotions": [evil], "histogram": None}
    write_test_report([tested], {"emotion": None, "notes": [evil], "images": 1}, tmp_path / "t.html", **details)
    for page in (Page(tmp_path / "p.html"), Page(tmp_path / "t.html")):
        page.require_self_contained()
        assert not {"script", "img onerror"} & {tag for tag, _ in page.tags} and page.text.count("7*7") >= 6


def test_formulas_are_escaped_in_csv(tmp_path):
    cells = ["=cmd|'/c calc'!A1", "+1", "-1", "@SUM(1)", "\tx", "plain", "a=b", 3]
    write_csv(tmp_path / "a.csv", ["name"], [[cell] for cell in cells])
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        read = [row[0] for row in csv.reader(file)][1:]
    assert read == [*(f"'{cell}" for cell in cells[:5]), "plain", "a=b", "3"]


# --- tokenizers -------------------------------------------------------------------------------------------------------


def use(path: Path) -> str:
    template = Template(load_tokenizer(str(path)), max_length=60)
    return template.decode(template.encode("the tiny boat is aaaa", 0).input_ids)


TOKENIZER_FILES = {
    "another file of parts": {"tokenizer_config": {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}},
    "another file by its path": {"tokenizer_config": {"tokenizer_file": "tokenizer.4.0.0.json"}},
    "a device": {"tokenizer_config": {"vocab_file": "/dev/zero", "merges_file": "/dev/zero"}},
    "code": {"tokenizer_config": {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}},
    "another library": {"tokenizer_config": {"backend": "mistral-common", "from_slow": True}},
    "a template": {"tokenizer_config": {"chat_template": "{{ cycler.__init__.__globals__.os.mkdir('marker') }}"}},
}


@pytest.mark.parametrize("what", TOKENIZER_FILES)
def test_only_the_vocabulary_defines_a_tokenizer(tmp_path, monkeypatch, what):
    folder = write_tokenizer(tmp_path / "tokenizer")
    expected = use(folder)
    parts = json.loads(load_tokenizer(str(folder)).backend_tokenizer.to_str())
    parts["normalizer"] = {"type": "Sequence", "normalizers": [LONG] * 8}
    (folder / "tokenizer.4.0.0.json").write_text(json.dumps(parts))
    (folder / "evil.py").write_text("import os\nos.mkdir('marker')\nclass Evil: pass\n")
    for name, values in TOKENIZER_FILES[what].items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    monkeypatch.chdir(folder)
    with confined(folder) as noticed:
        assert use(folder) == expected
    assert not noticed and not (folder / "marker").exists()
