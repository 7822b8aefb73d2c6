"""Any causal language model: tiny random configurations of the real classes of transformers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from common.errors import UserError
from data.vad.align import VadAligner
from model.build import own_state
from model.captioner import Text, Visual
from model.decoding.generation import Decoding, generate
from model.decoding.packed import optimize_for_generation
from model.decoding.scoring import emotion_log_probs
from model.language import LanguageModel
from model.lora import merge_lora
from model.weights.causal_lm import build_causal_lm
from tests.helpers.tiny import make_aligner, make_batch, make_captioner
from tests.model.test_generation import write

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 128}
LLAMA = {**SIZES, "num_key_value_heads": 1, "intermediate_size": 48}
FAMILIES = {
    "gpt2": {"n_layer": 3, "n_head": 2, "n_embd": 32, "n_positions": 128},
    "llama": {"model_type": "llama", **LLAMA},
    "qwen2": {"model_type": "qwen2", **LLAMA},
    "qwen3": {"model_type": "qwen3", **LLAMA, "head_dim": 16},
    "opt": {"model_type": "opt", **SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_neox": {"model_type": "gpt_neox", **SIZES, "intermediate_size": 48},
    "bloom": {"model_type": "bloom", "hidden_size": 32, "n_layer": 3, "n_head": 2},
    "xglm": {"model_type": "xglm", "d_model": 32, "num_layers": 3, "attention_heads": 2, "ffn_dim": 48},
    "phi": {"model_type": "phi", **SIZES, "intermediate_size": 48},  # its output layer has a bias
}
# Large random weights, so that texts differ between pictures.
WIDE = {
    name: {**sizes, "init_std" if name in ("opt", "xglm") else "initializer_range": 0.3}
    for name, sizes in FAMILIES.items()
}
GREEDY = Decoding(strategy="greedy", max_length=10)
BEAM = Decoding(strategy="beam", max_length=10, beam_width=3)


@pytest.fixture(scope="module", params=[*FAMILIES])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def captioner(family, template):
    """All parts on, gates open."""
    return make_captioner(template, gates=0.9, seed=5, text__config=WIDE[family])


@pytest.fixture(scope="module")
def batch(tmp_path_factory, template, captioner):
    return make_batch(tmp_path_factory.mktemp("pictures"), template, captioner, count=5)


@pytest.fixture(scope="module")
def visual(captioner, batch):
    with torch.no_grad():
        return captioner.look(batch.frames, batch.frame_mask)


def plain(settings: dict):
    torch.manual_seed(0)
    lm = build_causal_lm(pretrained_name=None, config=settings, vocab_size=60, eos_id=59).eval()
    if (bias := lm.get_output_embeddings().bias) is not None:
        torch.nn.init.normal_(bias)  # begins as 0
    return lm


@torch.no_grad()
def test_shut_gates_give_the_logits_of_the_plain_model(family):
    lm, ids = plain(FAMILIES[family]), torch.randint(0, 60, (2, 7))
    expected = lm(ids).logits
    settings = {"dim_head": 8, "heads": 2, "ff_mult": 1, "activation": "gelu", "gate_init": 0.0, "freq": 2}
    language = LanguageModel(lm, pretrained=False, xattn=settings, dim_visual=12).eval()
    assert [block.xattn_block is not None for block in language.blocks] == [True, False, True]
    visual = language.keys_values(torch.randn(2, 4, 12))
    hidden = language(language.embed(ids), visual=visual)
    torch.testing.assert_close(language.logits(hidden), expected, rtol=1e-5, atol=1e-5)
    losses = language.next_word(hidden.flatten(0, 1)).losses(ids.flatten())
    reference = torch.nn.functional.cross_entropy(expected.flatten(0, 1), ids.flatten(), reduction="none")
    torch.testing.assert_close(losses, reference, rtol=1e-4, atol=1e-4)
    for gated in language.cross_attention:
        gated.alpha_attn.data.fill_(1.0)
    assert not torch.allclose(language.logits(language(language.embed(ids), visual=visual)), expected, atol=1e-3)


def test_cached_equals_uncached_and_a_batch_one_by_one(captioner, visual, template):
    """In beam search, which also reorders the cache; test_generation.py has the other strategies."""
    cached = write(captioner, visual, template, BEAM)
    again = write(captioner, visual, template, replace(BEAM, use_cache=False))
    alone = [write(captioner, visual, template, BEAM, rows=[i])[0] for i in range(5)]
    for others in (again, alone):
        assert [text.tokens for text in cached] == [text.tokens for text in others]
        expected = pytest.approx([text.log_prob for text in others], abs=1e-4)
        assert [text.log_prob for text in cached] == expected
    assert len({tuple(text.tokens) for text in cached}) > 1, "texts must differ for this test"


@torch.no_grad()
def test_plain_model_generates_the_tokens_of_transformers(family, template):
    """Without any part of ours, greedy and beam search are `generate`'s."""
    torch.manual_seed(3)
    off = {"vad__enabled": False, "contrastive__enabled": False, "enable_resampler_xattn": False}
    captioner = make_captioner(template, seed=4, text__config=WIDE[family], **off, text__segments=False)
    bare = Visual(torch.zeros(2, 32), torch.zeros(2, 0, 32), torch.zeros(2, 0, dtype=torch.bool), ())
    prompts = [template.explanation_prompt(i) for i in (0, 2)]
    for decoding, options in ((GREEDY, {}), (BEAM, {"num_beams": 3, "early_stopping": "never"})):
        ours = generate(
            captioner,
            bare,
            [ids for ids, _ in prompts],
            explanation_tokens=[count for _, count in prompts],
            eos_id=template.eos_id,
            vad=VadAligner(None, template.tokenizer),
            decoding=decoding,
        )
        for (ids, _), text in zip(prompts, ours, strict=True):
            lm = captioner.language.lm
            found = lm.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=10,
                do_sample=False,
                eos_token_id=template.eos_id,
                pad_token_id=template.eos_id,
                length_penalty=1.0,
                **options,
            )[0, len(ids) :].tolist()
            assert text.tokens == (found[: found.index(template.eos_id)] if template.eos_id in found else found)


