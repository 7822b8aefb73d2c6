"""A smaller demo: its explanations look at the pictures, and cannot if those are shuffled."""

from __future__ import annotations

import json

import pytest

from tests.helpers.tiny import run_mode
from trainer import commands
from trainer.metrics.baselines import OTHER
from trainer.report import pointing

pytestmark = pytest.mark.slow

SMALLER = {
    "dataset.texts_per_image": 1,
    "trainer.check_val_every_n_epoch": None,
    "trainer.num_validation_images": 2,
    "trainer.num_validation_captions": 0,
}
QUICK = {
    "trainer.test.decoding_strategy": "greedy",
    "trainer.test.best_of": 1,
    "trainer.test.metrics": "[bleu,cider]",
    "trainer.test.novelty": False,
    "trainer.test.match_images": 144,
    "dataset.shuffle_images": False,
}


@pytest.fixture
def trained(tmp_path, capsys, monkeypatch):
    """Train and test; return metrics.json and what the test printed."""
    monkeypatch.setattr(pointing, "IMAGES", 2)  # slow, and tested elsewhere, as are the report's examples
    monkeypatch.setattr(commands, "ATTENTION_EXAMPLES", 1)

    def call(name: str, **changes: object) -> tuple[dict, str]:
        own = {key.replace("__", "."): value for key, value in changes.items()}
        runs = {"trainer.exp_dir": tmp_path / "runs"}
        run_mode("train", {**runs, "dataset.root": tmp_path / "data", "name": name, **SMALLER, **own})
        capsys.readouterr()
        run_mode("test", {**runs, "pretrained_name": name, **QUICK})
        shown = capsys.readouterr().out
        metrics = json.loads((tmp_path / "runs" / name / "test" / "metrics.json").read_text(encoding="utf-8"))
        assert f"{metrics['emotion']['accuracy']:.1%}".rstrip("%") in shown
        assert metrics["emotion"]["count"] > 150 and metrics["emotion"]["majority"] < 0.2
        return metrics, shown

    return call


def test_demo_is_learned(trained, tmp_path, capsys) -> None:
    metrics, _ = trained("seen", dataset__demo_images=900, trainer__epochs=6)
    swap = metrics["looking"]["swap"]
    assert metrics["emotion"]["accuracy"] > 0.75
    assert metrics["looking"]["match"]["first"] > 0.15, "by chance 0.06"
    assert swap["accuracy"] > swap["blind"] + 0.05
    picture = {"pretrained_name": "seen", "trainer.exp_dir": tmp_path / "runs", "image": tmp_path / "data" / "samples"}
    run_mode("predict", picture)
    shown = " ".join(capsys.readouterr().out.split())  # the table wraps long reasons
    rows = json.loads((tmp_path / "runs" / "seen" / "predict" / "predictions.json").read_text(encoding="utf-8"))
    assert len(rows) == 9 and all(" ".join(row["explanation"].split()) in shown for row in rows)
    assert len({row["explanation"] for row in rows}) > 4
    assert "<img" in (tmp_path / "runs" / "seen" / "predict" / "report.html").read_text(encoding="utf-8")


def test_nothing_is_learned_from_shuffled_images(trained) -> None:
    metrics, shown = trained("shuffled", dataset__demo_images=540, dataset__shuffle_images=True, trainer__epochs=2)
    assert metrics["emotion"]["accuracy"] <= 0.25
    swap, subject = metrics["looking"]["swap"], metrics["grounding"]["kinds"]["subject"]
    assert swap["accuracy"] < swap["blind"] + 0.05 and (subject["precision"] or 0) < 0.25
    assert OTHER in metrics["baselines"]["blind"]["unbeaten"] and "do not depend on the picture" in shown
