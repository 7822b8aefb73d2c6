"""Loading of any causal language model: folders, GGUF files, and what is refused before anything is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from common.errors import UserError
from model.language import LanguageModel
from model.weights.causal_lm import build_causal_lm, find_blocks
from tests.helpers.tiny import go_offline
from tests.model.test_language_families import FAMILIES, LLAMA


def build(name: str | Path | None = None, config: dict | None = None, *, vocab_size: int = 60, **options):
    torch.manual_seed(1)
    return build_causal_lm(
        pretrained_name=None if name is None else str(name), config=config, vocab_size=vocab_size, eos_id=0, **options
    )


def write_folder(folder: Path, family: str = "llama", **changes) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{"model_type": "gpt2", **FAMILIES[family], "vocab_size": 60, **changes})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["llama", "qwen3", "opt", "bloom", "gpt2"])
@torch.no_grad()
def test_folder_loads_as_transformers_loads_it(tmp_path, family):
    folder, ids = write_folder(tmp_path / "lm", family), torch.arange(8)[None]
    ours, theirs = build(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert type(ours) is type(theirs)
    torch.testing.assert_close(ours.eval()(ids).logits, theirs.eval()(ids).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_get_the_mean_row(tmp_path, tied):
    folder = write_folder(tmp_path / "lm", tie_word_embeddings=tied)
    plain, wider = build(folder), build(folder, vocab_size=63)
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        rows, before = getattr(wider, layer)().weight, getattr(plain, layer)().weight
        assert torch.equal(rows[:60], before)
        torch.testing.assert_close(rows[60:], before.mean(dim=0).expand(3, -1))


def test_new_vocabulary_replaces_the_rows_and_leaves_the_blocks(tmp_path):
    folder = write_folder(tmp_path / "lm")
    plain, other = build(folder), build(folder, vocab_size=40, new_vocabulary=True)
    assert other.get_input_embeddings().weight.shape == other.get_output_embeddings().weight.shape == (40, 32)
    assert not torch.equal(other.get_input_embeddings().weight, plain.get_input_embeddings().weight[:40])
    own, same = other.state_dict(), {n: t for n, t in plain.state_dict().items() if "layers" in n}
    assert same and all(torch.equal(own[name], tensor) for name, tensor in same.items())


@torch.no_grad()
def test_gguf_file_loads_as_transformers_loads_it(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the optional package gguf is not installed")
    path = write_gguf(gguf, tmp_path / "tiny.gguf", write_folder(tmp_path / "lm"))
    ours, ids = build(path), torch.arange(8)[None]
    folder = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    torch.testing.assert_close(ours.eval()(ids).logits, folder.eval()(ids).logits, rtol=1e-4, atol=1e-4)


def write_gguf(gguf, path: Path, folder: Path, *, architecture: str = "llama") -> Path:
    """Write a Llama in float32 with llama.cpp's names, rotated as its converter does."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    writer, config = gguf.GGUFWriter(str(path), architecture), model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            rows = tensor.view(heads, 2, -1, tensor.shape[1])
            tensor = rows.transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# --- what is refused ------------------------------------------------------------------------------------------------


def test_gguf_of_an_unknown_architecture_is_refused(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the optional package gguf is not installed")
    path = write_gguf(gguf, tmp_path / "odd.gguf", write_folder(tmp_path / "lm"), architecture="oddlm")
    with pytest.raises(UserError, match=r"transformers cannot load a language model from .*odd.gguf .*oddlm"):
        build(path)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "is a bert, not a causal language model"),
        ({"model_type": "t5"}, "is a t5, not a causal language model"),
        ({"model_type": "bart"}, "is a bart, not a causal language model"),
        ({"model_type": "clip"}, "is a clip, not a causal language model"),
        ({"model_type": "mamba"}, "is a mamba, which keeps a state instead of attending to tokens"),
        ({"model_type": "no-such-type"}, "transformers cannot load a language model from"),
    ],
)
def test_folder_of_another_kind_is_refused_before_its_weights_are_read(tmp_path, config, part):
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(UserError, match=part) as caught:
        build(tmp_path)
    assert str(tmp_path) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_model_that_reads_later_tokens_is_refused():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    lm = build(config={"model_type": "bert", **sizes})
    with pytest.raises(UserError, match="BertLMHeadModel reads later tokens too; take a causal language model"):
        LanguageModel(lm, pretrained=False, xattn=None, dim_visual=8)


def test_model_with_capped_logits_is_refused():
    lm = build(config={"model_type": "gemma2", **LLAMA, "head_dim": 16, "final_logit_softcapping": 0.01})
    with pytest.raises(UserError, match="the logits of Gemma2ForCausalLM are not a linear layer of its last state"):
        LanguageModel(lm, pretrained=False, xattn=None, dim_visual=8)


def test_other_width_inside_the_blocks_is_refused():
    lm = build(config={**FAMILIES["opt"], "word_embed_proj_dim": 16})
    with pytest.raises(UserError, match=r"OPTForCausalLM has embeddings of width 16, and \[32.*\] in its first block"):
        LanguageModel(lm, pretrained=False, xattn=None, dim_visual=8)


def test_model_without_a_list_of_blocks_is_refused():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    lm = AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **sizes))
    lm.bert.encoder.layer = torch.nn.Sequential(*lm.bert.encoder.layer)
    with pytest.raises(UserError, match="the blocks of BertForMaskedLM were not found, so cross-attention cannot be"):
        find_blocks(lm)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"model_type": "llama", "n_layers": 3}, "llama has no setting 'n_layers'"),
        ({"model_type": "llamma"}, "transformers cannot build this language model"),
        ({"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}, "model.text.config"),
    ],
)
def test_error_for_invalid_settings_names_the_section(config, part):
    with pytest.raises(UserError, match=part) as caught:
        build(config=config)
    assert "model.text.config" in str(caught.value)


def test_offline_error_names_files_and_key(tmp_path, monkeypatch):
    go_offline(monkeypatch, tmp_path)
    with pytest.raises(
        UserError, match=r"config.json, the tokenizer's files and \*.safetensors of https://hugg"
    ) as caught:
        build("HuggingFaceTB/SmolLM2-135M")
    assert "model.text.pretrained_name=THAT_FOLDER" in str(caught.value)


def test_damaged_weights_are_named(tmp_path):
    folder = write_folder(tmp_path / "lm")
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match=f"transformers cannot load a language model from {folder}"):
        build(folder)


def test_kernels_that_a_folder_names_are_not_used(tmp_path):
    folder = write_folder(tmp_path / "lm")
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stored, "attn_implementation": "someone/kernel"}))
    assert build(folder).config._attn_implementation == "sdpa"


def test_folder_with_an_adapter_is_refused(tmp_path):
    folder = write_folder(tmp_path / "lm")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    with pytest.raises(UserError, match=rf"{folder} holds an adapter of another model \(adapter_config.json\)"):
        build(folder)
