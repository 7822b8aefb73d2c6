"""Gates fitted to held-out and leaked predictions, and invariances of the fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from common.errors import UserError
from model.expert.gate import GATES
from trainer.stages.fit_gate import fit_fusion

DECAY = 10.0


def source(label: np.ndarray, accuracy: np.ndarray | float, *, classes: int = 9, sure: float = 3.0, seed: int):
    """Return log-probabilities (N, C) that are right with `accuracy`, of each image or of all."""
    rng = np.random.default_rng(seed)
    wrong = (label + rng.integers(1, classes, size=len(label))) % classes
    said = np.where(rng.random(len(label)) < accuracy, label, wrong)
    scores = 0.8 * rng.normal(size=(len(label), classes))
    scores[np.arange(len(label)), said] += sure
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def felt(label: np.ndarray, classes: int = 9) -> np.ndarray:
    """Return shares with more than half on the label."""
    return np.eye(classes)[label] * 0.8 + 0.2 / classes


def labels(images: int, *, classes: int = 9, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(classes, size=images)


def specialists(images: int, *, seed: int, classes: int = 9):
    """Return two sources, each right about one half of the emotions."""
    label = labels(images, classes=classes, seed=seed)
    low = label < classes / 2
    first = source(label, np.where(low, 0.9, 0.2), classes=classes, seed=seed + 1)
    second = source(label, np.where(low, 0.2, 0.9), classes=classes, seed=seed + 2)
    return first, second, felt(label, classes)


def test_learned_gates_beat_sources_that_specialize_in_different_emotions():
    fusion, report = fit_fusion(
        *specialists(1500, seed=1), weight_decay=DECAY, seed=0, validation=specialists(1500, seed=11)
    )
    sources = [report["sources"][name] for name in ("language_model", "student")]
    best = max(found["validation_accuracy"] for found in sources)
    average = report["forms"]["average"]
    for name in set(GATES) - {"average"}:
        form = report["forms"][name]
        assert form["validation_accuracy"] > best + 0.05, name
        assert form["validation_nll"] < min(found["validation_nll"] for found in sources), name
    assert report["forms"]["concat_linear"]["validation_accuracy"] > average["validation_accuracy"] + 0.02
    assert report["chosen"] != "average" and fusion.choice == report["chosen"]
    assert "least log loss of 7 forms on 1500 validation images" in report["why"]
    assert report["forms"]["average"]["parameters"] == 0 and report["forms"]["concat_linear"]["parameters"] == 171


def leak(train_accuracy: float, *, seed: int):
    """Return a language model with this accuracy on the gate's images and 0.60 on new ones, and an expert with 0.65."""
    gate, test = labels(1500, seed=seed), labels(4000, seed=seed + 1)
    rows = source(gate, train_accuracy, seed=seed + 2), source(gate, 0.65, seed=seed + 3), felt(gate)
    new = source(test, 0.6, seed=seed + 4), source(test, 0.65, seed=seed + 5), felt(test)
    return rows, new


def accuracy(log_probs: torch.Tensor, shares: np.ndarray) -> float:
    return float((log_probs.argmax(dim=1).numpy() == shares.argmax(axis=1)).mean())


@pytest.mark.parametrize("seed", [0, 200])
@pytest.mark.parametrize("name", ["concat_linear", "mixture"])
def test_gate_fitted_to_leaked_predictions_trusts_the_language_model(name, seed):
    found = {}
    for kind, right in (("held out", 0.6), ("leaked", 0.95)):
        rows, (log_p, log_q, shares) = leak(right, seed=seed)
        fusion, _ = fit_fusion(*rows, names=[name], choice=name, weight_decay=DECAY, seed=0)
        fused = fusion(torch.from_numpy(log_p), torch.from_numpy(log_q))
        agrees = (fused.log_probs.argmax(dim=1).numpy() == log_p.argmax(axis=1)).mean()
        found[kind] = accuracy(fused.log_probs, shares), agrees, float(fused.weight.mean())
    alone = accuracy(torch.from_numpy(log_p), shares)
    assert found["leaked"][0] == pytest.approx(alone, abs=0.02) and found["leaked"][1] > 0.94
    assert found["held out"][0] > found["leaked"][0] + 0.02 and found["held out"][1] < 0.9
    assert found["leaked"][2] > found["held out"][2] + 0.1


def test_harmful_gate_is_not_chosen():
    """With nothing to learn, a large gate fits noise in few images."""
    label = labels(60, seed=3)
    rows = source(label, 0.6, seed=4), source(label, 0.6, seed=5), felt(label)
    other = labels(500, seed=6)
    validation = source(other, 0.6, seed=7), source(other, 0.6, seed=8), felt(other)
    _, report = fit_fusion(*rows, names=["bilinear"], weight_decay=1e-3, seed=0, validation=validation)
    assert report["forms"]["bilinear"]["nll"] < report["forms"]["average"]["nll"]
    assert report["chosen"] == "average"
    _, report = fit_fusion(*rows, names=["bilinear"], weight_decay=1e-3, seed=0)
    assert report["chosen"] == "average" and "in 5 folds" in report["why"] and report["validation_rows"] == 0
    forms = report["forms"]
    assert forms["bilinear"]["crossed_nll"] > forms["average"]["crossed_nll"] > forms["bilinear"]["nll"]


