"""Teacher, student and gate on emotion folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands.test_emotion_folder_runs import TWO, settings
from tests.helpers.folders import write_emotions
from tests.helpers.tiny import run_mode

STAGES = {
    "expert.teacher.name": "test_resnet",
    "expert.teacher.pretrained": False,
    "expert.teacher.image_size": 32,
    "expert.teacher.epochs": 10,
    "expert.teacher.lr": 0.01,
    "expert.teacher.batch_size": 8,
    "expert.student.epochs": 10,
    "expert.student.lr": 0.01,
    "expert.student.batch_size": 8,
    "dataset.gate_split": 0.4,
}
SHORT = {"trainer.epochs": 1, "trainer.check_val_every_n_epoch": 1, "trainer.num_validation_images": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Train captioner, teacher, student and gate, test, and return the run of the gate."""
    root = tmp_path_factory.mktemp("two")
    data = write_emotions(root / "pictures", TWO, {"train": 24, "val": 4, "test": 4}, order=[0, 1])
    run_mode("train", settings(root, data, **SHORT) | {"dataset.gate_split": STAGES["dataset.gate_split"]})
    keys = settings(root, data) | STAGES
    left_out = ("model.", "trainer.epochs", "dataset.train_ds.batch_size")
    keys = {key: value for key, value in keys.items() if not key.startswith(left_out)}
    base = "emotion_folder"
    run_mode("train", {**keys, "stage": "teacher"})
    student = {"stage": "student", "pretrained_name": base, "expert.student.teacher": f"{base}-teacher"}
    run_mode("train", {**keys, **student})
    run_mode("train", {**keys, "stage": "gate", "pretrained_name": f"{base}-student"})
    run = root / "runs" / f"{base}-gate"
    run_mode("test", {"pretrained_name": run})
    run_mode("predict", {"pretrained_name": run, "image": data / "test"})
    return run


def test_separable_colors_are_classified_without_error(run):
    metrics = json.loads((run / "test" / "metrics.json").read_text())
    rows = metrics["expert"]["rows"]
    assert [rows[name]["accuracy"] for name in ("teacher", "student", "probe", "oracle")] == [1, 1, 1, 1]
    assert rows["student"]["macro_f1"] == rows["student"]["valence_accuracy"] == 1
    assert "Language model and expert" in (run / "test" / "report.html").read_text()


def test_label_order_is_the_same_everywhere(run):
    labels = sorted(TWO)
    for path in (run / "logits.jsonl", run.with_name("emotion_folder-teacher") / "logits.jsonl"):
        head, *rows = map(json.loads, path.read_text().splitlines())
        assert head["labels"] == labels and rows
    for line in (run / "test" / "predictions.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["labels"] == labels
        named = Path(row["image"]).parent.name
        for source in ("student", "probe", "teacher"):
            shares = row["sources"][source]
            assert labels[shares.index(max(shares))] == named
