"""Packed weights give equal outputs and texts; in bf16, emotion scores are close."""

from __future__ import annotations

import copy

import pytest
import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import nn
from transformers.pytorch_utils import Conv1D

from model.attention import FEW, attention
from model.decoding.generation import Decoding, generate
from model.decoding.packed import (
    Float32Head,
    PackedLinear,
    PackedSelfAttention,
    can_pack,
    optimize_for_generation,
    pack,
)
from model.decoding.scoring import emotion_log_probs
from tests.helpers.tiny import make_aligner, make_batch, make_captioner

WIDE = {  # wide enough to be packed
    "vision__config": {"image_size": 32, "patch_size": 16, "width": 128, "layers": 2, "head_width": 32},
    "text__config": {"n_layer": 2, "n_head": 4, "n_embd": 128, "n_positions": 64, "initializer_range": 0.2},
}

pytestmark = pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN operators for packing")


@pytest.fixture(scope="module")
def captioner(template):
    return make_captioner(template, gates=0.8, seed=3, **WIDE)


@pytest.fixture(scope="module")
def batch(tmp_path_factory, template, captioner):
    return make_batch(tmp_path_factory.mktemp("pictures"), template, captioner, count=5)


def ready(captioner, *, bf16=False):
    copied = copy.deepcopy(captioner)
    optimize_for_generation(copied, bf16=bf16)
    return copied


@torch.no_grad()
def look(captioner, batch):
    return captioner.look(batch.frames, batch.frame_mask)


def write(captioner, batch, template, decoding):
    prompts, counts = zip(*(template.explanation_prompt(i) for i in range(5)), strict=True)
    return generate(
        captioner, look(captioner, batch), prompts, explanation_tokens=counts, eos_id=template.eos_id,
        vad=make_aligner(template), decoding=decoding,
    )  # fmt: skip


def emotions(captioner, batch, template):
    return emotion_log_probs(
        captioner, look(captioner, batch), prompt=template.prompt, labels=template.label_ids, vad=make_aligner(template)
    )


@pytest.mark.parametrize("layer", [nn.Linear(160, 192), nn.Linear(160, 192, bias=False), Conv1D(192, 160)], ids=str)
@pytest.mark.parametrize("rows", [(1,), (7,), (3, 5), (700,)], ids=str)
@torch.no_grad()
def test_packed_layer_equals_the_layer(layer, rows):
    layer = copy.deepcopy(layer)
    nn.init.normal_(layer.weight)
    x, holder = torch.randn(*rows, 160), nn.ModuleList([layer])
    expected = layer(x)
    assert pack(holder) and isinstance(holder[0], PackedLinear)
    torch.testing.assert_close(holder[0](x), expected, rtol=1e-4, atol=1e-4)


def test_only_large_layers_are_packed(captioner, template):
    packed = ready(captioner)
    kinds = [type(module) for module in packed.modules()]
    blocks = len(packed.language.blocks)
    assert kinds.count(PackedSelfAttention) == 2 and kinds.count(PackedLinear) > 4 * blocks
    assert isinstance(packed.language.lm.lm_head, PackedLinear)
    left = {name for name, p in packed.named_parameters() if p.ndim == 2 and p.numel() >= 1 << 14}
    embeddings = ("wte.weight", "wpe.weight", "latents", "positional_embedding")
    assert all(name.endswith(embeddings) for name in left), left
    assert torch.equal(packed.language.lm.transformer.wte.weight, captioner.language.lm.transformer.wte.weight)


def test_packed_vision_gives_equal_outputs(captioner, batch):
    ours, expected = look(ready(captioner), batch), look(captioner, batch)
    torch.testing.assert_close(ours.mean, expected.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.prefix, expected.prefix, rtol=1e-4, atol=1e-4)
    for one, other in zip(ours.keys_values, expected.keys_values, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(max_length=14),
        Decoding(strategy="beam", beam_width=3, max_length=14),
        Decoding(strategy="nucleus", max_length=14, top_p=0.9, seed=3),
    ],
    ids=lambda d: d.strategy,
)
def test_packed_network_generates_equal_texts(captioner, batch, template, decoding):
    expected, ours = (write(network, batch, template, decoding) for network in (captioner, ready(captioner)))
    assert [text.tokens for text in ours] == [text.tokens for text in expected]
    assert [text.log_prob for text in ours] == pytest.approx([text.log_prob for text in expected], abs=1e-4)
    assert len({tuple(text.tokens) for text in ours}) > 1


def test_emotion_scores_in_bf16_are_close(captioner, batch, template):
    expected, ours = (emotions(network, batch, template) for network in (captioner, ready(captioner, bf16=True)))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.exp(), expected.exp(), rtol=0.1, atol=0.02)
    assert not torch.equal(ours, expected)


def test_output_layer_is_fp32_in_bf16(captioner):
    ours = ready(captioner, bf16=True).language
    hidden = torch.randn(4, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = captioner.language.logits(hidden.float())
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.logits(hidden), expected, rtol=1e-4, atol=1e-4)


def test_float32_head_has_its_own_weights():
    x = torch.randn(2, 8).bfloat16()
    for bias in (False, True):
        layer = torch.nn.Linear(8, 30, bias=bias)
        head = Float32Head(layer)
        assert torch.equal(head(x), layer(x.float())) and head.weight.data_ptr() != layer.weight.data_ptr()
        assert "30" in repr(head)


@pytest.mark.parametrize("decoding", [Decoding(max_length=8), Decoding(strategy="beam", beam_width=3, max_length=8)])
def test_generation_in_bf16(captioner, batch, template, decoding):
    texts = write(ready(captioner, bf16=True), batch, template, decoding)
    assert all(0 < len(text.tokens) <= 8 and text.log_prob < 0 for text in texts)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_precisions_are_not_packed(dtype):
    network = nn.Sequential(nn.Linear(256, 256)).to(dtype)
    assert not pack(network) and isinstance(network[0], nn.Linear)


def test_torch_transformer_layers_are_not_packed():
    """torch's transformer layers use the weights of their parts directly."""
    layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True)
    network = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    x = torch.randn(2, 3, 128)
    with torch.no_grad():
        expected = network(x)
        pack(network)
        torch.testing.assert_close(network(x), expected)


def test_cross_attention_of_open_clip_is_not_packed():
    block = ResidualAttentionBlock(128, 2, is_cross_attention=True)
    pack(block)
    assert isinstance(block.attn, nn.MultiheadAttention), "packed, it would attend to its own queries"


@pytest.mark.parametrize("kind", ["none", "bool", "added"])
@pytest.mark.parametrize("queries", [1, 5, FEW + 1])
def test_bf16_attention_of_few_queries_equals_torch(queries, kind):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, n, 16, generator=generator) for n in (queries, 20, 20))
    seen = torch.rand(3, 1, queries, 20, generator=generator) < 0.5
    seen[..., 0] = True
    mask = {"none": None, "bool": seen, "added": torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))}[kind]
    ours = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask=mask if kind != "added" else mask.bfloat16())
    expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(ours.float(), expected, rtol=0.05, atol=0.05)
