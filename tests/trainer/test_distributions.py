"""Measures of label distributions against plain formulas, with zeros, and in metrics, table and report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from data.emotions import EMOTIONS
from tests.helpers.html_page import Page
from trainer.metrics.distributions import MEASURES, SMALLEST
from trainer.metrics.emotions import emotion_report
from trainer.report.page import write_test_report
from trainer.score.__main__ import main

NAMES = {"kl", "chebyshev", "clark", "canberra", "cosine", "intersection"}


def plain(p: list[float], q: list[float]) -> dict[str, float]:
    """Return the measures by Geng's formulas, a term at a time."""
    pairs = list(zip(p, q, strict=True))
    middle = [(a + b) / 2 for a, b in pairs]
    halves = [sum(a * math.log2(a / m) for a, m in zip(side, middle, strict=True) if a) for side in (p, q)]
    return {
        "js": math.sqrt(max(0.0, sum(halves) / 2)),
        "kl": sum(a * math.log(a / max(b, SMALLEST)) for a, b in pairs if a),
        "chebyshev": max(abs(a - b) for a, b in pairs),
        "clark": math.sqrt(sum((a - b) ** 2 / (a + b) ** 2 for a, b in pairs if a + b)),
        "canberra": sum(abs(a - b) / (a + b) for a, b in pairs if a + b),
        "cosine": sum(a * b for a, b in pairs) / math.hypot(*p) / math.hypot(*q),
        "intersection": sum(map(min, p, q)),
    }


def test_measures_equal_plain_formulas_on_random_distributions_with_zeros():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet([0.5] * 9, size=(2, 50))
    p[::2, :5], q[::3, 3:7] = 0, 0
    p, q = (values / values.sum(axis=1, keepdims=True) for values in (p, q))
    expected = [plain(*map(list, pair)) for pair in zip(p, q, strict=True)]
    for name, measure in MEASURES.items():
        assert measure(p, q) == pytest.approx([row[name] for row in expected], abs=1e-12), name


def test_equal_distributions_have_the_best_value_and_disjoint_ones_the_worst():
    one, other = np.array([0.4, 0.6, 0, 0]), np.array([0, 0, 0.5, 0.5])
    same = {name: measure(one, one) for name, measure in MEASURES.items()}
    assert same == pytest.approx(dict.fromkeys(MEASURES, 0.0) | {"cosine": 1.0, "intersection": 1.0}, abs=1e-12)
    apart = {name: measure(one, other) for name, measure in MEASURES.items()}
    assert apart["kl"] == pytest.approx(0.4 * math.log(0.4e12) + 0.6 * math.log(0.6e12))
    assert [apart[name] for name in ("js", "clark", "canberra", "chebyshev")] == pytest.approx([1, 2, 4, 0.6])
    assert apart["cosine"] == apart["intersection"] == 0


def test_report_has_the_mean_over_the_images_with_votes():
    felt = [[0, 0.5, 0.5, *[0] * 6], None, [3, 0, 1, *[0] * 6]]
    said = [[0.2, 0.8, *[0] * 7], [1, *[0] * 8], [0.5, 0.5, *[0] * 7]]
    found = emotion_report([1, 0, 0], said, felt)
    rows = [plain(felt[0], said[0]), plain([0.75, 0, 0.25, *[0] * 6], said[2])]
    assert {name: found[name] for name in MEASURES} == pytest.approx(
        {name: (rows[0][name] + rows[1][name]) / 2 for name in MEASURES}
    )
    assert {emotion_report([1, 0, 0], [None] * 3, felt)[name] for name in MEASURES} == {None}


def test_score_command_and_report_show_every_measure_with_its_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rng = np.random.default_rng(1)
    rows = []
    for i, shares in enumerate(rng.dirichlet([1.0] * 9, size=6)):
        text = {"explanation": "calm water", "references": ["still water"], "reference_emotions": ["awe"]}
        found = {"emotion": EMOTIONS[shares.argmax()], "emotion_distribution": [*shares], "image": f"{i}.jpg"}
        rows.append({"id": str(i), **found, **text, "histogram": [*rng.integers(0, 5, 8).tolist(), 1]})
    file = tmp_path / "predictions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert main(["--predictions", str(file), "--metrics", "bleu", "--out", str(tmp_path / "scores")]) == 0
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    for name in NAMES:
        low, high = metrics["intervals"][f"emotion.{name}"]
        assert low < metrics["emotion"][name] < high
    shown = capsys.readouterr().out
    write_test_report(rows, metrics, tmp_path / "report.html", title="Test", facts={})
    page = Page(tmp_path / "report.html").text
    for words in ("Kullback-Leibler", "Chebyshev", "Clark", "Canberra", "cosine", "intersection"):
        assert words in shown and words in page
    assert f"{metrics['emotion']['clark']:.3f}" in page
