"""The learning rate as a function of the step, and which weights decay."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.tiny import make_captioner, make_template
from trainer.loop.optim import build_optimizer, lr_at, warmup_steps

PEAK, FLOOR, WARMUP, TOTAL = 1e-3, 1e-5, 10, 110


def rates(name: str, *, warmup: int = WARMUP, total: int = TOTAL, min_lr: float = FLOOR) -> list[float]:
    return [lr_at(step, lr=PEAK, min_lr=min_lr, name=name, warmup=warmup, total=total) for step in range(total + 3)]


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_warm_up_climbs_in_equal_steps_to_the_full_rate(name):
    found = rates(name)
    assert found[:WARMUP] == pytest.approx([PEAK * (i + 1) / WARMUP for i in range(WARMUP)])
    assert found[0] > 0, "the first step must not be wasted"
    assert found[WARMUP] == pytest.approx(PEAK)
    assert max(found) == pytest.approx(PEAK)


def test_linear_falls_evenly_to_its_end():
    found = rates("linear")
    falls = [a - b for a, b in zip(found[WARMUP:TOTAL], found[WARMUP + 1 : TOTAL + 1], strict=True)]
    assert falls == pytest.approx([(PEAK - FLOOR) / (TOTAL - WARMUP)] * len(falls))
    assert found[TOTAL:] == pytest.approx([FLOOR] * 3), "it stays there and does not turn negative"


def test_cosine_is_half_way_in_the_middle_and_flat_at_both_ends():
    found = rates("cosine")
    assert found[(WARMUP + TOTAL) // 2] == pytest.approx((PEAK + FLOOR) / 2)
    assert found[TOTAL:] == pytest.approx([FLOOR] * 3)
    falls = [a - b for a, b in zip(found[WARMUP:TOTAL], found[WARMUP + 1 : TOTAL + 1], strict=True)]
    assert min(falls) > 0
    assert max(falls) > 10 * falls[0] and max(falls) > 10 * falls[-1]
    assert falls.index(max(falls)) in range(len(falls) // 2 - 2, len(falls) // 2 + 2)


def test_constant_stays():
    assert rates("constant")[WARMUP:] == [PEAK] * (TOTAL + 3 - WARMUP)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("warmup", "total"), [(0, 5), (5, 5), (9, 5), (0, 0), (0, 1)])
def test_odd_lengths_give_a_rate_between_zero_and_the_full_one(name, warmup, total):
    assert all(0 <= rate <= PEAK and math.isfinite(rate) for rate in rates(name, warmup=warmup, total=total))


def test_the_rate_depends_on_nothing_but_its_arguments():
    assert rates("cosine") == rates("cosine")
    backwards = [
        lr_at(step, lr=PEAK, min_lr=FLOOR, name="cosine", warmup=WARMUP, total=TOTAL)
        for step in reversed(range(TOTAL + 3))
    ]
    assert backwards[::-1] == rates("cosine")


def test_warm_up_steps_are_as_given_or_a_share_of_all():
    assert warmup_steps({"warmup_steps": 7, "warmup_ratio": 0.5}, 100) == 7
    assert warmup_steps({"warmup_steps": 0, "warmup_ratio": 0.5}, 100) == 0, "zero is given, not left out"
    assert warmup_steps({"warmup_steps": None, "warmup_ratio": 0.1}, 100) == 10
    assert warmup_steps({"warmup_steps": None, "warmup_ratio": 0.1}, 5) == 0


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    template = make_template(tmp_path_factory.mktemp("tokenizer"))
    return make_captioner(template, text__trainable=True, vad__encoder="causal")


def decays(captioner) -> dict[str, float]:
    optimizer = build_optimizer(captioner.parameters(), name="adamw", lr=1.0, betas=(0.5, 0.6), weight_decay=0.25)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    return {name: decay[id(p)] for name, p in captioner.named_parameters() if id(p) in decay}


def test_only_matrices_decay(captioner):
    found = decays(captioner)
    for name, parameter in captioner.named_parameters():
        if name in found and parameter.ndim < 2:
            assert found[name] == 0.0, name
    kept = [name for name in found if name.endswith((".bias", "alpha_attn", "alpha_ffw", "fusion.gate"))]
    assert {name.rpartition(".")[2] for name in kept} == {"bias", "alpha_attn", "alpha_ffw", "gate"}
    for name in ("mapper._mapper.0.weight", "language.lm.transformer.h.0.lm_block.attn.c_attn.weight"):
        assert found[name] == 0.25, name


def test_every_trained_weight_is_in_one_group_and_no_frozen_one_in_any(captioner):
    optimizer = build_optimizer(captioner.parameters(), name="adam", lr=0.5, betas=[0.8, 0.9], weight_decay=0.0)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in captioner.parameters() if p.requires_grad}
    assert any(not p.requires_grad for p in captioner.parameters())
    assert type(optimizer) is torch.optim.Adam
    assert all(group["lr"] == 0.5 and group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)
    assert all(group["eps"] == 1e-8 for group in optimizer.param_groups)


def test_a_part_may_have_a_learning_rate_of_its_own(captioner):
    settings = {"name": "adamw", "lr": 0.5, "betas": (0.8, 0.9), "weight_decay": 0.25, "eps": 1e-6}
    part = captioner.vad_encoder
    optimizer = build_optimizer(captioner.parameters(), **settings, apart=part, apart_lr=0.75)
    own = {id(p) for p in part.parameters() if p.requires_grad}
    kinds = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert kinds == [(0.5, 0.25), (0.5, 0.0), (0.75, 0.25), (0.75, 0.0)], "the logged rate is the first: the network's"
    held = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    assert {*held[2], *held[3]} == own and own.isdisjoint({*held[0], *held[1]})
    trained = {id(p) for p in captioner.parameters() if p.requires_grad}
    assert {p for group in held for p in group} == trained and sum(map(len, held)) == len(trained)
    assert all(p.ndim >= 2 for group in optimizer.param_groups[::2] for p in group["params"])
    assert all(group["eps"] == 1e-6 and group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)


def test_without_a_rate_or_a_part_of_its_own_all_share_one(captioner):
    settings = {"name": "adamw", "lr": 0.5, "betas": (0.8, 0.9), "weight_decay": 0.25}
    plain = build_optimizer(captioner.parameters(), **settings).state_dict()
    assert len(plain["param_groups"]) == 2
    for apart in ({"apart": captioner.vad_encoder}, {"apart": None, "apart_lr": 0.75}):
        assert build_optimizer(captioner.parameters(), **settings, **apart).state_dict() == plain


def test_a_large_eps_makes_small_steps():
    steps = []
    for eps in (1e-8, 1.0):
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = build_optimizer([parameter], name="adamw", lr=0.1, betas=(0.9, 0.9), weight_decay=0.0, eps=eps)
        parameter.grad = torch.ones(1)
        optimizer.step()
        steps.append(-parameter.item())
    assert steps == pytest.approx([0.1, 0.05])


def test_decay_pulls_a_matrix_without_gradient_and_leaves_a_bias():
    linear = torch.nn.Linear(3, 3)
    before = {name: p.detach().clone() for name, p in linear.named_parameters()}
    optimizer = build_optimizer(linear.parameters(), name="adamw", lr=0.1, betas=(0.9, 0.9), weight_decay=0.5)
    for parameter in linear.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(linear.weight.detach(), before["weight"] * 0.95)
    assert torch.equal(linear.bias.detach(), before["bias"])
