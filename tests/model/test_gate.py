"""Gates: initial values, values by hand for two sources, weights of the sources, and zero probabilities."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from common.errors import UserError
from model.expert.gate import FORMS, GATES, build_gate, nearest_weights, scalars

LEARNED = [name for name in GATES if name != "average"]


def log_probs(images: int, classes: int, *, seed: int, sharpness: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(images, classes, generator=generator)).log_softmax(dim=-1)


def several(images: int, classes: int, count: int = 2) -> torch.Tensor:
    """Return the log-probabilities (B, K, C) of different sources."""
    return torch.stack([log_probs(images, classes, seed=seed + 1) for seed in range(count)], dim=1)


def perturbed(name: str, classes: int, count: int = 2, *, seed: int = 0) -> torch.nn.Module:
    """Return a gate with perturbed weights."""
    gate = build_gate(name, classes, count)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in gate.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return gate


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("classes", [2, 8, 9])
@pytest.mark.parametrize("name", GATES)
def test_every_gate_starts_as_the_average(name, classes, count):
    sources = several(50, classes, count)
    for seed in (0, 7):
        fused = build_gate(name, classes, count, seed=seed)(sources)
        average = sources.exp().mean(dim=1).log() if name == "mixture" else sources.mean(dim=1).log_softmax(dim=-1)
        torch.testing.assert_close(fused.log_probs, average, atol=4e-6, rtol=0)
        if name in ("mixture", "dynamic") or classes > count:  # else several weights give the same result
            torch.testing.assert_close(fused.weights, torch.full((50, count), 1 / count), atol=1e-4, rtol=0)


def by_hand(name: str, gate: torch.nn.Module, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return the result for two sources, up to a constant, from the formulas."""
    both, entropy = torch.cat([p, q], dim=1), lambda v: -(v.exp() * v).sum(dim=1, keepdim=True) / math.log(v.shape[1])
    margin = lambda v: -v.exp().topk(2).values.diff(dim=1)  # noqa: E731
    confidence = torch.cat([entropy(p), entropy(q), margin(p), margin(q)], dim=1)
    if name == "average":
        return (p + q) / 2
    if name == "concat_linear":
        return both @ gate.map.weight.T + gate.map.bias
    if name == "mixture":
        first, _, last = gate.weigh
        w = last(torch.tanh(first(torch.cat([both.exp(), confidence], dim=1)))).sigmoid()
        return (w * p.exp() + (1 - w) * q.exp()).log()
    if name == "bilinear":
        (form,) = gate.products
        product = torch.einsum("bi,oij,bj->bo", p, form.weight, q) + form.bias
        return (p + q) / 2 + gate.map(product)
    if name == "moe":
        shares = gate.router(torch.cat([both, confidence], dim=1)).softmax(dim=1)
        return sum(shares[:, i : i + 1] * expert(both) for i, expert in enumerate(gate.experts))
    if name == "dynamic":
        w = gate.weigh(torch.cat([both, confidence], dim=1)).softmax(dim=1)
        return gate.map(w[:, :1] * p + w[:, 1:] * q)
    of_first, of_second = gate.by_others
    return gate.map(of_first(q).sigmoid() * p + of_second(p).sigmoid() * q)


@pytest.mark.parametrize("name", GATES)
def test_two_sources_by_hand(name):
    """The forms for language model and student, with the nearest weight w log p + (1 − w) log q."""
    gate, sources = perturbed(name, 9).double(), several(40, 9).double()
    p, q = sources.unbind(dim=1)
    fused, expected = gate(sources), by_hand(name, gate, p, q).log_softmax(dim=1)
    torch.testing.assert_close(fused.log_probs, expected, atol=1e-10, rtol=0)
    if name not in ("mixture", "dynamic"):
        expected, p, q = (v - v.mean(dim=1, keepdim=True) for v in (expected, p, q))
        nearest = ((expected - q) * (p - q)).sum(dim=1) / (p - q).square().sum(dim=1)
        torch.testing.assert_close(fused.weights[:, 0], nearest.clamp(0, 1), atol=1e-10, rtol=0)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", GATES)
def test_results_are_distributions_with_weights(name, count):
    fused = perturbed(name, 9, count)(several(200, 9, count))
    assert fused.log_probs.shape == (200, 9) and fused.weights.shape == (200, count)
    torch.testing.assert_close(fused.log_probs.exp().sum(dim=-1), torch.ones(200))
    assert (fused.weights >= 0).all()
    torch.testing.assert_close(fused.weights.sum(dim=1), torch.ones(200))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", LEARNED)
def test_every_weight_of_every_gate_is_trained(name, count):
    """Initial zeros and equal experts do not block the gradients of other weights."""
    gate = build_gate(name, 4, count).double()
    start = {key: value.clone() for key, value in gate.state_dict().items()}
    sources, target = several(60, 4, count).double(), log_probs(60, 4, seed=9).double().exp()
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        (-(target * gate(sources).log_probs).sum(dim=-1).mean()).backward()
        optimizer.step()
    for key, value in gate.state_dict().items():
        assert not torch.equal(value, start[key]), key
    if name == "moe":
        first, second, _ = (expert.weight for expert in gate.experts)
        assert (first - second).abs().max() > 1e-4, "the experts stay equal"


