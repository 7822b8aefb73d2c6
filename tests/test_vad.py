"""VAD of the words in their embeddings: nothing at the start, and unknown is not neutral."""

from __future__ import annotations

import pytest
import torch

from model.vad import VadFusion, VadHead


@pytest.fixture
def fusion():
    torch.manual_seed(0)
    return VadFusion(8, hidden_dim=5)


@pytest.fixture
def words():
    generator = torch.Generator().manual_seed(1)
    embeddings, vad = torch.randn(2, 4, 8, generator=generator), torch.rand(2, 4, 3, generator=generator) * 2 - 1
    known = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0]]).bool()
    return embeddings, vad * known[..., None], known


def test_it_starts_as_the_identity_but_can_learn(fusion, words):
    fused = fusion(*words)
    assert torch.equal(fused, words[0])
    fused.square().sum().backward()
    assert fusion.gate.grad.abs() > 0, "a closed gate without a gradient would never open"


def test_unknown_words_are_left_alone_when_the_gate_is_open(fusion, words):
    torch.nn.init.constant_(fusion.gate, 1.0)
    embeddings, _, known = words
    fused = fusion(*words)
    assert torch.equal(fused[~known], embeddings[~known])
    assert ((fused - embeddings)[known].abs().amax(dim=-1) > 1e-3).all()


def test_known_and_neutral_is_not_unknown(fusion):
    torch.nn.init.constant_(fusion.gate, 1.0)
    embeddings, neutral = torch.zeros(1, 2, 8), torch.zeros(1, 2, 3)
    known, unknown = fusion(embeddings, neutral, torch.tensor([[True, False]]))[0]
    assert (unknown == 0).all() and known.abs().max() > 1e-3


def test_a_half_open_gate_adds_tanh_of_it(fusion, words):
    torch.nn.init.constant_(fusion.gate, 0.3)
    embeddings, vad, known = words
    expected = embeddings[known] + torch.tensor(0.3).tanh() * fusion.embed(vad[known])
    torch.testing.assert_close(fusion(*words)[known], expected)


def test_the_head_predicts_three_values():
    assert VadHead(8)(torch.zeros(2, 5, 8)).shape == (2, 5, 3)
