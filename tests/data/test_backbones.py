"""The demo's frozen backbones: what is shipped is what the command makes, and reaches what it states."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

from common.errors import UserError
from common.reading import BACKBONES, ROOT, expand_user
from data.demo.backbones import check_backbones, write_checksums
from data.demo.pretrain import paint_pictures, pretrain_clip, pretrain_gpt2, sentences, zero_shot
from data.tokenizer import load_tokenizer

SHIPPED = ROOT / BACKBONES
WEIGHTS = {"clip": "open_clip_model.safetensors", "gpt2": "model.safetensors"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Both backbones from a pretraining of a few steps."""
    root = tmp_path_factory.mktemp("backbones")
    for name in WEIGHTS:
        (root / name).mkdir()
    pretrain_clip(root / "clip", seed=1, pictures=128, epochs=1, held_out=16)
    pretrain_gpt2(root / "gpt2", seed=1, texts=200, epochs=1, held_out=50)
    return root


@pytest.mark.parametrize("name", WEIGHTS)
def test_command_makes_the_shipped_files(made, name):
    files = {path.name for path in (SHIPPED / name).iterdir()} - {"reached.json"}
    assert {path.name for path in (made / name).iterdir()} == files
    shipped, short = (load_file(root / name / WEIGHTS[name]) for root in (SHIPPED, made))
    assert {key: (t.shape, t.dtype) for key, t in short.items()} == {
        key: (t.shape, t.dtype) for key, t in shipped.items()
    }
    for config in {"config.json", "open_clip_config.json"} & files:
        written, kept = (json.loads((root / name / config).read_text()) for root in (made, SHIPPED))
        assert {**written, "transformers_version": ""} == {**kept, "transformers_version": ""}


def test_backbones_are_small_and_unchanged():
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 8e6
    check_backbones(*(str(BACKBONES / name) for name in WEIGHTS))


def test_changed_or_missing_file_is_named_with_the_command(monkeypatch, tmp_path):
    copy = shutil.copytree(SHIPPED, tmp_path / BACKBONES)
    monkeypatch.chdir(tmp_path)
    (copy / "gpt2/model.safetensors").write_bytes(b"other")
    (copy / "clip/open_clip_config.json").unlink()
    for name, file in (("gpt2", "model"), ("clip", "open_clip_config")):
        with pytest.raises(
            UserError, match=rf"{file}\S* is missing or was changed: .*data\.demo\.pretrain {name} --out"
        ):
            check_backbones(str(BACKBONES / name))
    write_checksums(copy)
    check_backbones(*(str(BACKBONES / name) for name in WEIGHTS))
    check_backbones("gpt2", None, "elsewhere/clip")


def test_backbones_are_found_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert expand_user(str(BACKBONES / "clip")) == SHIPPED / "clip"
    assert expand_user("data/demo") == Path("data/demo")


def test_clip_names_what_unseen_pictures_show():
    folder = f"local-dir:{SHIPPED / 'clip'}"
    clip, tokenize = open_clip.create_model(folder).eval(), open_clip.get_tokenizer(folder)
    accuracy = zero_shot(clip, tokenize, *paint_pictures(100, seed=12345))
    stated = json.loads((SHIPPED / "clip/reached.json").read_text())
    assert accuracy["subject"] > 0.9 and stated["subject"] > 0.95
    assert all(accuracy[kind] > stated[kind] - 0.1 for kind in stated)


@torch.no_grad()
def test_gpt2_predicts_unseen_sentences():
    model = GPT2LMHeadModel.from_pretrained(SHIPPED / "gpt2", dtype=torch.float32).eval()
    tokenizer = load_tokenizer(str(SHIPPED / "gpt2"))
    losses = []
    for text in sentences(50, seed=12345):
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text).input_ids]])
        losses.append(model(ids, labels=ids).loss)
    assert (
        torch.stack(losses).mean().exp() < 1.2 * json.loads((SHIPPED / "gpt2/reached.json").read_text())["perplexity"]
    )
