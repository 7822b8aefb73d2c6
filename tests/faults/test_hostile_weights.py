"""Malicious files next to weights: nothing is downloaded or run, and damage is reported with a clear message."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from model.vision import build_vision
from model.weights.clip import create_tokenizer
from model.weights.gpt2 import build_gpt2
from model.weights.plain import read_state, read_torch
from tests.helpers.hostile import confined, refusal
from tests.helpers.tiny import GPT2, VISION, go_offline, write_gpt2, write_open_clip
from trainer.metrics.clipscore import Clip
from trainer.text_emotion.text_classifier import load_classifier


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path) -> None:
    go_offline(monkeypatch, tmp_path / "hub")


def change(path: Path, **values: object) -> None:
    """Change keys of the outermost object of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def read_gpt2(folder: Path) -> nn.Module:
    return build_gpt2(pretrained_name=str(folder), config=None, vocab_size=300, eos_id=0)


# --- CLIP -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clip(tmp_path) -> Path:
    return write_open_clip(tmp_path / "clip")


def change_clip(folder: Path, part: str, **values: object) -> None:
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_cfg"][part] |= values
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize("settings", [{"trust_remote_code": True}, {}], ids=["set", "not set"])
def test_no_code_next_to_clip_is_run(tmp_path, clip, settings):
    """open_clip would pass the setting on to transformers, which would run the file."""
    marker = tmp_path / "marker"
    change_clip(clip, "text_cfg", hf_tokenizer_name="x", tokenizer_kwargs=settings)
    (clip / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}}')
    (clip / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass Evil: pass\n")
    with confined(clip) as noticed:
        refusal(lambda: Clip(str(clip), None, section="--clip"), clip)
    assert not marker.exists() and not noticed
    if settings:
        refusal(lambda: build_vision(pretrained_name=str(clip)), "nothing in it was run")


@pytest.mark.parametrize(("part", "key"), [("text_cfg", "hf_model_name"), ("vision_cfg", "timm_model_name")])
@pytest.mark.parametrize("spelling", ["{}", "local-dir:{}"])
def test_references_of_clip_to_other_repositories_are_refused(clip, part, key, spelling):
    change_clip(clip, part, **{key: "hf-hub:evil/repository"})
    refusal(lambda: build_vision(pretrained_name=spelling.format(clip)), key, "nothing in it was run")


@pytest.mark.parametrize(("named", "refused"), [("evil/other", True), ("../other", True), ("evil/x", False)])
def test_a_tokenizer_from_another_repository_is_refused(tmp_path, clip, named, refused):
    """A repository in the hub's cache; its tokenizer is missing there in each case."""
    repository = tmp_path / "hub" / "models--evil--x"
    change_clip(clip, "text_cfg", hf_tokenizer_name=named)
    (repository / "snapshots").mkdir(parents=True)
    clip.rename(repository / "snapshots" / "0")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0")
    message = refusal(lambda: create_tokenizer("hf-hub:evil/x"), "the tokenizer of hf-hub:evil/x")
    assert (f"another repository, {named!r}" in message) is refused


# --- GPT-2 ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpt2(tmp_path) -> Path:
    return write_gpt2(tmp_path / "gpt2", vocab_size=300)


NAMED = {
    "attn_implementation": "evil/kernel",
    "_attn_implementation": "evil/kernel",
    "quantization_config": {"quant_method": "gptq", "bits": 4},
    "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
    "configuration_files": ["/dev/zero"],
    "dtype": "load",
    "use_kernels": True,
}


@pytest.mark.parametrize("key", NAMED)
def test_gpt2_cannot_select_kernels_or_other_libraries(gpt2, key):
    whole = read_gpt2(gpt2).state_dict()
    change(gpt2 / "config.json", **{key: NAMED[key]})
    with confined(gpt2) as noticed:
        lm = read_gpt2(gpt2)
    assert lm.config._attn_implementation == "sdpa" and not hasattr(lm.config, "quantization_config") and not noticed
    assert all(torch.equal(value, whole[name]) for name, value in lm.state_dict().items())


def test_an_adapter_next_to_gpt2_is_ignored(gpt2):
    adapter = {"base_model_name_or_path": "evil/repository", "peft_type": "LORA"}
    (gpt2 / "adapter_config.json").write_text(json.dumps(adapter))
    (gpt2 / "generation_config.json").write_text('{"custom_generate": "evil/repository"}')
    assert read_gpt2(gpt2).config.n_embd == GPT2["n_embd"]


@pytest.mark.parametrize(
    "size",
    [{"n_layer": 10**9}, {"n_layer": 10**40}, {"n_layer": 900}, {"n_embd": 10**30}, {"n_embd": 1 << 16},
     {"n_positions": 1 << 16}, {"n_inner": 1 << 16}, {"vocab_size": 1 << 16}, {"n_embd": -32}, {"n_head": 0}],
    ids=str,
)  # fmt: skip
def test_impossible_sizes_of_gpt2_are_refused(gpt2, size):
    change(gpt2 / "config.json", **size)
    refusal(lambda: read_gpt2(gpt2), gpt2, seconds=60)


def shard(folder: Path, name: str) -> None:
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(folder / "model.safetensors"), name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def test_shards_must_be_next_to_their_index(gpt2, tmp_path):
    whole = read_gpt2(gpt2).state_dict()
    save_file(load_file(gpt2 / "model.safetensors"), tmp_path / "outside.safetensors")
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), "", "/dev/zero", "..", "a\0b"):
        shard(gpt2, name)
        (gpt2 / "model.safetensors").rename(gpt2 / "x-1.safetensors")
        refusal(lambda: read_gpt2(gpt2), "no file of weights next to it")
        (gpt2 / "x-1.safetensors").rename(gpt2 / "model.safetensors")
    shard(gpt2, "x-1.safetensors")
    (gpt2 / "model.safetensors").rename(gpt2 / "x-1.safetensors")
    assert all(torch.equal(value, whole[name]) for name, value in read_gpt2(gpt2).state_dict().items())


