"""Initialize SEVLM's decoder from NLX-GPT."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from common.errors import UserError
from model.build import SpecialTokens, build_captioner
from model.language import LanguageModel
from model.weights.gpt2 import build_gpt2
from model.weights.nlxgpt import is_nlxgpt, nlxgpt_error, nlxgpt_settings, nlxgpt_state
from tests.helpers import sevlm_reference as reference
from tests.helpers.tiny import model_config, write_gpt2
from tests.helpers.weight_files import Call

BASE, WIDTH, HEADS = 60, 32, 4
VOCABULARY = BASE + 4
ADDED = {"<pad>": 60, "<question>": 61, "<answer>": 62, "<explanation>": 63}


def foreign_model() -> GPT2LMHeadModel:
    """Return transformers' GPT-2 with cross-attention, of which NLX-GPT's code is a copy."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_head=HEADS, n_embd=WIDTH, n_positions=20, vocab_size=VOCABULARY, add_cross_attention=True,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        noise = 0.2 * torch.randn(parameter.shape)
        parameter.data = 1 + noise if "ln_" in name and name.endswith("weight") else noise
    return model


@pytest.fixture
def folder(tmp_path) -> Path:
    """pretrain_model_14 as NLX-GPT writes it, with the buffers of older versions of transformers."""
    model = foreign_model()
    folder = tmp_path / "pretrain_model_14"
    folder.mkdir()
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("lm_head.weight")}
    torch.save(reference.with_buffers(state), folder / "pytorch_model.bin")
    config = {"model_type": "gpt2", "n_head": HEADS, "add_cross_attention": True, "img_size": 224, "max_seq_len": 70}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_tokens(folder: Path, added: dict[str, int], name: str = "pretrain_tokenizer_0") -> None:
    (folder.parent / name).mkdir()
    (folder.parent / name / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")


def language_of(folder: Path) -> LanguageModel:
    lm = build_gpt2(pretrained_name=None, config=nlxgpt_settings(folder), vocab_size=VOCABULARY, eos_id=0)
    language = LanguageModel(lm, pretrained=True, xattn=None, dim_visual=WIDTH, inside=True)
    language.load_state_dict(nlxgpt_state(folder, vocab_size=VOCABULARY), strict=False)
    return language.eval()


def test_logits_equal_transformers(folder):
    model, language = foreign_model(), language_of(folder)
    ids = torch.randint(0, VOCABULARY, (3, 9))
    images = torch.randn(3, 5, WIDTH)
    with torch.no_grad():
        wanted = model(input_ids=ids, encoder_hidden_states=images).logits
        hidden = language(language.embed(ids), visual=language.keys_values(images))
        assert torch.allclose(language.logits(hidden), wanted, atol=1e-4)
        without = language(language.embed(ids), visual=language.keys_values(torch.zeros_like(images)))
        assert not torch.allclose(hidden, without, atol=1e-2)  # the image matters


def test_every_parameter_is_loaded(folder):
    state = nlxgpt_state(folder, vocab_size=VOCABULARY)
    names = {name for name, _ in language_of(folder).named_parameters()}
    assert set(state) == names


@pytest.mark.parametrize("place", ["pretrain_tokenizer_0", "nle_gpt2_tokenizer_0", "pretrain_model_14"])
def test_the_added_tokens_are_reordered(folder, place):
    rows = torch.load(folder / "pytorch_model.bin", weights_only=True)["transformer.wte.weight"]
    assert torch.equal(nlxgpt_state(folder, vocab_size=VOCABULARY)["lm.transformer.wte.weight"], rows)
    added = {"<explanation>": 60, "<answer>": 61, "<pad>": 62, "<question>": 63}
    if place == folder.name:
        (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    else:
        write_tokens(folder, added, place)
    found = nlxgpt_state(folder, vocab_size=VOCABULARY)["lm.transformer.wte.weight"]
    assert torch.equal(found[:BASE], rows[:BASE])
    assert torch.equal(found[BASE:], rows[[62, 63, 61, 60]])  # <pad> <question> <answer> <explanation>


def test_other_tokens_are_refused(folder):
    write_tokens(folder, {**ADDED, "<objects>": 64})
    with pytest.raises(
        UserError, match=r"added_tokens\.json: <pad>, <question>, .* are not the last four of 64 tokens"
    ):
        nlxgpt_state(folder, vocab_size=VOCABULARY)
    with pytest.raises(UserError, match=r"has 64 tokens, four of them its own, but dataset\.tokenizer has 50 with"):
        nlxgpt_state(folder, vocab_size=50)


def test_nlxgpt_is_recognized_by_its_configuration(folder, tmp_path):
    assert is_nlxgpt(folder) and is_nlxgpt(str(folder))
    assert not is_nlxgpt("gpt2") and not is_nlxgpt(tmp_path)
    assert not is_nlxgpt(write_gpt2(tmp_path / "gpt2", vocab_size=50))
    (folder / "config.json").write_text("{", encoding="utf-8")
    assert not is_nlxgpt(folder)
    assert "only preset=sevlm" in str(nlxgpt_error(folder))


def test_settings_follow_from_the_weights(folder):
    settings = nlxgpt_settings(folder)
    assert {key: settings[key] for key in ("n_layer", "n_embd", "n_head", "n_positions", "n_inner")} == {
        "n_layer": 2, "n_embd": WIDTH, "n_head": HEADS, "n_positions": 20, "n_inner": 4 * WIDTH,
    }  # fmt: skip


def change(folder: Path, **changes) -> None:
    state = torch.load(folder / "pytorch_model.bin", weights_only=True) | changes
    torch.save({name: value for name, value in state.items() if value is not None}, folder / "pytorch_model.bin")


CHANGES = {
    "missing": ({"transformer.h.1.crossattention.q_attn.bias": None}, "crossattention.q_attn.bias is missing"),
    "shape": ({"transformer.ln_f.bias": torch.zeros(3)}, "transformer.ln_f.bias is 3 instead of 32"),
    "left over": ({"object_embedding.weight": torch.zeros(3)}, "holds object_embedding.weight, which is no part"),
    "SEVLM": ({"transformer.VAD_linear.weight": torch.zeros(3)}, "holds SEVLM itself, not NLX-GPT"),
    "no words": ({"transformer.wte.weight": None}, "transformer.wte.weight is missing"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_wrong_weights_are_refused(folder, case):
    changes, message = CHANGES[case]
    change(folder, **changes)
    with pytest.raises(UserError, match=message):
        nlxgpt_state(folder, vocab_size=VOCABULARY)


def test_a_configuration_that_does_not_match_is_refused(folder):
    (folder / "config.json").write_text('{"add_cross_attention": true, "n_head": 7}', encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json: n_head=7 does not divide the width 32"):
        nlxgpt_settings(folder)


def test_missing_damaged_and_malicious_files_are_refused(folder):
    path, marker = folder / "pytorch_model.bin", folder.parent / "marker"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"pytorch_model\.bin cannot be read"):
        nlxgpt_state(folder, vocab_size=VOCABULARY)
    torch.save({"transformer.wte.weight": Call(os.system, f"touch {marker}")}, path)
    with pytest.raises(UserError, match="is refused, and nothing in it was run"):
        nlxgpt_settings(folder)
    assert not marker.exists()
    path.unlink()
    with pytest.raises(UserError, match=r"pytorch_model\.bin is missing"):
        nlxgpt_settings(folder)
    shutil.rmtree(folder)
    assert not is_nlxgpt(folder)


def build(folder: Path, **changes):
    config = model_config(text__pretrained_name=str(folder), text__trainable=True, vision__tokens="patches", **changes)
    special = SpecialTokens(pad=60, segments=(62, 63))
    return build_captioner(config, vocab_size=VOCABULARY, eos_id=0, special=special)


def test_sevlm_can_start_from_nlxgpt(folder):
    built = build(folder, architecture="sevlm").language
    expected = language_of(folder).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in built.state_dict().items())
    assert all(parameter.requires_grad for parameter in built.parameters())


def test_another_architecture_cannot_start_from_nlxgpt(folder):
    with pytest.raises(UserError, match="preset=sevlm"):
        build(folder)
