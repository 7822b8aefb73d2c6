"""The learning rate as a function of the step, and weight decay and learning rate of each parameter."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.tiny import make_captioner, make_template
from trainer.loop.optim import build_optimizer, learning_rate

PEAK, FLOOR, WARMUP, TOTAL = 1e-3, 1e-5, 10, 110


def rate(step: int, total: int, **scheduler) -> float:
    usual = {"name": "constant", "min_lr": FLOOR, "warmup_steps": None, "warmup_ratio": 0.1}
    settings = SimpleNamespace(lr=PEAK, scheduler=SimpleNamespace(**{**usual, **scheduler}))
    return learning_rate(step, settings, total)


def rates(name: str, *, warmup: int = WARMUP, total: int = TOTAL) -> list[float]:
    return [rate(step, total, name=name, warmup_steps=warmup) for step in range(total + 3)]


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_warmup_rises_in_equal_steps_to_the_peak(name):
    found = rates(name)
    assert found[:WARMUP] == pytest.approx([PEAK * (i + 1) / WARMUP for i in range(WARMUP)])
    assert found[0] > 0, "the first step must not be wasted"
    assert found[WARMUP] == max(found) == pytest.approx(PEAK)


def test_linear_schedule_falls_evenly_and_stays_at_its_minimum():
    found = rates("linear")
    falls = [a - b for a, b in zip(found[WARMUP:TOTAL], found[WARMUP + 1 : TOTAL + 1], strict=True)]
    assert falls == pytest.approx([(PEAK - FLOOR) / (TOTAL - WARMUP)] * len(falls))
    assert found[TOTAL:] == pytest.approx([FLOOR] * 3)


def test_cosine_schedule_is_half_way_in_the_middle_and_flat_at_both_ends():
    found = rates("cosine")
    assert found[(WARMUP + TOTAL) // 2] == pytest.approx((PEAK + FLOOR) / 2)
    assert found[TOTAL:] == pytest.approx([FLOOR] * 3)
    falls = [a - b for a, b in zip(found[WARMUP:TOTAL], found[WARMUP + 1 : TOTAL + 1], strict=True)]
    assert min(falls) > 0
    assert max(falls) > 10 * falls[0] and max(falls) > 10 * falls[-1]
    assert falls.index(max(falls)) in range(len(falls) // 2 - 2, len(falls) // 2 + 2)


def test_constant_schedule_stays_at_the_peak():
    assert rates("constant")[WARMUP:] == [PEAK] * (TOTAL + 3 - WARMUP)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("warmup", "total"), [(0, 5), (5, 5), (9, 5), (0, 0), (0, 1)])
def test_short_trainings_have_rates_between_zero_and_the_peak(name, warmup, total):
    assert all(0 <= rate <= PEAK and math.isfinite(rate) for rate in rates(name, warmup=warmup, total=total))


@pytest.mark.parametrize(
    ("scheduler", "total", "warmup"),
    [
        ({"warmup_steps": 7, "warmup_ratio": 0.5}, 100, 7),
        ({"warmup_steps": 0, "warmup_ratio": 0.5}, 100, 0),
        ({"warmup_steps": None, "warmup_ratio": 0.1}, 100, 10),
        ({"warmup_steps": None, "warmup_ratio": 0.1}, 5, 0),
    ],
)
def test_warmup_steps_override_the_ratio_of_all_steps(scheduler, total, warmup):
    assert [rate(step, total, **scheduler) < PEAK for step in range(12)] == [step < warmup - 1 for step in range(12)]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    template = make_template(tmp_path_factory.mktemp("tokenizer"))
    return make_captioner(template, text__trainable=True, vad__encoder="causal")


def build(parameters, *, apart=None, **changes) -> torch.optim.Optimizer:
    usual = {"name": "adamw", "lr": 0.5, "betas": [0.8, 0.9], "weight_decay": 0.25, "eps": 1e-8, "vad_lr": None}
    return build_optimizer(SimpleNamespace(**{**usual, **changes}), parameters, apart=apart)


def test_only_matrices_decay(captioner):
    groups = build(captioner.parameters()).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    found = {name: decay[id(p)] for name, p in captioner.named_parameters() if id(p) in decay}
    for name, parameter in captioner.named_parameters():
        if name in found and parameter.ndim < 2:
            assert found[name] == 0.0, name
    scales = [name for name in found if name.endswith((".bias", "alpha_attn", "alpha_ffw", "fusion.gate"))]
    assert {name.rpartition(".")[2] for name in scales} == {"bias", "alpha_attn", "alpha_ffw", "gate"}
    for name in ("mapper._mapper.0.weight", "language.lm.transformer.h.0.lm_block.attn.c_attn.weight"):
        assert found[name] == 0.25, name


def test_every_trained_weight_is_in_one_group_and_no_frozen_one_in_any(captioner):
    optimizer = build(captioner.parameters(), name="adam")
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in captioner.parameters() if p.requires_grad}
    assert any(not p.requires_grad for p in captioner.parameters())
    assert type(optimizer) is torch.optim.Adam
    assert all(group["lr"] == 0.5 and group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)


def test_part_of_the_network_can_have_its_own_learning_rate(captioner):
    part = captioner.vad_encoder
    optimizer = build(captioner.parameters(), apart=part, vad_lr=0.75, eps=1e-6)
    own = {id(p) for p in part.parameters() if p.requires_grad}
    kinds = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert kinds == [(0.5, 0.25), (0.5, 0.0), (0.75, 0.25), (0.75, 0.0)], "the logged rate is the first: the network's"
    held = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    assert {*held[2], *held[3]} == own and own.isdisjoint({*held[0], *held[1]})
    trained = {id(p) for p in captioner.parameters() if p.requires_grad}
    assert {p for group in held for p in group} == trained and sum(map(len, held)) == len(trained)
    assert all(p.ndim >= 2 for group in optimizer.param_groups[::2] for p in group["params"])
    assert all(group["eps"] == 1e-6 and group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)


def test_without_such_a_rate_or_part_all_share_one_rate(captioner):
    plain = build(captioner.parameters()).state_dict()
    assert len(plain["param_groups"]) == 2
    for changes in ({"apart": captioner.vad_encoder}, {"apart": None, "vad_lr": 0.75}):
        assert build(captioner.parameters(), **changes).state_dict() == plain
