"""A smaller demo as a user runs it: it learns from the images, and nothing from shuffled images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.tiny import ROOT

SMALLER = [
    "dataset.demo_images=480",
    "dataset.train_ds.batch_size=16",
    "trainer.epochs=4",
    "trainer.check_val_every_n_epoch=4",
    "trainer.num_validation_images=2",
]


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "run.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("demo")


def accuracy(root: Path, name: str, *train: str) -> float:
    common = [f"trainer.exp_dir={root / 'runs'}", f"dataset.root={root / 'data'}"]
    run("mode=train", f"name={name}", *common, *SMALLER, *train)
    shown = run("mode=test", f"pretrained_name={name}", common[0], "dataset.shuffle_images=false")
    metrics = json.loads((root / "runs" / name / "test" / "metrics.json").read_text(encoding="utf-8"))
    assert f"{metrics['emotion']['accuracy']:.1%}".rstrip("%") in shown
    assert metrics["emotion"]["count"] > 250 and metrics["emotion"]["majority"] < 0.2
    return metrics["emotion"]["accuracy"]


@pytest.mark.slow
def test_demo_is_learned(root: Path) -> None:
    assert accuracy(root, "seen") > 0.45
    shown = run(
        "mode=predict", "pretrained_name=seen", f"trainer.exp_dir={root / 'runs'}", f"image={root / 'data' / 'samples'}"
    )
    rows = json.loads((root / "runs" / "seen" / "predict" / "predictions.json").read_text(encoding="utf-8"))
    shown = " ".join(shown.split())  # the table wraps long reasons
    assert len(rows) == 9 and all(" ".join(row["explanation"].split()) in shown for row in rows)
    assert len({row["explanation"] for row in rows}) > 4
    assert "<img" in (root / "runs" / "seen" / "predict" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_accuracy_is_at_chance_with_shuffled_images(root: Path) -> None:
    assert accuracy(root, "shuffled", "dataset.shuffle_images=true") <= 0.25
