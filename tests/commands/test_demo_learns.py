"""A smaller demo as a user runs it: its explanations look at the pictures, and cannot if those are shuffled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.tiny import ROOT
from trainer.metrics.baselines import OTHER

SMALLER = [
    "dataset.demo_images=900",
    "dataset.texts_per_image=1",
    "trainer.check_val_every_n_epoch=null",
    "trainer.num_validation_images=2",
    "trainer.num_validation_captions=0",
]
GREEDY = ["trainer.test.decoding_strategy=greedy", "trainer.test.best_of=1"]
QUICK = [*GREEDY, "trainer.test.metrics=[bleu,cider]", "trainer.test.novelty=false", "trainer.test.match_images=144"]


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "run.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("demo")


def trained(root: Path, name: str, *train: str) -> tuple[dict, str]:
    """Train and test; return metrics.json and what the test printed."""
    common = [f"trainer.exp_dir={root / 'runs'}", f"dataset.root={root / 'data'}"]
    run("mode=train", f"name={name}", *common, *SMALLER, *train)
    shown = run("mode=test", f"pretrained_name={name}", common[0], *QUICK, "dataset.shuffle_images=false")
    metrics = json.loads((root / "runs" / name / "test" / "metrics.json").read_text(encoding="utf-8"))
    assert f"{metrics['emotion']['accuracy']:.1%}".rstrip("%") in shown
    assert metrics["emotion"]["count"] > 250 and metrics["emotion"]["majority"] < 0.2
    return metrics, shown


@pytest.mark.slow
def test_demo_is_learned(root: Path) -> None:
    metrics, _ = trained(root, "seen", "trainer.epochs=6")
    swap = metrics["looking"]["swap"]
    assert metrics["emotion"]["accuracy"] > 0.75
    assert metrics["looking"]["match"]["first"] > 0.15, "by chance 0.06"
    assert swap["accuracy"] > swap["blind"] + 0.05
    picture = ["mode=predict", "pretrained_name=seen", f"trainer.exp_dir={root / 'runs'}"]
    shown = " ".join(run(*picture, f"image={root / 'data' / 'samples'}").split())  # the table wraps long reasons
    rows = json.loads((root / "runs" / "seen" / "predict" / "predictions.json").read_text(encoding="utf-8"))
    assert len(rows) == 9 and all(" ".join(row["explanation"].split()) in shown for row in rows)
    assert len({row["explanation"] for row in rows}) > 4
    assert "<img" in (root / "runs" / "seen" / "predict" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_nothing_is_learned_from_shuffled_images(root: Path) -> None:
    metrics, shown = trained(root, "shuffled", "dataset.shuffle_images=true", "trainer.epochs=2")
    assert metrics["emotion"]["accuracy"] <= 0.25
    swap, subject = metrics["looking"]["swap"], metrics["grounding"]["kinds"]["subject"]
    assert swap["accuracy"] < swap["blind"] + 0.05 and (subject["precision"] or 0) < 0.25
    assert OTHER in metrics["baselines"]["blind"]["unbeaten"] and "do not depend on the picture" in shown
