"""The head on a frozen encoder's tokens: pooling, independence of the batch, and distillation losses."""

from __future__ import annotations

import pytest
import torch

from model.expert.student import POOLS, StudentHead, label_losses, teacher_losses


def make_head(pool: str, *, classes: int = 5, depth: int = 1) -> StudentHead:
    torch.manual_seed(3)
    return StudentHead(16, classes, pool=pool, depth=depth, dropout=0.1).eval()


def make_tokens(batch: int, frames: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, frames, 10, 16, generator=generator), torch.ones(batch, frames, dtype=torch.bool)


@pytest.mark.parametrize("pool", POOLS)
def test_logits_do_not_depend_on_the_batch(pool):
    head, (tokens, mask) = make_head(pool), make_tokens(4)
    together = head(tokens, mask)
    alone = torch.cat([head(tokens[i : i + 1], mask[i : i + 1]) for i in range(4)])
    assert together.shape == (4, 5)
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("pool", POOLS)
def test_padding_frames_are_masked(pool):
    head, (tokens, mask) = make_head(pool), make_tokens(2, frames=3)
    mask[1, 2] = False
    short = head(tokens[1:, :2], mask[1:, :2])
    torch.testing.assert_close(head(tokens, mask)[1:], short)
    noisy = tokens.clone()
    noisy[1, 2] = 50.0
    torch.testing.assert_close(head(noisy, mask), head(tokens, mask))


@pytest.mark.parametrize(("pool", "seen"), [("class", {0}), ("mean", {*range(1, 10)}), ("attention", {*range(10)})])
def test_tokens_used_by_each_pool(pool, seen):
    head, (tokens, mask) = make_head(pool), make_tokens(1)
    tokens.requires_grad_()
    head(tokens, mask).square().sum().backward()
    moved = tokens.grad[0, 0].abs().sum(dim=1) > 0
    assert {i for i, one in enumerate(moved.tolist()) if one} == seen


def test_depth_zero_is_a_linear_probe():
    head = make_head("class", depth=0)
    assert [type(layer).__name__ for layer in head.layers] == ["Linear"]
    tokens, mask = make_tokens(2)
    expected = head.norm(tokens[:, 0, 0]) @ head.layers[0].weight.T + head.layers[0].bias
    torch.testing.assert_close(head(tokens, mask), expected)


def test_distillation_loss_is_zero_for_equal_distributions():
    teacher = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0]])
    student = (teacher + torch.tensor([[4.0], [-7.0]])).requires_grad_()  # a constant changes no probability
    losses = teacher_losses(student, teacher, temperature=2.0)
    losses.sum().backward()
    torch.testing.assert_close(losses, torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(student.grad, torch.zeros_like(teacher), atol=1e-6, rtol=0)
    assert (teacher_losses(teacher.flip(0), teacher, temperature=2.0) > 0.1).all()


def test_distillation_loss_equals_a_computation_by_hand():
    student, teacher, t = torch.tensor([[1.0, -1.0]]), torch.tensor([[3.0, 0.0]]), 2.0
    p, q = (teacher / t).softmax(-1), (student / t).softmax(-1)
    expected = t**2 * (p * (p / q).log()).sum()
    torch.testing.assert_close(teacher_losses(student, teacher, temperature=t)[0], expected)


def test_label_loss_equals_a_computation_by_hand():
    shares = torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.0, 0.0]])
    logits = torch.tensor([[0.0, 0.0, 0.0], [5.0, 1.0, 2.0]])
    torch.testing.assert_close(label_losses(logits, shares), torch.tensor([torch.tensor(3.0).log().item(), 0.0]))