def test_few_validation_images_are_ignored():
    few = specialists(17, seed=3)
    _, report = fit_fusion(*specialists(200, seed=1), names=["mixture"], weight_decay=DECAY, seed=0, validation=few)
    assert report["validation_rows"] == 0 and "in 5 folds" in report["why"]


def test_weight_decay_leads_to_the_average_and_not_to_zero():
    rows = specialists(300, seed=1)
    log_p, log_q = (torch.from_numpy(v).float() for v in rows[:2])
    fusion, _ = fit_fusion(*rows, weight_decay=1e9, seed=0, validation=rows)
    every = fusion.fuse(log_p, log_q)
    for name in set(GATES) - {"average", "mixture"}:
        torch.testing.assert_close(every[name].log_probs, every["average"].log_probs, atol=1e-4, rtol=0)
    torch.testing.assert_close(every["mixture"].weight, torch.full((300,), 0.5), atol=1e-4, rtol=0)


def test_order_of_images_does_not_matter():
    rows = specialists(150, seed=1)
    order = np.random.default_rng(0).permutation(150)
    fusions, reports = zip(
        *(
            fit_fusion(*part, weight_decay=DECAY, seed=3, validation=specialists(40, seed=9))
            for part in (rows, [column[order] for column in rows])
        ),
        strict=True,
    )
    assert reports[0] == reports[1]
    first, second = (fusion.state_dict() for fusion in fusions)
    assert all(torch.equal(first[key], second[key]) for key in first)
    json.dumps(reports[0], allow_nan=False)


def test_temperatures_calibrate_overconfident_sources():
    log_p, log_q, shares = specialists(500, seed=1)
    sharp = 3 * log_p - np.log(np.exp(3 * log_p).sum(axis=1, keepdims=True))
    plain, report = fit_fusion(log_p, log_q, shares, names=["mixture"], choice="mixture", weight_decay=DECAY, seed=0)
    mended, other = fit_fusion(sharp, log_q, shares, names=["mixture"], choice="mixture", weight_decay=DECAY, seed=0)
    ratio = other["temperatures"]["language_model"] / report["temperatures"]["language_model"]
    assert ratio == pytest.approx(3, rel=1e-4)
    assert other["temperatures"]["student"] == report["temperatures"]["student"]
    found = [
        fusion(torch.from_numpy(first), torch.from_numpy(log_q)).log_probs
        for fusion, first in ((plain, log_p), (mended, sharp))
    ]
    torch.testing.assert_close(*found, atol=1e-3, rtol=0)


def test_images_without_annotations_are_ignored_and_impossible_emotions_are_not():
    log_p, log_q, shares = specialists(100, seed=1)
    log_p[:5, 0] = -np.inf
    expected, _ = fit_fusion(log_p, log_q, shares, names=["dynamic"], choice="dynamic", weight_decay=DECAY, seed=0)
    more = [np.concatenate([column, column[:2] * 0.5]) for column in (log_p, log_q)]
    votes = [*(10 * shares).tolist(), None, [0.0] * 9]
    found, report = fit_fusion(*more, votes, names=["dynamic"], choice="dynamic", weight_decay=DECAY, seed=0)
    assert report["rows"] == 100
    for key, value in expected.state_dict().items():
        assert value.isfinite().all()
        torch.testing.assert_close(found.state_dict()[key], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", GATES)
def test_two_emotions(name):
    """Each source is right about one emotion."""
    log_p, log_q, shares = specialists(400, seed=1, classes=2)
    fusion, report = fit_fusion(log_p, log_q, shares, names=[name], choice=name, weight_decay=DECAY, seed=0)
    assert fusion.classes == 2 and report["chosen"] == name
    fused = fusion(torch.from_numpy(log_p), torch.from_numpy(log_q))
    assert fused.log_probs.shape == (400, 2)
    assert report["forms"][name]["accuracy"] == pytest.approx(accuracy(fused.log_probs, shares))


def test_average_is_always_fitted_and_forms_keep_their_order():
    rows = specialists(100, seed=1)
    fusion, report = fit_fusion(*rows, names=["cross", "concat_linear"], choice="mixture", weight_decay=DECAY, seed=0)
    assert list(fusion.gates) == list(report["forms"]) == ["average", "concat_linear", "mixture", "cross"]
    assert report["why"] == "expert.gate.name=mixture"


def test_too_few_images_and_unknown_forms_are_refused():
    with pytest.raises(UserError, match=r"17 images .* 9 emotions, which needs 18: .*dataset\.gate_split=0"):
        fit_fusion(*specialists(17, seed=1), weight_decay=DECAY, seed=0)
    for more in ({"names": ["magic"]}, {"choice": "magic"}):
        with pytest.raises(UserError, match=r"expert\.gate\.name='magic' is unknown"):
            fit_fusion(*specialists(50, seed=1), weight_decay=DECAY, seed=0, **more)
