"""GPT-2 with cross-attention: its blocks, keys and values, checkpointing, and loading of files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, GPT2Config, GPT2LMHeadModel

from common.errors import UserError
from model.language import LanguageModel
from model.weights.causal_lm import build_causal_lm
from model.weights.gpt2 import build_gpt2
from tests.helpers.tiny import GPT2, go_offline, write_gpt2
from tests.model.test_kv_cache import in_pieces

XATTN = {"dim_head": 8, "heads": 2, "ff_mult": 1, "activation": "gelu", "gate_init": 0.0}


def gpt2(**changes) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return build_gpt2(pretrained_name=None, config={**GPT2, **changes}, vocab_size=50, eos_id=49).eval()


def language(*, freq: int = 1, layers: int = 3, gates: float = 0.0, xattn: bool = True) -> LanguageModel:
    settings = {**XATTN, "freq": freq} if xattn else None
    model = LanguageModel(gpt2(n_layer=layers), pretrained=False, xattn=settings, dim_visual=12).eval()
    for gated in model.cross_attention:
        torch.nn.init.constant_(gated.alpha_attn, gates)
        torch.nn.init.constant_(gated.alpha_ffw, gates)
    return model


@torch.no_grad()
@pytest.mark.parametrize("gate_init", [0.0, 1.0])
def test_gpt2_starts_unchanged_and_outputs_learn_at_once_behind_open_gates(gate_init):
    model = LanguageModel(gpt2(), pretrained=True, xattn={**XATTN, "gate_init": gate_init}, dim_visual=12).eval()
    embeddings = model.embed(torch.tensor([[1, 2, 3]]))
    latents = torch.randn(1, 4, 12)
    torch.testing.assert_close(model(embeddings, visual=model.keys_values(latents)), model(embeddings))
    with torch.enable_grad():
        model(embeddings, visual=model.keys_values(latents))[..., 0].sum().backward()
    for gated in model.cross_attention:
        assert bool(gated.attn.to_out.weight.grad.abs().sum() > 0) == bool(gate_init)


@pytest.mark.parametrize(("freq", "where"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3]), (9, [0])])
def test_cross_attention_is_in_front_of_every_freqth_block(freq, where):
    model = language(freq=freq, layers=5)
    assert [i for i, block in enumerate(model.blocks) if block.xattn_block is not None] == where
    assert len(model.cross_attention) == len(where)
    keys_values = model.keys_values(torch.randn(2, 4, 12))
    assert [i for i, kv in enumerate(keys_values) if kv is not None] == where
    assert all(part.shape == (2, 2, 4, 8) for i in where for part in keys_values[i])


@torch.no_grad()
def test_each_block_uses_its_own_keys_and_values():
    model = language(freq=2, gates=0.8)
    visual, embeddings = model.keys_values(torch.randn(1, 4, 12)), model.embed(torch.tensor([[1, 2, 3]]))
    seen = model(embeddings, visual=visual)
    for i in (0, 2):
        changed = [kv if j != i else (kv[0], -kv[1]) for j, kv in enumerate(visual)]
        assert not torch.allclose(seen, model(embeddings, visual=changed), atol=1e-4), i


@torch.no_grad()
def test_keys_and_values_are_computed_once_per_image():
    model = language(gates=0.8)
    calls = []
    for gated in model.cross_attention:
        gated.attn.to_kv.register_forward_hook(lambda *_: calls.append(1))
    visual = model.keys_values(torch.randn(1, 4, 12))
    in_pieces(model, torch.arange(5)[None], [1] * 5, visual=visual)
    assert len(calls) == len(model.cross_attention)


@torch.no_grad()
def test_cached_text_equals_one_pass():
    model = language(gates=0.8)
    visual, ids = model.keys_values(torch.randn(2, 4, 12)), torch.randint(0, 50, (2, 7))
    whole = model(model.embed(ids), visual=visual)
    torch.testing.assert_close(in_pieces(model, ids, [3, 1, 3], visual=visual), whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_no_cross_attention_gives_plain_gpt2():
    model, ids = language(xattn=False), torch.randint(0, 50, (2, 7))
    assert model.cross_attention == [] and model.keys_values(torch.randn(2, 4, 12)) == [None] * 3
    torch.testing.assert_close(model.logits(model(model.embed(ids))), gpt2()(input_ids=ids).logits)


def test_folder_in_transformers_layout_loads(tmp_path):
    folder = write_gpt2(tmp_path / "gpt2", vocab_size=50)
    model = build_gpt2(pretrained_name=str(folder), config=None, vocab_size=50, eos_id=49)
    weights = load_file(folder / "model.safetensors")
    assert weights and all(torch.equal(tensor, weights[k]) for k, tensor in model.state_dict().items() if k in weights)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert (model.config.n_embd, model.config.n_layer) == (32, 3)


def test_vocabulary_grows_to_the_tokenizer_but_does_not_shrink(tmp_path):
    folder = write_gpt2(tmp_path / "gpt2", vocab_size=50)
    words = load_file(folder / "model.safetensors")["transformer.wte.weight"]
    wider = build_causal_lm(pretrained_name=str(folder), config=None, vocab_size=57, eos_id=49)
    assert wider.transformer.wte.weight.shape == (57, 32) == wider.lm_head.weight.shape
    assert torch.equal(wider.transformer.wte.weight[:50], words)
    assert wider.lm_head.weight is wider.transformer.wte.weight
    same = build_causal_lm(pretrained_name=str(folder), config=None, vocab_size=30, eos_id=29)
    assert torch.equal(same.transformer.wte.weight, words)


def test_a_random_gpt2_has_the_tokenizers_vocabulary():
    model = gpt2()
    assert model.config.vocab_size == 50 and model.config.eos_token_id == model.config.bos_token_id == 49
    assert model.lm_head.weight is model.transformer.wte.weight


def test_error_for_an_unknown_setting_suggests_the_nearest():
    with pytest.raises(UserError, match=r"model\.text\.config: .* no setting 'n_layers'; did you mean 'n_layer'"):
        gpt2(n_layers=2)


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match=r"n_embd=32 is not a multiple of n_head=5"):
        gpt2(n_head=5)


@pytest.mark.parametrize(
    "change",
    [{"n_head": 0}, {"n_embd": "wide"}, {"activation_function": "gellu"}, {"attn_pdrop": 2.0}, {"n_positions": -1}],
    ids=str,
)
def test_error_for_an_invalid_gpt2_names_the_section(change):
    with pytest.raises(UserError, match=r"model\.text\.config: "):
        gpt2(**change)


def test_offline_error_names_files_and_key(tmp_path, monkeypatch):
    go_offline(monkeypatch, tmp_path)
    with pytest.raises(UserError) as error:
        build_gpt2(pretrained_name="distilgpt2", config=None, vocab_size=50257, eos_id=50256)
    message = str(error.value)
    assert "config.json and model.safetensors of https://huggingface.co/distilgpt2" in message
    assert "model.text.pretrained_name=THAT_FOLDER" in message and "\n" not in message


@pytest.mark.parametrize("fault", ["empty", "no weights", "broken config", "broken weights", "another model"])
def test_error_names_the_folder_that_cannot_be_loaded(tmp_path, fault):
    folder = tmp_path / "gpt2"
    folder.mkdir()
    if fault != "empty":
        write_gpt2(folder, vocab_size=50)
    if fault == "no weights":
        (folder / "model.safetensors").unlink()
    elif fault == "broken config":
        (folder / "config.json").write_text("{")
    elif fault == "broken weights":
        (folder / "model.safetensors").write_bytes(b"nothing")
    elif fault == "another model":
        BertConfig(hidden_size=32, num_attention_heads=2).save_pretrained(str(folder))
    with pytest.raises(UserError, match=rf"from the folder {folder}"):
        build_gpt2(pretrained_name=str(folder), config=None, vocab_size=50, eos_id=49)


@pytest.mark.parametrize("fault", ["a block is missing", "another width"])
def test_missing_or_misshapen_weights_are_refused(tmp_path, fault):
    folder = write_gpt2(tmp_path / "gpt2", vocab_size=50)
    if fault == "another width":
        config = json.loads((folder / "config.json").read_text()) | {"n_embd": 64}
        (folder / "config.json").write_text(json.dumps(config))
    else:
        weights = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in weights.items() if ".h.1." not in name}
        assert len(kept) < len(weights)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"from the folder {folder}"):
        build_gpt2(pretrained_name=str(folder), config=None, vocab_size=50, eos_id=49)


@torch.no_grad()
def test_inner_cross_attention_equals_that_of_transformers():
    """Against transformers' GPT-2 with add_cross_attention, whose parameters have the same names."""
    torch.manual_seed(3)
    model = LanguageModel(gpt2(), pretrained=False, xattn=None, dim_visual=32, inside=True).eval()
    theirs = GPT2LMHeadModel(GPT2Config(**GPT2, vocab_size=50, add_cross_attention=True)).eval()
    theirs.load_state_dict({name.replace(".lm_block.", "."): w for name, w in model.lm.state_dict().items()})
    ids, tokens = torch.randint(0, 50, (2, 7)), torch.randn(2, 5, 32)
    visual = model.keys_values(tokens)
    ours = model.logits(model(model.embed(ids), visual=visual))
    torch.testing.assert_close(ours, theirs(input_ids=ids, encoder_hidden_states=tokens).logits)
    assert not torch.allclose(ours, model.logits(model(model.embed(ids))), atol=1e-3), (
        "the tokens must affect the logits"
    )
    pieces = in_pieces(model, ids, [4, 1, 2], visual=visual)
    torch.testing.assert_close(model.logits(pieces), ours, rtol=1e-4, atol=1e-5)


