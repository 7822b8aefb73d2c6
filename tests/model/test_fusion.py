"""Calibrated sources and their gates as one module, and its files."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import UserError
from model.expert.fusion import Fusion
from model.expert.gate import GATES
from tests.model.test_gate import log_probs


def fusion(classes: int = 9, **more) -> Fusion:
    """Return a fusion with perturbed weights."""
    found = Fusion(GATES, classes, **{"choice": "cross", "temperatures": (1.7, 0.6)} | more)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in found.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return found


def test_each_source_is_calibrated_by_its_own_temperature():
    log_p, log_q = log_probs(20, 9, seed=1), log_probs(20, 9, seed=2)
    first, second = fusion().calibrated(log_p, log_q)
    torch.testing.assert_close(first, (log_p / 1.7).log_softmax(dim=-1))
    torch.testing.assert_close(second, (log_q / 0.6).log_softmax(dim=-1))
    average = fusion().fuse(log_p, log_q)["average"]
    torch.testing.assert_close(average.log_probs, ((first + second) / 2).log_softmax(dim=-1))


def test_forward_uses_the_chosen_gate():
    log_p, log_q = log_probs(20, 9, seed=1), log_probs(20, 9, seed=2)
    found = fusion()
    every, chosen = found.fuse(log_p, log_q), found(log_p, log_q)
    assert tuple(every) == GATES
    assert torch.equal(chosen.log_probs, every["cross"].log_probs) and torch.equal(chosen.weight, every["cross"].weight)
    assert not torch.allclose(chosen.log_probs, every["concat_linear"].log_probs)


@pytest.mark.parametrize("classes", [2, 9])
def test_fusion_restored_from_files_is_equal(tmp_path, classes):
    before = fusion(classes)
    save_file(before.state_dict(), tmp_path / "gate.safetensors")
    (tmp_path / "expert.json").write_text(json.dumps(before.settings()))
    after = Fusion.from_settings(json.loads((tmp_path / "expert.json").read_text()))
    after.load_state_dict(load_file(tmp_path / "gate.safetensors"))
    assert after.settings() == before.settings() and after.choice == "cross"
    log_p, log_q = log_probs(20, classes, seed=1), log_probs(20, classes, seed=2)
    for name, fused in before.fuse(log_p, log_q).items():
        again = after.fuse(log_p, log_q)[name]
        assert torch.equal(again.log_probs, fused.log_probs) and torch.equal(again.weight, fused.weight)


def test_zero_probabilities_and_bf16_give_finite_results():
    log_p = torch.tensor([[0.0, -math.inf, -math.inf]])
    log_q = torch.tensor([[-math.inf, -1.0, -0.5]], dtype=torch.bfloat16)
    for fused in fusion(3).fuse(log_p, log_q).values():
        assert fused.log_probs.dtype == torch.float32 and fused.log_probs.isfinite().all()


def test_results_are_equal_under_autocast():
    log_p, log_q = log_probs(20, 9, seed=1), log_probs(20, 9, seed=2)
    expected = fusion().fuse(log_p, log_q)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fusion().fuse(log_p, log_q)
    for name in GATES:
        assert torch.equal(found[name].log_probs, expected[name].log_probs), name


def test_a_choice_that_was_not_fitted_is_refused():
    with pytest.raises(UserError, match=r"expert\.gate\.name='moe' was not fitted; choose from average, cross"):
        Fusion(["average", "cross"], 9, choice="moe")


@pytest.mark.parametrize(
    "settings",
    [{}, {"name": "average", "names": 3, "classes": 9}, {"name": "average", "names": ["average"], "classes": "x"}],
)
def test_invalid_settings_are_refused(settings):
    with pytest.raises(UserError, match="invalid settings of a gate"):
        Fusion.from_settings(settings)
