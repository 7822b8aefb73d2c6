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
from tests.model.test_gate import log_probs, several


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
    first, second = fusion().calibrated(torch.stack([log_p, log_q], dim=1)).unbind(dim=1)
    torch.testing.assert_close(first, (log_p / 1.7).log_softmax(dim=-1))
    torch.testing.assert_close(second, (log_q / 0.6).log_softmax(dim=-1))
    average = fusion().fuse(torch.stack([log_p, log_q], dim=1))["average"]
    torch.testing.assert_close(average.log_probs, ((first + second) / 2).log_softmax(dim=-1))


def three(**more) -> Fusion:
    names = ("language_model", "student", "other")
    return fusion(4, **{"sources": names, "temperatures": (1.0, 2.0, 1.0), "smoothing": (0.0, 0.0, 0.4)} | more)


def test_smoothing_mixes_the_uniform_distribution_into_an_answer():
    sources = several(2, 4, 3)
    sources[:, 2] = torch.tensor([[0.0, -math.inf, -math.inf, -math.inf]])
    found = three().calibrated(sources).exp()
    torch.testing.assert_close(found[:, 2], torch.tensor([[0.7, 0.1, 0.1, 0.1]]).expand(2, -1), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[:, 1], (sources[:, 1] / 2).softmax(dim=-1))


def test_source_without_an_entry_is_replaced_by_the_average_of_the_others():
    sources, found = several(3, 4, 3), three()
    sources[1, 2] = sources[2, 1:] = math.nan
    calibrated = found.calibrated(sources)
    torch.testing.assert_close(calibrated[1, 2], calibrated[1, :2].mean(dim=0).log_softmax(dim=-1))
    for k in (1, 2):
        torch.testing.assert_close(calibrated[2, k], calibrated[2, 0])
    torch.testing.assert_close(calibrated[0], found.calibrated(sources[:1])[0])
    average = found.fuse(sources)["average"].log_probs
    torch.testing.assert_close(average[1], calibrated[1, :2].mean(dim=0).log_softmax(dim=-1))
    assert all(fused.log_probs.isfinite().all() for fused in found.fuse(sources).values())


def test_forward_uses_the_chosen_gate():
    sources, found = several(20, 9), fusion()
    every, chosen = found.fuse(sources), found(sources)
    assert tuple(every) == GATES
    assert all(torch.equal(*pair) for pair in zip(chosen, every["cross"], strict=True))
    assert not torch.allclose(chosen.log_probs, every["concat_linear"].log_probs)


@pytest.mark.parametrize("make", [lambda: fusion(2), lambda: fusion(9), three])
def test_fusion_restored_from_files_is_equal(tmp_path, make):
    before = make()
    save_file(before.state_dict(), tmp_path / "gate.safetensors")
    (tmp_path / "expert.json").write_text(json.dumps(before.settings()))
    after = Fusion.from_settings(json.loads((tmp_path / "expert.json").read_text()))
    after.load_state_dict(load_file(tmp_path / "gate.safetensors"))
    assert after.settings() == before.settings() and after.choice == "cross"
    assert after.sources == before.sources
    sources = several(20, before.classes, len(before.sources))
    for name, fused in before.fuse(sources).items():
        again = after.fuse(sources)[name]
        assert torch.equal(again.log_probs, fused.log_probs) and torch.equal(again.weights, fused.weights)


def test_zero_probabilities_and_bf16_give_finite_results():
    log_p = torch.tensor([[0.0, -math.inf, -math.inf]])
    log_q = torch.tensor([[-math.inf, -1.0, -0.5]])
    for fused in fusion(3).fuse(torch.stack([log_p, log_q], dim=1).bfloat16()).values():
        assert fused.log_probs.dtype == torch.float32 and fused.log_probs.isfinite().all()


def test_results_are_equal_under_autocast():
    sources = several(20, 9)
    expected = fusion().fuse(sources)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fusion().fuse(sources)
    for name in GATES:
        assert torch.equal(found[name].log_probs, expected[name].log_probs), name


def test_a_choice_that_was_not_fitted_is_refused():
    with pytest.raises(UserError, match=r"expert\.gate\.name='moe' was not fitted; choose from average, cross"):
        Fusion(["average", "cross"], 9, choice="moe")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"name": "average", "names": 3, "classes": 9, "sources": ["a", "b"]},
        {"name": "average", "names": ["average"], "classes": "x", "sources": ["a", "b"]},
        {"name": "average", "names": ["average"], "classes": 9},
    ],
)
def test_invalid_settings_are_refused(settings):
    with pytest.raises(UserError, match="invalid settings of a gate"):
        Fusion.from_settings(settings)
