"""Attention maps: recorded weights equal those of the modules, and single patches are found."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange

from model.attention import split_heads
from model.attention_maps import (
    attention_maps,
    gate_weights,
    has_attention,
    latent_weights,
    patch_grid,
    recorded,
    rollout,
    word_weights,
)
from model.captioner import Captioner
from tests.helpers.tiny import RESNET, VISION, make_batch, make_captioner

LENGTH = 7


@pytest.fixture
def captioner(template) -> Captioner:
    return make_captioner(template, gates=0.7)


def text(captioner: Captioner) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, captioner.language.lm.config.vocab_size, (1, LENGTH), generator=generator)
    nothing = torch.zeros(1, LENGTH, dtype=torch.long)
    return {"input_ids": ids, "segment": nothing, "vad": torch.zeros(1, LENGTH, 3), "vad_known": nothing.bool()}


def frames(size: int = 32) -> torch.Tensor:
    return torch.randn(1, 1, 3, size, size, generator=torch.Generator().manual_seed(2))


def maps_of(captioner: Captioner, **changes):
    return attention_maps(captioner, frames(), **text(captioner), **changes)


def test_every_token_has_a_distribution_over_the_patches(captioner):
    maps = maps_of(captioner)
    assert maps.patches.shape == (LENGTH, 2, 2)
    assert (maps.patches >= 0).all()
    torch.testing.assert_close(maps.patches.sum(dim=(1, 2)), torch.ones(LENGTH))
    assert ((maps.share > 0) & (maps.share < 1)).all(), "the class token has the rest"


def test_recorded_weights_reproduce_the_modules_outputs(captioner):
    """Weights times values, through the output layer, equal the module's output."""
    torch.manual_seed(3)
    perceiver = captioner.resampler.layers[0][0]
    media, latents = torch.randn(2, 6, VISION["width"]), torch.randn(2, 4, VISION["width"])
    mask = torch.tensor([[True] * 10, [True] * 3 + [False] * 3 + [True] * 4])[:, None, None]
    perceiver.heads = 1  # so that averaging over heads changes nothing
    context = torch.cat([perceiver.norm_media(media), perceiver.norm_latents(latents)], dim=1)
    mine = perceiver.to_out(latent_weights(perceiver, media, latents, mask) @ perceiver.to_v(context))
    torch.testing.assert_close(mine, perceiver(media, latents, mask))

    cross = captioner.language.cross_attention[0].attn
    y = torch.randn(2, 5, captioner.language.dim)
    cross.heads = 1
    kv = cross.keys_values(latents)
    mine = cross.to_out(word_weights(cross, y, kv) @ kv[1][:, 0])
    torch.testing.assert_close(mine, cross(y, kv))


def test_heads_are_averaged(captioner):
    cross = captioner.language.cross_attention[0].attn
    y, latents = torch.randn(1, 5, captioner.language.dim), torch.randn(1, 4, VISION["width"])
    keys, _ = cross.keys_values(latents)
    queries = split_heads(cross.to_q(cross.layer_norm(y)), cross.heads)
    each = [
        (queries[:, h] @ rearrange(keys[:, h], "n q d -> n d q") * queries.shape[-1] ** -0.5).softmax(dim=-1)
        for h in range(cross.heads)
    ]
    assert cross.heads > 1
    torch.testing.assert_close(word_weights(cross, y, (keys, keys)), torch.stack(each).mean(dim=0))


def test_rollout_equals_the_product_of_full_attention_matrices():
    """Abnar & Zuidema: products of (identity + attention) / 2 for the latents, and the identity for the patches."""
    generator = torch.Generator().manual_seed(0)
    layers = [torch.rand(1, 3, 8, generator=generator).softmax(dim=-1) for _ in range(4)]
    whole = torch.eye(8)
    for weights in layers:
        step = torch.eye(8)
        step[5:] = (step[5:] + weights[0]) / 2
        whole = step @ whole
    torch.testing.assert_close(rollout(layers)[0], whole[5:, :5])


