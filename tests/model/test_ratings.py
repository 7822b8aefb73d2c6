"""The ridge regression on frozen tokens, against numpy, and the network that applies it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.ratings import STRENGTHS, RatingNetwork, features_of, fit_ridge
from model.vision import build_vision
from tests.helpers.tiny import RESNET, VISION


def data(pictures: int, features: int, *, noise: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(pictures)
    x = torch.randn(pictures, features, generator=generator) * torch.linspace(0.1, 3, features) + 1
    y = x[:, :3].sum(dim=1) * 0.1 + noise * torch.randn(pictures, generator=generator)
    return x, y.double()


@pytest.mark.parametrize("features", [6, 80])  # fewer and more than pictures
def test_ridge_is_the_closed_form_with_the_best_strength_on_validation(features):
    (x, y), (x_val, y_val) = data(50, features), data(21, features)
    found = fit_ridge(x, y, x_val, y_val)
    errors = {}
    for strength in STRENGTHS:
        a, b = x.double().numpy(), y.numpy()
        center, spread = a.mean(axis=0), a.std(axis=0)
        z = (a - center) / spread
        w = np.linalg.solve(z.T @ z / len(z) + strength * np.eye(features), z.T @ (b - b.mean()) / len(z)) / spread
        guesses = (x_val.double().numpy() - center) @ w + b.mean()
        errors[strength] = ((guesses - y_val.numpy()) ** 2).mean(), w, b.mean() - center @ w
    best = min(errors, key=lambda strength: errors[strength][0])
    assert found.strength == pytest.approx(best)
    np.testing.assert_allclose(found.weight, errors[best][1], rtol=1e-4, atol=1e-5)
    assert found.bias.item() == pytest.approx(errors[best][2], abs=1e-4)


def test_a_constant_rating_or_feature_gives_a_constant():
    x, _ = data(12, 4)
    x[:, 2] = 5.0
    found = fit_ridge(x, torch.full((12,), 0.25), x[:3], torch.full((3,), 0.25))
    assert torch.allclose(x @ found.weight + found.bias, torch.tensor(0.25), atol=1e-6)
    assert found.strength == max(STRENGTHS) and found.weight.isfinite().all()


@pytest.mark.parametrize("config", [VISION, RESNET], ids=["with a class token", "a feature map"])
def test_features_are_the_first_token_and_the_mean_of_the_patches(config):
    torch.manual_seed(0)
    network = RatingNetwork(build_vision(pretrained_name=None, config=dict(config)), 2).eval()
    size = network.vision.preprocess["size"]
    frames, mask = torch.randn(3, 1, 3, size, size), torch.ones(3, 1, dtype=torch.bool)
    tokens = network.vision(frames).half().float()[:, 0]
    classed = config is VISION
    first = tokens[:, 0] if classed else tokens.mean(dim=1)
    patches = tokens[:, 1:] if classed else tokens
    expected = torch.cat([first, patches.mean(dim=1)], dim=1)
    condensed = network.features(tokens)[:, None]
    torch.testing.assert_close(features_of(condensed, mask), expected)
    torch.testing.assert_close(network(frames, mask), network.head(expected).clamp(-1, 1), atol=2e-3, rtol=1e-2)
    torch.testing.assert_close(network(frames, mask)[:1], network(frames[:1], mask[:1]))


def test_predictions_stay_on_the_scale_and_the_checkpoint_holds_what_cannot_be_loaded_again():
    network = RatingNetwork(build_vision(pretrained_name=None, config=dict(VISION)), 3)
    network.head.bias.fill_(7.0)
    assert (network(torch.zeros(1, 1, 3, 32, 32), torch.ones(1, 1, dtype=torch.bool)) == 1).all()
    assert [*network.own_state(with_vision=False)] == ["head.weight", "head.bias"]
    assert len(network.own_state(with_vision=True)) == len(network.state_dict())
    assert not any(p.requires_grad for p in network.parameters())
