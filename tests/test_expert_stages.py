"""Teacher, student, gate, test and predict, one after the other, as commands; and what each refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.held_out import identity, is_held_out
from model.expert.gate import GATES
from tests.tiny import run_mode, write_splits
from trainer.checkpoint import find_checkpoint
from trainer.expert.logits import read_logits
from trainer.expert.seen import read_seen

SMALL = {
    "expert.teacher.name": "test_resnet",
    "expert.teacher.pretrained": False,
    "expert.teacher.image_size": 32,
    "expert.teacher.epochs": 2,
    "expert.teacher.lr": 0.01,
    "expert.student.epochs": 3,
    "expert.student.batch_size": 16,
    "dataset.gate_split": 0.3,
    "name": "mine",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Keys of a captioner, its teacher, its student and its gate, which lie below trainer.exp_dir."""
    root = tmp_path_factory.mktemp("expert")
    keys = {**write_splits(root, train=100, val=27, test=9), **SMALL}
    del keys["name"]
    run_mode("train", {**keys, "name": "mine"})
    run_mode("train", {**own(keys), "stage": "teacher", "trainer.exp_name": "mine-teacher"})
    of_stage = {**own(keys), "stage": "student", "pretrained_name": "mine"}
    run_mode("train", {**of_stage, "expert.student.teacher": "mine-teacher"})
    run_mode("train", {**own(keys), "stage": "gate", "pretrained_name": "mine-student"})
    return keys


def own(keys: dict) -> dict:
    """Without what a stage takes from the checkpoint, or has settings of its own for."""
    left_out = ("model.", "trainer.epochs", "dataset.train_ds.batch_size")
    return {key: value for key, value in keys.items() if not key.startswith(left_out)}


def runs(keys: dict) -> Path:
    return Path(keys["trainer.exp_dir"])


def test_each_stage_leaves_a_run_that_the_next_one_names(trained):
    assert sorted(path.name for path in runs(trained).iterdir() if path.name != "features") == [
        *("mine", "mine-gate", "mine-student", "mine-teacher"),
    ]


def test_the_split_of_the_gate_was_seen_by_none(trained):
    ids = json.loads(Path(trained["dataset.train_ds.json_path"]).read_text())
    held = {id for id in ids if is_held_out(id, 0.3)}
    assert 10 < len(held) < 50
    folder = find_checkpoint("mine-gate", runs(trained)).folder
    seen = read_seen(folder)
    assert seen.keys() == {"captioner", "head", "teacher"}
    of_gate = {key for key in read_logits(runs(trained) / "mine-gate" / "logits.jsonl", labels()) if key[0] in held}
    assert len(of_gate) == len(held)
    from types import SimpleNamespace

    for images in seen.values():
        assert len(images) == len(ids) - len(held)
        assert not {identity(SimpleNamespace(id=id, path=Path(name))) for id, name in of_gate} & {*images.tolist()}


def labels():
    from data.emotions import EMOTIONS

    return EMOTIONS


def test_predictions_say_what_each_source_says(trained):
    run_mode("test", {**own(trained), "pretrained_name": "mine-gate"})
    folder = runs(trained) / "mine-gate" / "test"
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["sources"].keys() == {"language_model", "student", "probe"}
        assert row["gates"].keys() == set(GATES)
        used = row["gates"][row["gate"]["name"]]
        assert used == row["emotion_distribution"]
        assert row["emotion"] == labels()[used.index(max(used))]
        assert row["own"]["emotion"] in labels()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"language_model", "student", "probe", "average", "oracle"} <= metrics["expert"]["rows"].keys()
    assert "Language model and expert" in (folder / "report.html").read_text()
