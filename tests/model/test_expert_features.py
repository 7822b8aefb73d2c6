"""Inputs of the heads: pooled patches or latents of the captioner, and log-probabilities from them."""

from __future__ import annotations

import pytest
import torch

from common.errors import UserError
from model.expert.features import build_features, patch_grid
from model.expert.student import STUDENT, Heads, StudentHead
from tests.helpers.tiny import RESNET, VISION, make_captioner, make_template


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    return make_captioner(make_template(tmp_path_factory.mktemp("tokenizer")), gates=0.5)


@pytest.fixture(scope="module")
def tokens(captioner):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, captioner.vision.num_tokens, captioner.vision.dim, generator=generator)


def test_grid_not_smaller_than_the_patches_keeps_all_tokens(captioner, tokens):
    before, rows, _ = patch_grid(captioner.vision)
    assert before == 1
    torch.testing.assert_close(build_features(captioner, features="clip", grid=rows)(tokens), tokens)
    torch.testing.assert_close(build_features(captioner, features="clip", grid=99)(tokens), tokens)


def test_a_smaller_grid_averages_patches(captioner, tokens):
    reduced = build_features(captioner, features="clip", grid=1)(tokens)
    torch.testing.assert_close(reduced[:, 0], tokens[:, 0])
    torch.testing.assert_close(reduced[:, 1], tokens[:, 1:].mean(dim=1))
    assert reduced.shape[1] == 2


def test_resampler_features_are_the_captioners_latents(captioner, tokens):
    reduced = build_features(captioner, features="resampler", grid=7)(tokens)
    latents = captioner.resampler(tokens[:, None], torch.ones(3, 1, dtype=torch.bool))
    torch.testing.assert_close(reduced[:, 1:], latents)
    torch.testing.assert_close(reduced[:, 0], latents.mean(dim=1))


def test_resampler_features_need_a_resampler(tmp_path):
    plain = make_captioner(make_template(tmp_path), enable_resampler_xattn=False)
    with pytest.raises(UserError, match=r"expert\.student\.features=clip"):
        build_features(plain, features="resampler", grid=7)


@pytest.mark.parametrize("features", ["clip", "resampler"])
def test_only_the_head_is_trained(captioner, tokens, features):
    """The heads are evaluated without gradients for encoder and resampler."""
    reduced = build_features(captioner, features=features, grid=2)
    head = StudentHead(reduced.dim, 4, pool="attention", depth=1, dropout=0.0)
    heads = Heads(reduced, {STUDENT: head})
    log_probs = heads(tokens[:, None], torch.ones(3, 1, dtype=torch.bool))[STUDENT]
    assert not log_probs.requires_grad
    torch.testing.assert_close(log_probs.exp().sum(dim=1), torch.ones(3))
    assert all(parameter.grad is None for parameter in captioner.parameters())


def test_log_probs_do_not_depend_on_the_batch(captioner, tokens):
    head = StudentHead(captioner.vision.dim, 4, pool="attention", depth=1, dropout=0.5).eval()
    heads = Heads(build_features(captioner, features="clip", grid=2), {STUDENT: head})
    mask = torch.ones(3, 1, dtype=torch.bool)
    together = heads(tokens[:, None], mask)[STUDENT]
    alone = torch.cat([heads(tokens[i : i + 1, None], mask[i : i + 1])[STUDENT] for i in range(3)])
    torch.testing.assert_close(together, alone)


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
