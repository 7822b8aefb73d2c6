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
    return both(first, second), felt(label, classes)


def both(first: np.ndarray, second: np.ndarray, **others: np.ndarray) -> dict[str, np.ndarray]:
    return {"language_model": first, "student": second, **others}


def stacked(sources: dict[str, np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack([*sources.values()], axis=1))


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
    rows = both(source(gate, train_accuracy, seed=seed + 2), source(gate, 0.65, seed=seed + 3)), felt(gate)
    new = both(source(test, 0.6, seed=seed + 4), source(test, 0.65, seed=seed + 5)), felt(test)
    return rows, new


def accuracy(log_probs: torch.Tensor, shares: np.ndarray) -> float:
    return float((log_probs.argmax(dim=1).numpy() == shares.argmax(axis=1)).mean())


@pytest.mark.parametrize("seed", [0, 200])
@pytest.mark.parametrize("name", ["concat_linear", "mixture"])
def test_gate_fitted_to_leaked_predictions_trusts_the_language_model(name, seed):
    found = {}
    for kind, right in (("held out", 0.6), ("leaked", 0.95)):
        rows, (sources, shares) = leak(right, seed=seed)
        fusion, _ = fit_fusion(*rows, names=[name], choice=name, weight_decay=DECAY, seed=0)
        fused = fusion(stacked(sources))
        agrees = (fused.log_probs.argmax(dim=1).numpy() == sources["language_model"].argmax(axis=1)).mean()
        found[kind] = accuracy(fused.log_probs, shares), agrees, float(fused.weights[:, 0].mean())
    alone = accuracy(torch.from_numpy(sources["language_model"]), shares)
    assert found["leaked"][0] == pytest.approx(alone, abs=0.02) and found["leaked"][1] > 0.94
    assert found["held out"][0] > found["leaked"][0] + 0.02 and found["held out"][1] < 0.9
    assert found["leaked"][2] > found["held out"][2] + 0.1


def test_harmful_gate_is_not_chosen():
    """With nothing to learn, a large gate fits noise in few images."""
    label = labels(60, seed=3)
    rows = both(source(label, 0.6, seed=4), source(label, 0.6, seed=5)), felt(label)
    other = labels(500, seed=6)
    validation = both(source(other, 0.6, seed=7), source(other, 0.6, seed=8)), felt(other)
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
    fusion, _ = fit_fusion(*rows, weight_decay=1e9, seed=0, validation=rows)
    every = fusion.fuse(stacked(rows[0]))
    for name in set(GATES) - {"average", "mixture"}:
        torch.testing.assert_close(every[name].log_probs, every["average"].log_probs, atol=1e-4, rtol=0)
    torch.testing.assert_close(every["mixture"].weights, torch.full((300, 2), 0.5), atol=1e-4, rtol=0)


def test_order_of_images_does_not_matter():
    rows = specialists(150, seed=1)
    order = np.random.default_rng(0).permutation(150)
    fusions, reports = zip(
        *(
            fit_fusion(*part, weight_decay=DECAY, seed=3, validation=specialists(40, seed=9))
            for part in (rows, ({name: column[order] for name, column in rows[0].items()}, rows[1][order]))
        ),
        strict=True,
    )
    assert reports[0] == reports[1]
    first, second = (fusion.state_dict() for fusion in fusions)
    assert all(torch.equal(first[key], second[key]) for key in first)
    json.dumps(reports[0], allow_nan=False)


def test_temperatures_calibrate_overconfident_sources():
    sources, shares = specialists(500, seed=1)
    sharp = 3 * sources["language_model"]
    sharper = sources | {"language_model": sharp - np.log(np.exp(sharp).sum(axis=1, keepdims=True))}
    settings = {"names": ["mixture"], "choice": "mixture", "weight_decay": DECAY, "seed": 0}
    plain, report = fit_fusion(sources, shares, **settings)
    mended, other = fit_fusion(sharper, shares, **settings)
    ratio = other["temperatures"]["language_model"] / report["temperatures"]["language_model"]
    assert ratio == pytest.approx(3, rel=1e-4)
    assert other["temperatures"]["student"] == report["temperatures"]["student"]
    found = [fusion(stacked(of)).log_probs for fusion, of in ((plain, sources), (mended, sharper))]
    torch.testing.assert_close(*found, atol=1e-3, rtol=0)


def test_images_without_annotations_are_ignored_and_impossible_emotions_are_not():
    sources, shares = specialists(100, seed=1)
    sources["language_model"][:5, 0] = -np.inf
    settings = {"names": ["dynamic"], "choice": "dynamic", "weight_decay": DECAY, "seed": 0}
    expected, _ = fit_fusion(sources, shares, **settings)
    more = {name: np.concatenate([column, column[:2] * 0.5]) for name, column in sources.items()}
    votes = [*(10 * shares).tolist(), None, [0.0] * 9]
    found, report = fit_fusion(more, votes, **settings)
    assert report["rows"] == 100
    for key, value in expected.state_dict().items():
        assert value.isfinite().all()
        torch.testing.assert_close(found.state_dict()[key], value, atol=1e-5, rtol=1e-4)


# --- more than two sources -------------------------------------------------------------------------------------------


def three(images: int, *, third: float, seed: int):
    """Return two sources of which one half is right, and a third one with this accuracy."""
    label = labels(images, seed=seed)
    first, second, other = (source(label, right, seed=seed + i) for i, right in ((1, 0.5), (2, 0.5), (3, third)))
    return both(first, second, other=other), felt(label)


@pytest.mark.parametrize("name", sorted(set(GATES) - {"average"}))
def test_gate_uses_a_third_source_that_is_informative_and_ignores_a_random_one(name):
    new, weights = {}, {}
    for kind, right in (("good", 0.85), ("random", 1 / 9)):
        rows, other = (three(count, third=right, seed=seed) for count, seed in ((500, 1), (900, 50)))
        _, report = fit_fusion(*rows, names=[name], choice=name, weight_decay=DECAY, seed=0, validation=other)
        pair = [({key: part[0][key] for key in ("language_model", "student")}, part[1]) for part in (rows, other)]
        _, two = fit_fusion(*pair[0], names=[name], choice=name, weight_decay=DECAY, seed=0, validation=pair[1])
        new[kind] = report["forms"][name]["validation_nll"] - two["forms"][name]["validation_nll"]
        weights[kind] = report["forms"][name]["weights"]["other"]
        assert report["sources"]["other"]["missing"] == 0
    assert new["good"] < -0.4 and new["random"] < 0.03, "log loss against that without the third source"
    assert weights["good"] > 0.5 and weights["random"] < 0.1


def answers(label: np.ndarray, accuracy: float, *, seed: int, classes: int = 9) -> np.ndarray:
    """Return one-hot log-probabilities of a source that names one emotion."""
    said = source(label, accuracy, classes=classes, sure=20, seed=seed).argmax(axis=1)
    with np.errstate(divide="ignore"):
        return np.log(np.eye(classes)[said])


def test_answers_are_smoothed_by_the_share_of_annotators_who_agree():
    label = labels(900, seed=1)
    first, second = source(label, 0.5, seed=2), source(label, 0.5, seed=3)
    bare = answers(label, 0.7, seed=4)
    bare[:100] = np.nan
    fusion, report = fit_fusion(
        both(first, second, bare=bare), felt(label), answers=["bare"], weight_decay=DECAY, seed=0, names=["average"]
    )
    shares = felt(label)[100:]
    agreed = (np.exp(bare[100:]) * shares).sum(axis=1).mean()
    smoothed = fusion.calibrated(stacked(both(first, second, bare=bare)))[100:, 2].exp()
    assert float(smoothed.max()) == pytest.approx(agreed, abs=1e-3)
    best = min(
        (-(shares * np.log((1 - e) * np.exp(bare[100:]) + e / 9)).sum(axis=1).mean(), e)
        for e in np.linspace(0.01, 1, 100)
    )
    assert report["smoothing"]["bare"] == pytest.approx(best[1], abs=0.01)
    assert report["temperatures"]["bare"] == 1 and report["smoothing"]["student"] == 0
    assert report["sources"]["bare"]["missing"] == 100
    assert report["sources"]["bare"]["nll"] == pytest.approx(best[0], abs=1e-3), "on the images with an answer"


def test_answers_without_a_mistake_keep_a_chance_for_other_emotions():
    label = labels(40, seed=1)
    rows = both(source(label, 0.5, seed=2), source(label, 0.5, seed=3), bare=answers(label, 1.0, seed=4))
    settings = {"answers": ["bare"], "names": ["average"], "weight_decay": DECAY, "seed": 0}
    fusion, report = fit_fusion(rows, np.eye(9)[label], **settings)
    assert 0 < report["smoothing"]["bare"] < 0.1
    assert fusion.calibrated(stacked(rows)).exp().min() > 1e-4


@pytest.mark.parametrize("name", GATES)
def test_two_emotions(name):
    """Each source is right about one emotion."""
    sources, shares = specialists(400, seed=1, classes=2)
    fusion, report = fit_fusion(sources, shares, names=[name], choice=name, weight_decay=DECAY, seed=0)
    assert fusion.classes == 2 and report["chosen"] == name
    fused = fusion(stacked(sources))
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