@pytest.mark.parametrize("name", GATES)
def test_three_sources_have_the_right_gradients(name):
    gate, sources = perturbed(name, 3, 3).double(), several(2, 3, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gate(x).log_probs, sources)


@pytest.mark.parametrize("name", GATES)
def test_zero_probabilities_give_finite_results_and_gradients(name):
    impossible = torch.tensor([[0.0, -math.inf, -math.inf], [math.log(0.5), math.log(0.5), -math.inf]])
    other = torch.tensor([[-math.inf, 0.0, -math.inf], [math.log(0.2), math.log(0.3), math.log(0.5)]])
    for gate in (build_gate(name, 3), perturbed(name, 3)):
        fused = gate(torch.stack([impossible, other], dim=1))
        assert fused.log_probs.isfinite().all() and fused.weights.isfinite().all()
        fused.log_probs.sum().backward() if name != "average" else None
        assert all(weight.grad.isfinite().all() for weight in gate.parameters())


def test_mixture_keeps_emotions_that_one_source_excludes():
    sources = torch.tensor([[[0.0, -math.inf, -math.inf], [-math.inf, 0.0, -math.inf]]])
    fused = build_gate("mixture", 3)(sources)
    torch.testing.assert_close(fused.log_probs.exp(), torch.tensor([[0.5, 0.5, 0.0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("weights", [(0.0, 1.0), (0.3, 0.7), (1.0, 0.0), (0.2, 0.5, 0.3), (0.0, 0.0, 0.4, 0.6)])
def test_nearest_weights_of_a_mixture_of_logarithms(weights):
    sources, expected = several(20, 9, len(weights)), torch.tensor(weights)
    fused = (expected[:, None] * sources).sum(dim=1).log_softmax(dim=-1)
    torch.testing.assert_close(nearest_weights(fused, sources), expected.expand(20, -1), atol=1e-5, rtol=0)


def test_nearest_weights_leave_out_negative_ones_and_are_even_for_equal_sources():
    p, q = several(5, 9).unbind(dim=1)
    beyond = (2 * p - q).log_softmax(dim=-1)
    assert nearest_weights(beyond, torch.stack([p, q], dim=1)).tolist() == [[1.0, 0.0]] * 5
    for count in (2, 3):
        even = torch.full((5, count), 1 / count)
        torch.testing.assert_close(nearest_weights(beyond, torch.stack([p] * count, dim=1)), even)
    twice = nearest_weights(q, torch.stack([p, q, q], dim=1))
    torch.testing.assert_close(twice, torch.tensor([[0.0, 0.5, 0.5]]).expand(5, -1), atol=1e-5, rtol=0)


def test_nearest_weights_are_nearly_the_best_of_all():
    """Against a search over a grid."""
    sources, fused = several(40, 9, 3).double(), log_probs(40, 9, seed=8).double()
    grid = torch.tensor([w for w in itertools.product(np.linspace(0, 1, 101), repeat=2) if sum(w) <= 1]).double()
    grid = torch.cat([grid, 1 - grid.sum(dim=1, keepdim=True)], dim=1)  # (G, 3)

    def distances(weights: torch.Tensor) -> torch.Tensor:
        apart = torch.einsum("...k,bkc->b...c", weights, sources) - fused.view(40, *[1] * (weights.dim() - 1), 9)
        return (apart - apart.mean(dim=-1, keepdim=True)).square().sum(dim=-1)

    best = distances(grid).min(dim=1).values
    found = torch.stack([distances(w)[i] for i, w in enumerate(nearest_weights(fused, sources))])
    assert (found <= best + 1e-2).float().mean() > 0.9 and (found <= 1.05 * best).all()


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", ["mixture", "dynamic"])
def test_mixture_and_dynamic_return_their_own_weights(name, count):
    """With all weight on the first source, the result equals this source and the weight is 1."""
    sources, gate = several(30, 9, count), build_gate(name, 9, count)
    with torch.no_grad():
        bias = gate.weigh[-1].bias if name == "mixture" else gate.weigh.bias
        bias[0] = 40.0
    fused = gate(sources)
    torch.testing.assert_close(fused.log_probs, sources[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(fused.weights, torch.eye(count)[0].expand(30, -1))


def test_scalars_are_entropies_and_margins():
    sure, even = torch.tensor([[1 - 3e-9, 1e-9, 1e-9, 1e-9]]).log(), torch.full((1, 4), 0.25).log()
    half = torch.tensor([[0.5, 0.5 - 2e-9, 1e-9, 1e-9]]).log()
    for sources, expected in (([sure, even], [0, 1, 1, 0]), ([half, sure, even], [0.5, 0, 1, 0, 1, 0])):
        found = scalars(torch.stack(sources, dim=1))
        torch.testing.assert_close(found, torch.tensor([expected]).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", GATES)
def test_results_do_not_depend_on_the_batch(name, count):
    sources, gate = several(6, 9, count), perturbed(name, 9, count)
    together = gate(sources)
    for i in range(6):
        alone = gate(sources[i : i + 1])
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[i])
        torch.testing.assert_close(alone.weights[0], together.weights[i])


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
