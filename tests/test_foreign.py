"""foreign.py: what it lets pass is read as before, and what it refuses would have done harm."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer

import foreign
from foreign import Refused
from settings import ROOT
from tests.hostile import time_limit
from tests.tiny import write_tokenizer


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


@pytest.mark.parametrize(
    "content", ["", "{", b"\xff", "[" * 100_000, '{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 1}}', "9" * 5000]
)
def test_json_that_two_readers_could_read_differently_or_not_at_all(tmp_path, content):
    with pytest.raises(ValueError):
        foreign.read_json(written(tmp_path / "a.json", content))


def test_a_tilde_is_a_home_or_a_character(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert foreign.expanded("~/a") == tmp_path / "a" and foreign.expanded("~no body.jpg") == Path("~no body.jpg")


# --- YAML


def test_yaml_that_people_write_is_left_as_it_is(tmp_path):
    text = "a: &it {b: [1, 2.5, null, true], c: 'x'}\nd: *it\ne: {<<: *it, f: !!str 3}\n# é\n"
    assert foreign.read_yaml(written(tmp_path / "a.yaml", text)) == text
    for path in (ROOT / "config.yaml", *(ROOT / "preset").glob("*.yaml")):
        assert foreign.read_yaml(path) == path.read_text(encoding="utf-8")


LAUGHS = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('!!python/object/apply:os.system ["true"]', "the YAML tag"),
        ('a: !!python/object/apply:pathlib.PosixPath ["/etc"]', "the YAML tag"),
        ("a: !!set {b}", "the YAML tag"),
        ("a: !mine 3", "the YAML tag"),
        ("a: &a [*a]", "refers to itself"),
        ("&a {b: *a}", "refers to itself"),
        (LAUGHS, "more values"),
        ("[" * 50_000, "or deeper ones"),
        ("".join(f"k{i}: 1\n" for i in range(20_000)), "more values"),
    ],
    ids=lambda text: text[:20],
)
def test_yaml_that_does_more_than_give_values(tmp_path, text, reason):
    with time_limit(10), pytest.raises(Refused, match=reason):
        foreign.read_yaml(written(tmp_path / "a.yaml", text))


def test_yaml_of_any_size(tmp_path):
    with pytest.raises(OSError, match="the limit is"):
        foreign.read_yaml(written(tmp_path / "a.yaml", "a: " + "x" * foreign.LARGEST_YAML))
    with pytest.raises(ValueError, match="flow sequence"):
        foreign.read_yaml(written(tmp_path / "a.yaml", "a: [1"))


@pytest.mark.parametrize("text", ["a: [1, [2, {b: 3}]]", "a: &x {b: 1, c: [2, 3]}\nd: [*x, *x]\ne: *x"])
def test_the_values_are_counted_as_they_will_be_written_out(text):
    def count(value: object) -> int:
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + sum(map(count, items)) + (len(value) if isinstance(value, dict) else 0)

    assert [*foreign._sizes(text)][-1] == (count(yaml.safe_load(text)), 1)


# --- weights


def test_an_archive_that_unfolds_is_refused_and_one_of_torch_is_not(tmp_path):
    plain, packed = tmp_path / "plain.pt", tmp_path / "packed.pt"
    torch.save({"a": torch.zeros(1 << 20)}, plain)
    foreign.require_no_bomb(plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert torch.load(packed, weights_only=True)["a"].numel() == 1 << 20, "torch itself unfolds it"
    with pytest.raises(Refused, match="compressed"):
        foreign.require_no_bomb(packed)
    with pytest.raises(Refused, match="damaged archive"):
        foreign.require_no_bomb(written(tmp_path / "cut.pt", plain.read_bytes()[:5000]))
    foreign.require_no_bomb(written(tmp_path / "pickle.pt", b"\x80\x02}."))  # no archive: for torch to refuse


# --- configurations of networks


@pytest.mark.parametrize(
    "text_cfg",
    [
        {"hf_model_name": "evil/repository"},
        {"tokenizer_kwargs": {"trust_remote_code": True}},
        {"tokenizer_kwargs": ["trust_remote_code"]},
        {"tokenizer_kwargs": {"clean": "lower", "code_revision": "x"}},
        {"layers": 10**9},
        {"heads": -1},
        {"width": float("nan")},
        "text",
    ],
    ids=str,
)
def test_a_clip_that_names_more_than_itself(text_cfg):
    with pytest.raises(Refused, match=r"text_cfg|beyond every network"):
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


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> dict:
    folder = write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    from data.text import load_tokenizer

    return json.loads(load_tokenizer(str(folder)).backend_tokenizer.to_str())


LONG = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 30}
REGEX = {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [LONG] * 8}},
        {"normalizer": {"type": "Sequence", "x": [], "normalizers": [LONG]}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}] * 100}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "//8="}},
        {"normalizer": {"type": ["NFC"]}},
        {"pre_tokenizer": REGEX},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, REGEX]}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"decoder": {"type": "Sequence", "decoders": [LONG] * 8}},
        {"padding": {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_id": 0}},
        {"truncation": {"max_length": 1, "stride": 5, "strategy": "LongestFirst", "direction": "Right"}},
        {"added_tokens": [{"id": 4_000_000_000, "content": "x"}]},
        {"added_tokens": [None]},
        {"added_tokens": {"id": 0}},
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 7}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": [0]}, "merges": []}},
        {"model": {"type": "BPE", "vocab": 3, "merges": []}},
        {"model": None},
    ],
    ids=lambda change: str(change)[:50],
)
def test_a_tokenizer_that_could_take_for_ever(tmp_path, tokenizer, change):
    foreign.require_plain_tokenizer(written(tmp_path / "t.json", json.dumps(tokenizer)))
    with pytest.raises(Refused):
        foreign.require_plain_tokenizer(written(tmp_path / "t.json", json.dumps(tokenizer | change)))


def test_a_panic_of_the_library_becomes_a_sentence(tokenizer):
    panics = Tokenizer.from_str(json.dumps(tokenizer | {"pre_tokenizer": REGEX}))
    with pytest.raises(Refused, match="its library fails"), foreign.panics_refused():
        panics.encode("a" * 40)
    with pytest.raises(KeyboardInterrupt), foreign.panics_refused():
        raise KeyboardInterrupt