# --- a text→emotion classifier ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["embedding_dim", "word_dim", "hidden_dim", "head_dim", "vocabulary", "classes"])
@pytest.mark.parametrize("value", [10**40, -1])
def test_impossible_sizes_of_a_classifier_are_refused(tmp_path, size, value):
    network = {"name": "lstm", "vocabulary": 2, "classes": 9, "embedding_dim": 4, "word_dim": 4, "hidden_dim": 4}
    settings = {"network": network | {"head_dim": 4, size: value}}
    (tmp_path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (tmp_path / "vocabulary.json").write_text('["<pad>", "<unk>"]', encoding="utf-8")
    refusal(
        lambda: load_classifier(tmp_path),
        tmp_path / "settings.json",
        "does not describe a network",
        seconds=60,
    )


# --- pickles ----------------------------------------------------------------------------------------------------------


class Disguised(dict):
    """Pickled as an OrderedDict with attributes that hide its methods."""

    def __reduce__(self):
        from collections import OrderedDict

        return OrderedDict, (), {"items": 5, "get": 5, "keys": 5}


def test_attributes_cannot_hide_methods_of_a_dict(tmp_path):
    torch.save(Disguised(), tmp_path / "x.bin")
    assert read_torch(tmp_path / "x.bin") == {} and read_state(tmp_path / "x.bin") == {}


def test_a_compressed_archive_is_refused(tmp_path, gpt2):
    torch.save({"a": torch.zeros(1 << 18)}, tmp_path / "plain.pt")
    (gpt2 / "model.safetensors").unlink()
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as source,
        zipfile.ZipFile(gpt2 / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    refusal(lambda: read_gpt2(gpt2), "compressed")


# --- pipes and devices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_pipes_and_devices_are_refused(gpt2, name):
    (gpt2 / name).unlink()
    os.mkfifo(gpt2 / name)
    refusal(lambda: read_gpt2(gpt2), seconds=30)
    (gpt2 / name).unlink()
    (gpt2 / name).symlink_to("/dev/zero")
    refusal(lambda: read_gpt2(gpt2), seconds=30)


def test_undamaged_folders_are_read(clip, gpt2):
    assert build_vision(pretrained_name=str(clip)).dim == VISION["width"] and read_gpt2(gpt2).config.n_layer == 3
