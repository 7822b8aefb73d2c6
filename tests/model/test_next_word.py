"""The chunked next-token loss against cross-entropy over all logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model import next_word
from model.next_word import NextWord

EXACT = {"rtol": 1e-5, "atol": 1e-6}


def losses(hidden, words, targets):
    return NextWord(hidden, words).losses(targets)


def example(positions: int = 23, width: int = 8, vocabulary: int = 50):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, width, generator=generator)
    words = torch.randn(vocabulary, width, generator=generator)
    targets = torch.randint(vocabulary, (positions,), generator=generator)
    return hidden, words, targets, torch.rand(positions, generator=generator)


def gradients(losses_of, hidden, words, targets, weights, *, trained: bool):
    hidden, words = hidden.clone().requires_grad_(), words.clone().requires_grad_(trained)
    each = losses_of(hidden, words, targets)
    (each * weights).sum().backward()
    return each.detach(), hidden.grad, words.grad


def plain(hidden, words, targets):
    return F.cross_entropy(hidden @ words.T, targets, reduction="none")


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("at_once", [1, 50 * 7, 50 * 23, 1 << 20])
def test_losses_and_gradients_equal_cross_entropy(monkeypatch, trained, at_once):
    """Positions have different weights, as for emotion names, which count in two losses."""
    monkeypatch.setattr(next_word, "LOGITS_AT_ONCE", at_once)
    found = gradients(losses, *example(), trained=trained)
    expected = gradients(plain, *example(), trained=trained)
    for mine, other in zip(found, expected, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, **EXACT)


def test_frozen_inputs_get_no_gradient():
    hidden, words, targets, _ = example()
    assert not losses(hidden, words, targets).requires_grad
    found = losses(hidden, words.requires_grad_(), targets)
    found.sum().backward()
    assert words.grad is not None and hidden.grad is None


def test_no_positions_give_no_losses():
    hidden, words, targets, _ = example(positions=0)
    found = losses(hidden.requires_grad_(), words, targets)
    found.sum().backward()
    assert found.shape == (0,) and hidden.grad.shape == (0, 8)


@pytest.mark.parametrize("trained", [False, True])
def test_precision_under_autocast_is_that_of_cross_entropy(trained):
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(losses, *example(), trained=trained)
        usual = gradients(lambda h, w, t: plain(h, w, t).float(), *example(), trained=trained)
    exact = gradients(plain, *example(), trained=trained)
    for mine, other, wanted in zip(found, usual, exact, strict=True):
        if wanted is not None:
            assert mine.dtype == torch.float32
            assert (mine - wanted).abs().max() <= 1.5 * (other - wanted).abs().max()


def test_gradients_of_bf16_words_are_summed_in_fp32(monkeypatch):
    half = [t.bfloat16() if t.is_floating_point() else t for t in example(positions=400)]
    wanted = gradients(losses, *(t.float() if t.is_floating_point() else t for t in half), trained=True)[2]
    whole = gradients(losses, *half, trained=True)[2]
    monkeypatch.setattr(next_word, "LOGITS_AT_ONCE", 1)
    pieces = gradients(losses, *half, trained=True)[2]
    assert (pieces - wanted).abs().max() <= 1.5 * (whole - wanted).abs().max()


@pytest.mark.parametrize("trained", [False, True])
def test_saved_tensors_are_much_smaller_than_the_logits(monkeypatch, trained):
    monkeypatch.setattr(next_word, "LOGITS_AT_ONCE", 4000)
    hidden, words, targets, _ = example(positions=400, width=4, vocabulary=1000)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        losses(hidden.requires_grad_(), words.requires_grad_(trained), targets).sum()
    assert max(sizes) <= 4000 == words.numel()
