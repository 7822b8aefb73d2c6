"""Gates: initial values, weights of the sources, and zero probabilities."""

from __future__ import annotations

import math

import pytest
import torch

from common.errors import UserError
from model.expert.gate import FORMS, GATES, build_gate, nearest_weight, scalars

LEARNED = [name for name in GATES if name != "average"]


def log_probs(images: int, classes: int, *, seed: int, sharpness: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(images, classes, generator=generator)).log_softmax(dim=-1)


def perturbed(name: str, classes: int, *, seed: int = 0) -> torch.nn.Module:
    """Return a gate with perturbed weights."""
    gate = build_gate(name, classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in gate.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return gate


@pytest.mark.parametrize("classes", [2, 8, 9])
@pytest.mark.parametrize("name", GATES)
def test_every_gate_starts_as_the_average(name, classes):
    log_p, log_q = log_probs(50, classes, seed=1), log_probs(50, classes, seed=2)
    for seed in (0, 7):
        fused = build_gate(name, classes, seed=seed)(log_p, log_q)
        if name == "mixture":
            expected = ((log_p.exp() + log_q.exp()) / 2).log()
        else:
            expected = ((log_p + log_q) / 2).log_softmax(dim=-1)
        torch.testing.assert_close(fused.log_probs, expected, atol=2e-6, rtol=0)
        torch.testing.assert_close(fused.weight, torch.full((50,), 0.5), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", GATES)
def test_results_are_distributions_with_weights(name):
    fused = perturbed(name, 9)(log_probs(200, 9, seed=1), log_probs(200, 9, seed=2))
    assert fused.log_probs.shape == (200, 9) and fused.weight.shape == (200,)
    torch.testing.assert_close(fused.log_probs.exp().sum(dim=-1), torch.ones(200))
    assert ((fused.weight >= 0) & (fused.weight <= 1)).all()


@pytest.mark.parametrize("name", LEARNED)
def test_every_weight_of_every_gate_is_trained(name):
    """Initial zeros and equal experts do not block the gradients of other weights."""
    gate = build_gate(name, 4).double()
    start = {key: value.clone() for key, value in gate.state_dict().items()}
    log_p, log_q = log_probs(60, 4, seed=1).double(), log_probs(60, 4, seed=2).double()
    target = log_probs(60, 4, seed=3).double().exp()
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        (-(target * gate(log_p, log_q).log_probs).sum(dim=-1).mean()).backward()
        optimizer.step()
    for key, value in gate.state_dict().items():
        assert not torch.equal(value, start[key]), key
    if name == "moe":
        first, second, _ = (expert.weight for expert in gate.experts)
        assert (first - second).abs().max() > 1e-4, "the experts stay equal"


@pytest.mark.parametrize("name", GATES)
def test_zero_probabilities_give_finite_results_and_gradients(name):
    impossible = torch.tensor([[0.0, -math.inf, -math.inf], [math.log(0.5), math.log(0.5), -math.inf]])
    other = torch.tensor([[-math.inf, 0.0, -math.inf], [math.log(0.2), math.log(0.3), math.log(0.5)]])
    for gate in (build_gate(name, 3), perturbed(name, 3)):
        fused = gate(impossible, other)
        assert fused.log_probs.isfinite().all() and fused.weight.isfinite().all()
        fused.log_probs.sum().backward() if name != "average" else None
        assert all(weight.grad.isfinite().all() for weight in gate.parameters())


def test_mixture_keeps_emotions_that_one_source_excludes():
    log_p = torch.tensor([[0.0, -math.inf, -math.inf]])
    log_q = torch.tensor([[-math.inf, 0.0, -math.inf]])
    fused = build_gate("mixture", 3)(log_p, log_q)
    torch.testing.assert_close(fused.log_probs.exp(), torch.tensor([[0.5, 0.5, 0.0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_nearest_weight_of_a_mixture_of_logarithms(weight):
    log_p, log_q = log_probs(20, 9, seed=1), log_probs(20, 9, seed=2)
    fused = (weight * log_p + (1 - weight) * log_q).log_softmax(dim=-1)
    torch.testing.assert_close(nearest_weight(fused, log_p, log_q), torch.full((20,), weight), atol=1e-5, rtol=0)


def test_nearest_weight_is_clipped_and_one_half_for_equal_sources():
    log_p, log_q = log_probs(5, 9, seed=1), log_probs(5, 9, seed=2)
    beyond = (2 * log_p - log_q).log_softmax(dim=-1)
    assert nearest_weight(beyond, log_p, log_q).tolist() == [1.0] * 5
    assert nearest_weight(beyond, log_p, log_p).tolist() == [0.5] * 5


@pytest.mark.parametrize("name", ["mixture", "dynamic"])
def test_mixture_and_dynamic_return_their_own_weight(name):
    """With all weight on the first source, the result equals this source and the weight is 1."""
    log_p, log_q = log_probs(30, 9, seed=1), log_probs(30, 9, seed=2)
    gate = build_gate(name, 9)
    with torch.no_grad():
        bias = gate.weigh[-1].bias if name == "mixture" else gate.weigh.bias
        bias[0] = 40.0
    fused = gate(log_p, log_q)
    torch.testing.assert_close(fused.log_probs, log_p, atol=1e-5, rtol=0)
    torch.testing.assert_close(fused.weight, torch.ones(30))


def test_scalars_are_entropies_and_margins():
    sure, even = torch.tensor([[1 - 3e-9, 1e-9, 1e-9, 1e-9]]).log(), torch.full((1, 4), 0.25).log()
    half = torch.tensor([[0.5, 0.5 - 2e-9, 1e-9, 1e-9]]).log()
    for log_p, log_q, expected in ((sure, even, [0, 1, 1, 0]), (half, sure, [0.5, 0, 0, 1])):
        torch.testing.assert_close(scalars(log_p, log_q), torch.tensor([expected]).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", GATES)
def test_results_do_not_depend_on_the_batch(name):
    log_p, log_q = log_probs(6, 9, seed=1), log_probs(6, 9, seed=2)
    gate = perturbed(name, 9)
    together = gate(log_p, log_q)
    for i in range(6):
        alone = gate(log_p[i : i + 1], log_q[i : i + 1])
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[i])
        torch.testing.assert_close(alone.weight[0], together.weight[i])


def test_random_weights_depend_only_on_the_seed():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    gates = [build_gate("moe", 9, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    weights = [gate.router.weight for gate in gates]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_unknown_gate_is_refused_with_key_and_choices():
    with pytest.raises(UserError, match=r"expert\.gate\.name='magic'.*average, concat_linear, mixture"):
        build_gate("magic", 9)
    assert tuple(FORMS) == GATES