def test_label_scores_equal_those_of_texts_read_again(captioner, visual, template, monkeypatch):
    arguments = {"prompt": template.prompt, "labels": template.label_ids, "vad": make_aligner(template)}
    cached = emotion_log_probs(captioner, visual, **arguments)
    monkeypatch.setattr(type(captioner), "causal", False)
    torch.testing.assert_close(cached, emotion_log_probs(captioner, visual, **arguments), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_padding_on_the_left_changes_nothing(captioner, visual, template):
    ids = torch.tensor([template.explanation_prompt(2)[0]])
    count = ids.shape[1]
    vad, known, _ = make_aligner(template).align(ids[0])
    picture = visual.rows(torch.tensor([1]))

    def text(left: int) -> Text:
        zeros = torch.zeros(1, left, dtype=torch.long)
        values = torch.cat([torch.randn(left, 3), vad])[None]
        mask = torch.cat([zeros, torch.ones_like(ids)], dim=1).bool()
        flags = torch.cat([zeros.bool(), known[None]], dim=1)
        return Text(torch.cat([zeros, ids], dim=1), torch.zeros(1, left + count, dtype=torch.long), values, flags, mask)

    torch.testing.assert_close(
        captioner.read(picture, text(4))[:, -count:], captioner.read(picture, text(0)), rtol=1e-4, atol=1e-4
    )


def test_no_state_depends_on_later_words(captioner, batch, template):
    """Neither the text nor the VAD of later words enters an earlier state."""
    with torch.no_grad():
        before = captioner(batch).hidden
        changed = deepcopy(batch)
        changed.input_ids[:, 6:] = 5
        changed.vad[:, 6:] += 0.5
        changed.vad_known[:, 6:] = True
        after = captioner(changed).hidden
    torch.testing.assert_close(before[:, :6], after[:, :6], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before[:, 6:], after[:, 6:], atol=1e-3)


def test_a_step_trains_the_bridge_alone_and_checkpointing_gives_equal_gradients(family, template, batch):
    def gradients(*, recompute: bool) -> dict[str, torch.Tensor]:
        captioner = make_captioner(template, gates=0.9, seed=5, text__config=FAMILIES[family]).train()
        if recompute:
            captioner.language.recompute()
        output = captioner(batch)
        targets = batch.labels[:, 1:][batch.labels[:, 1:] != -100]
        output.next_word.losses(targets).sum().backward()
        return {name: p.grad for name, p in captioner.named_parameters() if p.grad is not None}

    once, again = gradients(recompute=False), gradients(recompute=True)
    assert once.keys() == again.keys()
    for name, gradient in once.items():
        torch.testing.assert_close(gradient, again[name], rtol=1e-4, atol=1e-5)
    assert any("xattn_block" in name for name in once) and any(name.startswith("resampler") for name in once)
    own = [name for name in once if "language.lm" in name and "xattn_block" not in name]
    assert own == []


def test_generation_with_packed_weights_is_unchanged(captioner, visual, template):
    expected = write(captioner, visual, template, GREEDY)
    packed = deepcopy(captioner)
    optimize_for_generation(packed, bf16=False)
    assert [t.tokens for t in write(packed, visual, template, GREEDY)] == [t.tokens for t in expected]


def test_train_mode_keeps_the_frozen_model_in_eval_mode(captioner):
    captioner.train()
    assert not any(block.lm_block.training for block in captioner.language.blocks)
    assert all(gated.training for gated in captioner.language.cross_attention)
    captioner.eval()


# --- LoRA -----------------------------------------------------------------------------------------------------------


def test_lora_starts_as_the_base_model_is_trained_and_merges(family, template, batch):
    lora = {"text__lora__r": 4, "text__lora__dropout": 0.0}
    if family == "xglm":  # peft has no default for it
        with pytest.raises(UserError, match=r"model.text.lora.targets=None: .*; give names of linear layers of XGLM"):
            make_captioner(template, text__config=FAMILIES[family], **lora)
        lora["text__lora__targets"] = ["q_proj", "v_proj"]
    off = make_captioner(template, gates=0.9, seed=5, text__config=FAMILIES[family])
    on = make_captioner(template, gates=0.9, seed=5, text__config=FAMILIES[family], **lora)
    own = {name: tensor for name, tensor in on.state_dict().items() if "lora_" not in name}
    off.load_state_dict({name.replace(".base_layer", ""): tensor for name, tensor in own.items()})
    with torch.no_grad():
        torch.testing.assert_close(on(batch).hidden, off(batch).hidden)
    trained = {name for name, p in on.named_parameters() if p.requires_grad}
    updates = {name for name in trained if "lora_" in name}
    assert updates and not any(name.startswith("language.lm") for name in trained - updates if "xattn" not in name)
    assert updates <= {*own_state(on)}
    for name, parameter in on.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        changed, merged = on(batch).hidden, deepcopy(on)
        assert not torch.allclose(changed, off(batch).hidden, atol=1e-3)
        merge_lora(merged)
        torch.testing.assert_close(merged(batch).hidden, changed, rtol=1e-4, atol=1e-4)
    assert not any("lora_" in name for name in merged.state_dict())
