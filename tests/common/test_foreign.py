"""common/reading.py: what it lets pass is read as before, and what it refuses would have done harm."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from common import reading as foreign
from common.reading import Refused
from data.text import load_tokenizer
from tests.helpers.hostile import time_limit
from tests.helpers.tiny import write_tokenizer


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- ordinary files


def test_files_are_read_up_to_a_limit(tmp_path):
    path = written(tmp_path / "a", b"12345")
    assert foreign.read_bytes(path, largest=5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, and the limit is 4"):
        foreign.read_bytes(path, largest=4)


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/stdin", "pipe", "folder", "gone", "a\0b"])
def test_what_is_no_ordinary_file_is_never_waited_for(tmp_path, name):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with time_limit(5), pytest.raises(OSError):
        foreign.read_bytes(tmp_path / name)


def test_a_file_that_says_that_it_is_empty_is_bounded_all_the_same():
    if Path("/proc/self/maps").is_file():
        assert Path("/proc/self/maps").stat().st_size == 0
        with pytest.raises(OSError, match="more than 100 bytes"):
            foreign.read_bytes(Path("/proc/self/maps"), largest=100)


@pytest.mark.parametrize("content", ["", "{", b"\xff", "[" * 100_000, "9" * 5000])
def test_a_file_that_is_not_json_raises_one_error(tmp_path, content):
    with pytest.raises(ValueError):
        foreign.read_json(written(tmp_path / "a.json", content))


def test_a_tilde_is_a_home_or_a_character(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert foreign.expanded("~/a") == tmp_path / "a" and foreign.expanded("~no body.jpg") == Path("~no body.jpg")


# --- configurations of networks


@pytest.mark.parametrize(
    "text_cfg",
    [
        {"hf_model_name": "evil/repository"},
        {"tokenizer_kwargs": {"trust_remote_code": True}},
        {"tokenizer_kwargs": ["trust_remote_code"]},
        {"tokenizer_kwargs": {"clean": "lower", "code_revision": "x"}},
        "text",
    ],
    ids=str,
)
def test_a_clip_that_names_more_than_itself(text_cfg):
    with pytest.raises(Refused, match="text_cfg"):
        foreign.require_plain_clip({"embed_dim": 8, "text_cfg": text_cfg, "vision_cfg": {}})


@pytest.mark.parametrize("name", ["hf-hub:evil/repository", "hf_hub:evil/x", "local-dir:/tmp/x", "../x", "", "a b"])
def test_a_tower_of_timm_has_an_architecture_for_its_name(name):
    foreign.require_plain_clip({"vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224.v2_webli"}})
    with pytest.raises(Refused, match="not the name of an architecture"):
        foreign.require_plain_clip({"vision_cfg": {"timm_model_name": name}})


def test_every_clip_that_open_clip_lists_is_plain_but_for_its_text_tower():
    import open_clip

    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        config["text_cfg"].pop("hf_model_name", None)  # under its own name it is taken from open_clip, not from a file
        foreign.require_plain_clip(config)


# --- tokenizers


REGEX = {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}


def test_a_panic_of_the_library_becomes_a_sentence(tmp_path):
    parts = json.loads(load_tokenizer(str(write_tokenizer(tmp_path))).backend_tokenizer.to_str())
    panics = Tokenizer.from_str(json.dumps(parts | {"pre_tokenizer": REGEX}))
    with pytest.raises(Refused, match="its library fails"), foreign.panics_refused():
        panics.encode("a" * 40)
    with pytest.raises(KeyboardInterrupt), foreign.panics_refused():
        raise KeyboardInterrupt
