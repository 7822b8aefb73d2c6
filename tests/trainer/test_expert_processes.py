"""Two processes train a teacher and a student like one process on the same batches, and fit the same gate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.jobs import finish_job, launch_job
from tests.helpers.tiny import run_mode, write_run, write_splits
from tests.trainer.test_expert_stages import own
from trainer.runs.bundle import HEADS
from trainer.runs.checkpoint import best_of, find_checkpoint
from trainer.runs.logits import LOGITS

# No batch norm, whose statistics are those of a process.
TEACHER = {"name": "test_vit", "pretrained": False, "image_size": 32, "epochs": 2, "lr": 0.001}
STUDENT = {"epochs": 2, "lr": 0.001, "dropout": 0.0}  # dropout would differ between processes
BATCH = 8


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict:
    """Keys of the stages, with a trained captioner."""
    keys = write_splits(tmp_path_factory.mktemp("expert"), train=16, val=8, test=5)
    run = write_run(keys, "captioner")
    keys = own(keys) | {f"expert.teacher.{key}": value for key, value in TEACHER.items()}
    return keys | {f"expert.student.{key}": value for key, value in STUDENT.items()} | {"pretrained_name": run}


def train(keys: dict, stage: str, logs: Path, **more: object) -> tuple[Path, Path]:
    """Return the runs of one process and of two."""
    keys = {key: value for key, value in keys.items() if stage == "student" or key != "pretrained_name"}
    keys |= {key.replace("__", "."): value for key, value in more.items()} | {"stage": stage}
    one, two = (f"{stage}-of-{count}" for count in ("one", "two"))
    run_mode("train", {**keys, "trainer.exp_name": one, f"expert.{stage}.batch_size": BATCH})
    job = {**keys, "mode": "train", "trainer.exp_name": two, f"expert.{stage}.batch_size": BATCH // 2}
    _, second = finish_job(launch_job(job, logs), logs)
    assert second == "", "the first process speaks"
    root = Path(keys["trainer.exp_dir"])
    return root / one, root / two


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def figures(run: Path) -> list[dict[str, float]]:
    """Return the metrics of every validation."""
    lines = rows(run / "metrics.jsonl")
    found = [{key: row[key] for key in row if key.startswith("validation/")} for row in lines]
    return [row for row in found if row]


def assert_alike(one: Path, two: Path) -> None:
    assert len(figures(one)) == len(figures(two)) > 1
    for mine, other in zip(figures(one), figures(two), strict=True):
        assert mine == pytest.approx(other, abs=1e-4)


def test_two_processes_train_like_one(keys, tmp_path):
    one, two = teachers = train(keys, "teacher", tmp_path / "teacher")
    assert_alike(*teachers)
    logits = [{(row["id"], row["digest"]): row["teacher"] for row in rows(run / LOGITS)[1:]} for run in teachers]
    assert len(logits[1]) == 16 + 8 + 5 == len(rows(two / LOGITS)) - 1, "every picture, once"
    for picture, values in logits[0].items():
        assert logits[1][picture] == pytest.approx(values, abs=1e-3)

    students = train(keys, "student", tmp_path / "student", expert__student__teacher=one)
    for head in ("student", "probe"):
        assert_alike(*(run / head for run in students))
    states = [load_file(find_checkpoint(run, run.parent).folder / HEADS) for run in students]
    assert states[0].keys() == states[1].keys()
    for key, weight in states[0].items():
        torch.testing.assert_close(weight, states[1][key], atol=1e-3, rtol=0)
    assert best_of(two).folder.name == best_of(one).folder.name

    entries = json.loads(Path(keys["dataset.validation_ds.json_path"]).read_text(encoding="utf-8"))
    unseen = tmp_path / "unseen.json"
    thrice = {f"new-{id}-{i}": entry for id, entry in entries.items() for i in range(3)}
    unseen.write_text(json.dumps(thrice), encoding="utf-8")
    gate = {**keys, "stage": "gate", "pretrained_name": students[0], "dataset.validation_ds.json_path": unseen}
    run_mode("train", {**gate, "trainer.exp_name": "gate-of-one"})
    _, second = finish_job(launch_job({**gate, "mode": "train", "trainer.exp_name": "gate-of-two"}, tmp_path), tmp_path)
    assert second == ""
    one, two = (find_checkpoint(one.parent / f"gate-of-{count}", one.parent).folder for count in ("one", "two"))
    assert (one / "gate.safetensors").read_bytes() == (two / "gate.safetensors").read_bytes()
