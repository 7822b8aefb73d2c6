"""Resampler and mapper: shapes, padding frames, and the order of frames."""

from __future__ import annotations

import pytest
import torch

from common.errors import UserError
from model.mapper import Mapper
from model.resampler import Resampler

MAPPERS = ["mlp", "transformer"]


def resampler(*, seed: int = 0, **changes) -> Resampler:
    settings = {
        "depth": 2, "dim_head": 8, "heads": 2, "num_latents": 5, "num_time_embeds": 6, "ff_mult": 1,
        "activation": "gelu", **changes,
    }  # fmt: skip
    torch.manual_seed(seed)
    return Resampler(12, **settings)


def mapper(kind: str, *, width: int = 12, dim: int = 20, heads: int = 2) -> Mapper:
    torch.manual_seed(0)
    settings = {"depth": 2, "heads": heads, "dim_feedforward": 16, "mlp_dim": 7}
    return Mapper(width, dim, mapper_type=kind, **settings).eval()


@pytest.fixture
def clips():
    """Three clips of 2, 4 and 1 frames of six tokens, padded with large values."""
    tokens = torch.randn(3, 4, 6, 12, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(4) < torch.tensor([2, 4, 1])[:, None]
    tokens[~mask] = 50.0
    return tokens, mask


@pytest.mark.parametrize("activation", ["gelu", "relu", "sqrelu"])
@pytest.mark.parametrize(("frames", "tokens"), [(1, 1), (1, 9), (4, 3)])
def test_number_of_latents_does_not_depend_on_the_tokens(frames, tokens, activation):
    latents = resampler(activation=activation)(torch.randn(2, frames, tokens, 12), torch.ones(2, frames).bool())
    assert latents.shape == (2, 5, 12) and torch.isfinite(latents).all()


def test_padding_frames_do_not_affect_the_latents(clips):
    tokens, mask = clips
    network = resampler()
    together = network(tokens, mask)
    for i, frames in enumerate(mask.sum(1).tolist()):
        alone = network(tokens[i : i + 1, :frames], mask[i : i + 1, :frames])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_the_order_of_frames_matters_but_not_that_of_tokens():
    network, tokens = resampler(), torch.randn(1, 3, 6, 12, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, 3, dtype=torch.bool)
    latents = network(tokens, mask)
    assert not torch.allclose(latents, network(tokens.flip(1), mask), atol=1e-3)
    torch.testing.assert_close(latents, network(tokens.flip(2), mask), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        network.time_pos_emb.zero_()
    torch.testing.assert_close(network(tokens, mask), network(tokens.flip(1), mask), rtol=1e-4, atol=1e-5)


def test_every_weight_gets_a_gradient_except_unused_time_embeddings():
    network = resampler()
    network(torch.randn(2, 3, 6, 12), torch.ones(2, 3, dtype=torch.bool)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())
    assert (network.time_pos_emb.grad[3:] == 0).all() and (network.time_pos_emb.grad[:3] != 0).any()


def test_error_for_too_long_clips_names_both_settings():
    with pytest.raises(UserError, match=r"7 frames, but model\.resampler\.num_time_embeds=6.*dataset\.max_frames"):
        resampler()(torch.zeros(1, 7, 2, 12), torch.ones(1, 7, dtype=torch.bool))


def test_error_for_an_unknown_activation_lists_the_choices():
    with pytest.raises(UserError, match="'swish' is not one of gelu, relu, sqrelu"):
        resampler(activation="swish")


@pytest.mark.parametrize("kind", MAPPERS)
@pytest.mark.parametrize("dim", [12, 20])
def test_one_prefix_vector_per_frame(clips, kind, dim):
    tokens, mask = clips
    prefix = mapper(kind, dim=dim)(tokens, mask)
    assert prefix.shape == (3, 4, dim)
    assert (prefix[~mask] == 0).all() and (prefix[mask].abs().amax(dim=-1) > 0).all()


@pytest.mark.parametrize("kind", MAPPERS)
def test_padding_frames_do_not_affect_the_prefix(clips, kind):
    tokens, mask = clips
    network = mapper(kind)
    together = network(tokens, mask)
    for i, frames in enumerate(mask.sum(1).tolist()):
        alone = network(tokens[i : i + 1, :frames], mask[i : i + 1, :frames])
        torch.testing.assert_close(together[i : i + 1, :frames], alone, rtol=1e-4, atol=1e-5)


def test_mlp_maps_the_mean_token_of_each_frame(clips):
    tokens, _ = clips
    network, every = mapper("mlp"), torch.ones(3, 4, dtype=torch.bool)
    means = tokens.mean(dim=2, keepdim=True)
    torch.testing.assert_close(network(tokens, every), network(means, every))
    first, _, last = network._mapper
    torch.testing.assert_close(network(tokens, every), last(first(means.squeeze(2)).tanh()))


def test_error_for_an_unknown_mapper_lists_the_choices():
    with pytest.raises(UserError, match=r"model\.mapper\.mapper_type='conv' is not one of mlp, transformer"):
        mapper("conv")


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match=r"model\.mapper\.heads=5"):
        mapper("transformer", heads=5)
