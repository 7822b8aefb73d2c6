"""Bounded reads and checks of untrusted files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from common import reading
from common.reading import Refused
from data.tokenizer import load_tokenizer
from tests.helpers.hostile import time_limit
from tests.helpers.tiny import write_tokenizer


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- ordinary files


def test_read_bytes_up_to_a_limit(tmp_path):
    path = write(tmp_path / "a", b"12345")
    assert reading.read_bytes(path, largest=5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, and the limit is 4"):
        reading.read_bytes(path, largest=4)


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/stdin", "pipe", "folder", "gone", "a\0b"])
def test_devices_and_pipes_are_rejected_at_once(tmp_path, name):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with time_limit(5), pytest.raises(OSError):
        reading.read_bytes(tmp_path / name)


def test_limit_applies_to_files_that_report_size_0():
    if Path("/proc/self/maps").is_file():
        assert Path("/proc/self/maps").stat().st_size == 0
        with pytest.raises(OSError, match="more than 100 bytes"):
            reading.read_bytes(Path("/proc/self/maps"), largest=100)


@pytest.mark.parametrize("content", ["", "{", b"\xff", "[" * 100_000, "9" * 5000])
def test_invalid_json_raises_value_error(tmp_path, content):
    with pytest.raises(ValueError):
        reading.read_json(write(tmp_path / "a.json", content))


def test_tilde_is_expanded_if_it_is_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert reading.expand_user("~/a") == tmp_path / "a" and reading.expand_user("~no body.jpg") == Path("~no body.jpg")


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
def test_clip_config_with_other_repositories_is_rejected(text_cfg):
    with pytest.raises(Refused, match="text_cfg"):
        reading.require_plain_clip({"embed_dim": 8, "text_cfg": text_cfg, "vision_cfg": {}})


@pytest.mark.parametrize("name", ["hf-hub:evil/repository", "hf_hub:evil/x", "local-dir:/tmp/x", "../x", "", "a b"])
def test_timm_model_name_must_be_an_architecture(name):
    reading.require_plain_clip({"vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224.v2_webli"}})
    with pytest.raises(Refused, match="not the name of an architecture"):
        reading.require_plain_clip({"vision_cfg": {"timm_model_name": name}})


def test_open_clips_own_configs_are_plain():
    import open_clip

    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        config["text_cfg"].pop("hf_model_name", None)  # by name, open_clip uses its own config, not a file
        reading.require_plain_clip(config)


# --- tokenizers


REGEX = {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}


def test_panic_of_the_tokenizers_library(tmp_path):
    parts = json.loads(load_tokenizer(str(write_tokenizer(tmp_path))).backend_tokenizer.to_str())
    panics = Tokenizer.from_str(json.dumps(parts | {"pre_tokenizer": REGEX}))
    with pytest.raises(Refused, match="its library fails"), reading.refuse_panics():
        panics.encode("a" * 40)
    with pytest.raises(KeyboardInterrupt), reading.refuse_panics():
        raise KeyboardInterrupt