def test_inner_cross_attention_needs_tokens_of_gpt2s_width():
    with pytest.raises(UserError, match="12 and GPT-2 32"):
        LanguageModel(gpt2(), pretrained=False, xattn=None, dim_visual=12, inside=True)


@torch.no_grad()
def test_entry_gets_embeddings_with_positions():
    model, ids = language(), torch.randint(0, 50, (2, 7))
    entered = []
    model(model.embed(ids), entry=lambda hidden: entered.append(hidden) or hidden)
    positions = model.lm.transformer.wpe.weight[:7]
    torch.testing.assert_close(entered, [model.embed(ids) + positions])


@pytest.mark.parametrize("frozen", [True, False])
def test_checkpointing_gives_equal_gradients_with_less_memory(frozen):
    """With dropout, whose random numbers are reproduced by the second forward pass."""
    found, kept = [], []
    for recomputed in (False, True):
        torch.manual_seed(1)
        model = language(gates=0.8).train()
        model.lm.requires_grad_(not frozen)
        for part in model.cross_attention:
            part.requires_grad_(True)
        if recomputed:
            model.recompute()
        visual = model.keys_values(torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(3)))
        ids = torch.arange(40).view(2, 20)
        sizes: list[int] = []
        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # noqa: B023
            loss = model(model.embed(ids), visual=visual).square().sum()
        loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        kept.append(sum(sizes))
    assert found[0].keys() == found[1].keys() and len(found[0]) > 10
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert kept[1] < 0.5 * kept[0]


@torch.no_grad()
def test_cached_reading_works_with_checkpointing():
    model = language(gates=0.8)
    visual, ids = model.keys_values(torch.randn(2, 4, 12)), torch.randint(0, 50, (2, 7))
    whole = model(model.embed(ids), visual=visual)
    model.recompute()
    with torch.enable_grad():
        pieces = in_pieces(model, ids, [3, 4], visual=visual).detach()
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-5)