def attend_only_to(captioner: Captioner, patch: int) -> torch.Tensor:
    """Set the weights so that every latent attends to one token alone; return tokens (1, 1, P, Dv) for this."""
    width, count = VISION["width"], captioner.vision.num_tokens
    sign, apart = torch.ones(width), torch.ones(width)
    sign[1::2] = -1  # marks the token; both vectors have mean 0 and variance 1 and are orthogonal
    apart[width // 2 :] = -1
    tokens = -sign.repeat(1, 1, count, 1)
    tokens[0, 0, patch] = sign
    with torch.no_grad():
        captioner.resampler.time_pos_emb.zero_()
        captioner.resampler.latents.copy_(apart.expand_as(captioner.resampler.latents))
        for attention, ff in captioner.resampler.layers:
            attention.to_q.weight.copy_(apart.expand_as(attention.to_q.weight))
            attention.to_k.weight.copy_(sign.expand_as(attention.to_k.weight))
            attention.to_v.weight.zero_()  # the latents stay unchanged
            ff[-1].weight.zero_()
    return tokens


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_attention_to_a_single_patch_is_found(captioner, patch):
    maps = maps_of(captioner, tokens=attend_only_to(captioner, patch))
    row, column = divmod(patch - 1, 2)  # token 0 is the class token
    torch.testing.assert_close(maps.patches[:, row, column], torch.ones(LENGTH))
    torch.testing.assert_close(maps.share, torch.ones(LENGTH))


def test_blocks_are_weighted_by_their_gates(captioner):
    gates = [gated.alpha_attn for gated in captioner.language.cross_attention]
    with torch.no_grad():
        for gate, value in zip(gates, (0.0, -0.5, 1.5), strict=True):
            gate.fill_(value)
    expected = torch.tensor([0.0, 0.5, 1.5]).tanh()
    torch.testing.assert_close(gate_weights(captioner), expected / expected.sum())
    with torch.no_grad():
        gates[1].zero_()
    before = maps_of(captioner).patches
    with torch.no_grad():
        for gated in captioner.language.cross_attention[:2]:
            gated.attn.to_q.weight.normal_(std=3.0)
    torch.testing.assert_close(maps_of(captioner).patches, before)
    with torch.no_grad():
        captioner.language.cross_attention[2].attn.to_q.weight.normal_(std=3.0)
    assert not torch.allclose(maps_of(captioner).patches, before)


def test_recording_does_not_change_outputs(captioner, template, tmp_path):
    batch = make_batch(tmp_path, template, captioner)
    with torch.no_grad():
        before = captioner(batch)
        with recorded(captioner) as found:
            during = captioner(batch)
        after = captioner(batch)
    for output in (during, after):
        for name in ("hidden", "logits", "vad", "contrastive"):
            assert torch.equal(getattr(output, name), getattr(before, name)), name
    assert len(found.resampler) == 2, "one per layer, of one pass"
    assert len(found.words) == 3 + 3, "one per block, for the texts and for the false explanations"
    hooks = [module for module in captioner.modules() if module._forward_pre_hooks]
    assert not hooks


def test_hooks_are_removed_after_an_exception(captioner):
    with pytest.raises(RuntimeError, match="stop"), recorded(captioner):
        raise RuntimeError("stop")
    assert not any(module._forward_pre_hooks for module in captioner.modules())


def test_no_maps_without_cross_attention_or_with_gates_at_zero(template, captioner):
    assert has_attention(captioner)
    assert not has_attention(make_captioner(template, gates=0.0))
    assert not has_attention(make_captioner(template, gates=0.7, enable_resampler_xattn=False))


@pytest.mark.parametrize(
    ("config", "grid"),
    [
        (VISION, (1, 2, 2)),
        (VISION | {"image_size": 48, "patch_size": 8}, (1, 6, 6)),
        (VISION | {"image_size": [32, 64]}, (1, 2, 4)),
        (RESNET, (0, 2, 2)),
    ],
)
def test_patch_grid_has_the_aspect_ratio_of_the_picture(template, config, grid):
    captioner = make_captioner(template, gates=0.7, vision__config=config)
    assert patch_grid(captioner.vision) == grid
