"""Commands for teacher, student, gate, test and predict, one after the other, and their errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from data.emotions import EMOTIONS
from data.held_out import is_held_out
from data.schema import Sample
from model.expert.fusion import Fusion
from model.expert.gate import GATES
from model.expert.teacher import build_teacher
from model.vision import VisionEncoder
from tests.helpers.runs import assert_same_run
from tests.helpers.tiny import PARTS, run_mode, write_run, write_splits
from trainer.runs.checkpoint import Checkpoint, find_checkpoint
from trainer.runs.retention import entries
from trainer.runs.seen import read_seen, seen_in
from trainer.stages.classifier import ClassifierTask

SHARE = 0.3
OF_STAGES = {
    "expert.teacher.name": "test_resnet",
    "expert.teacher.pretrained": False,
    "expert.teacher.image_size": 32,
    "expert.teacher.epochs": 8,
    "expert.teacher.lr": 0.01,
    "expert.teacher.batch_size": 8,
    "expert.student.epochs": 12,
    "expert.student.lr": 0.01,
    "expert.student.batch_size": 16,
    "dataset.gate_split": SHARE,
    "trainer.check_val_every_n_epoch": 5,  # each draws a confusion matrix
}
BRIEF = {"expert.student.epochs": 2}


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict:
    """Keys, after training captioner, teacher, student and gate in trainer.exp_dir."""
    root = tmp_path_factory.mktemp("expert")
    keys = {**write_splits(root, train=100, val=27, test=18), **OF_STAGES}
    write_run(keys, "mine")
    keys = own(keys)
    run_mode("train", {**keys, "stage": "teacher", "trainer.exp_name": "mine-teacher"})
    student = {"stage": "student", "pretrained_name": "mine", "expert.student.teacher": "mine-teacher"}
    run_mode("train", {**keys, **student})
    run_mode("train", {**keys, "stage": "gate", "pretrained_name": "mine-student"})
    run_mode("test", {**keys, "pretrained_name": "mine-gate"})
    return keys


def own(keys: dict) -> dict:
    """Return the keys without those that a stage reads from the checkpoint or replaces by its own."""
    left_out = ("model.", "trainer.epochs", "dataset.train_ds.batch_size")
    return {key: value for key, value in keys.items() if not key.startswith(left_out)}


def runs(keys: dict) -> Path:
    return Path(keys["trainer.exp_dir"])


def checkpoint(keys: dict, name: str) -> Checkpoint:
    return find_checkpoint(name, runs(keys))


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def predict(keys: dict, name: str, **changes) -> list[dict]:
    pictures = Path(keys["dataset.test_ds.visual_dir"]) / "Style"
    run_mode("predict", {**keys, "pretrained_name": name, "image": pictures, "name": f"{name}-seen", **changes})
    return json.loads((runs(keys) / f"{name}-seen" / "predict" / "predictions.json").read_text())


# --- results ---------------------------------------------------------------------------------------------------------


def test_each_stage_writes_a_run_for_the_next_one(keys):
    found = {path.name for path in runs(keys).iterdir()}
    assert found >= {"mine", "mine-teacher", "mine-student", "mine-gate", "features"}
    for name in ("mine", "mine-student", "mine-gate"):
        assert checkpoint(keys, name).run == runs(keys) / name


def held_out(keys: dict) -> tuple[set[str], set[str]]:
    """Return the ids that are held out of training, and those of them that are no copy of a training picture."""
    entries = json.loads(Path(keys["dataset.train_ds.json_path"]).read_text())
    root = Path(keys["dataset.train_ds.visual_dir"])
    content = {id: (root / entry["image_name"]).read_bytes() for id, entry in entries.items()}
    held = {id for id in entries if is_held_out(id, SHARE)}
    trained = {content[id] for id in entries if id not in held}
    return held, {id for id in held if content[id] not in trained}


def test_no_network_was_trained_on_the_gate_split(keys):
    ids = json.loads(Path(keys["dataset.train_ds.json_path"]).read_text())
    held, new = held_out(keys)
    assert 10 < len(new) <= len(held) < 50
    lines = (runs(keys) / "mine-gate" / "logits.jsonl").read_text().splitlines()[1:]  # the gate's come first
    of_gate = [Sample(row["id"], Path(row["image"]), ()) for row in map(json.loads, lines[: len(new)])]
    assert {sample.id for sample in of_gate} == new and len(lines) == len(new) + 27
    seen = read_seen(checkpoint(keys, "mine-gate").folder)
    assert seen.keys() == {"captioner", "head", "teacher"}
    for images in seen.values():
        assert len(images) == len(ids) - len(held)
        assert not {*seen_in(of_gate).tolist()} & {*images.tolist()}


def test_labels_have_one_order_everywhere(keys):
    for path in (runs(keys) / "mine-teacher", runs(keys) / "mine-gate"):
        assert json.loads((path / "logits.jsonl").read_text().splitlines()[0])["labels"] == list(EMOTIONS)
    for name in ("mine", "mine-student", "mine-gate"):
        assert list(checkpoint(keys, name).config.dataset.labels) == list(EMOTIONS)
    for row in rows_of(runs(keys) / "mine-gate" / "test"):
        shares = row["emotion_distribution"]
        assert row["emotion"] == EMOTIONS[shares.index(max(shares))]


def test_teacher_and_heads_learn_nine_separable_emotions(keys):
    metrics = json.loads((runs(keys) / "mine-gate" / "test" / "metrics.json").read_text())
    rows = metrics["expert"]["rows"]
    assert rows["teacher"]["accuracy"] == rows["student"]["accuracy"] == rows["probe"]["accuracy"] == 1
    assert rows["language_model"]["accuracy"] < 1  # one epoch of a tiny network
    assert metrics["emotion"]["accuracy"] == rows[metrics["expert"]["gate"]["name"]]["accuracy"]
    assert rows["oracle"]["accuracy"] == 1


def test_test_reports_every_source_and_gate(keys):
    folder = runs(keys) / "mine-gate" / "test"
    for row in rows_of(folder):
        assert row["sources"].keys() == {"language_model", "student", "probe", "teacher"}
        assert row["gates"].keys() == set(GATES)
        assert row["gates"][row["gate"]["name"]] == row["emotion_distribution"]
        assert row["gate"]["weights"].keys() == {"language_model", "student"}
        assert sum(row["gate"]["weights"].values()) == pytest.approx(1, abs=2e-4)
        same = row["own"]["emotion"] == row["emotion"]
        assert not same or row["own"]["explanation"] == row["explanation"]
        likeliest = row["sources"]["language_model"].index(max(row["sources"]["language_model"]))
        assert row["own"]["emotion"] == EMOTIONS[likeliest]
    metrics = json.loads((folder / "metrics.json").read_text())["expert"]
    sources = ["majority", "language_model", "probe", "student", "teacher"]
    assert {*metrics["rows"]} == {*sources, *GATES, "oracle"}
    assert metrics["captions"]["images"] == 18
    assert metrics["differences"].keys() == {"gate", "student"}
    assert "Language model and expert" in (folder / "report.html").read_text()


def test_test_and_predict_use_the_fitted_gate(keys):
    found = checkpoint(keys, "mine-gate")
    fusion = Fusion.from_settings(found.info["expert"]["gate"])
    untrained = {name: value.clone() for name, value in fusion.state_dict().items()}
    fitted = load_file(found.folder / "gate.safetensors")
    assert any(not torch.equal(untrained[name], fitted[name]) for name in untrained if "temperatures" not in name)
    fusion.load_state_dict(fitted)
    by_file = {Path(row["image"]).name: row for row in predict(keys, "mine-gate")}
    for row in rows_of(runs(keys) / "mine-gate" / "test"):
        sources = torch.tensor([[row["sources"][name] for name in ("language_model", "student")]]).log()
        for name, gate in fusion.gates.items():
            expected = gate(sources).log_probs.exp()[0]
            torch.testing.assert_close(torch.tensor(row["gates"][name]), expected, atol=1e-4, rtol=1e-3)
        same = by_file[Path(row["image"]).name]
        assert same["emotion_distribution"] == row["emotion_distribution"]
        assert same["explanation"] == row["explanation"]


def test_without_a_gate_the_sources_are_averaged(keys):
    for row in predict(keys, "mine-student"):
        p, q = (torch.tensor(row["sources"][name]).log() for name in ("language_model", "student"))
        expected = ((p + q) / 2).softmax(dim=0)
        torch.testing.assert_close(torch.tensor(row["emotion_distribution"]), expected, atol=1e-4, rtol=1e-3)
        assert row["gate"] == {"name": "average", "weights": {"language_model": 0.5, "student": 0.5}}


def test_expert_can_be_switched_off(keys):
    alone, plain = predict(keys, "mine-gate", **{"expert.enabled": False}), predict(keys, "mine")
    assert [row["emotion_distribution"] for row in alone] == [row["emotion_distribution"] for row in plain]
    assert all("sources" not in row for row in alone)


def test_requested_emotion_is_explained(keys):
    rows = predict(keys, "mine-gate", emotion="fear", **{"trainer.overwrite": True})
    assert {row["emotion"] for row in rows} == {"fear"}


@pytest.mark.parametrize(
    "settings",
    [
        {"pool": "class", "depth": 0},
        {"features": "resampler", "pool": "mean"},
        {"grid": 1, "pool": "attention", "depth": 2},
    ],
    ids=["linear probe", "latents", "one patch"],
)
def test_without_a_teacher_only_the_plain_head_is_trained(keys, settings):
    name = f"probe-{'-'.join(map(str, settings.values()))}"
    changes = {f"expert.student.{key}": value for key, value in settings.items()}
    run_mode("train", {**keys, **BRIEF, **changes, "stage": "student", "pretrained_name": "mine", "name": name})
    heads = checkpoint(keys, name).info["expert"]["heads"]
    assert heads.keys() == {"student"} and heads["student"]["alpha"] == 0
    assert 0 < heads["student"]["validation"]["emotion_accuracy"] <= 1
    rows = predict(keys, name)
    assert all(row["sources"].keys() == {"language_model", "student"} for row in rows)


def test_probe_works_on_a_captioner_of_one_step(keys, tmp_path):
    short = {"trainer.exp_dir": tmp_path, "trainer.limit_train_batches": 1, "trainer.limit_val_batches": 1}
    small = {f"model.{part}.{key}": value for part, keys in PARTS.items() for key, value in keys.items()}
    run_mode("train", {**keys, **small, **short, "name": "bare", "trainer.epochs": 1})
    student = {"stage": "student", "pretrained_name": "bare", "trainer.exp_dir": tmp_path}
    run_mode("train", {**keys, **BRIEF, **student})
    lines = (tmp_path / "bare-student/student/metrics.jsonl").read_text().splitlines()
    kept = sum(not is_held_out(id, SHARE) for id in json.loads(Path(keys["dataset.train_ds.json_path"]).read_text()))
    assert json.loads(lines[-1])["step"] == 2 * -(-kept // 16), "all pictures in each epoch"


# --- reproducing and resuming ----------------------------------------------------------------------------------------


def test_same_seed_gives_equal_heads_and_gates(keys, tmp_path):
    both = [{**keys, **BRIEF, "trainer.exp_dir": tmp_path / name} for name in ("one", "other")]
    student = {"stage": "student", "pretrained_name": runs(keys) / "mine"}
    for own in both:
        run_mode("train", {**own, **student, "expert.student.teacher": runs(keys) / "mine-teacher"})
        run_mode("train", {**own, "stage": "gate", "pretrained_name": own["trainer.exp_dir"] / "mine-student"})
    for name in ("student.safetensors", "gate.safetensors"):
        first, second = (load_file(checkpoint(own, "mine-gate").folder / name) for own in both)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_resumed_teacher_has_equal_weights(keys, tmp_path):
    teacher = {**keys, "stage": "teacher", "trainer.exp_dir": tmp_path, "trainer.checkpoint_every_n_steps": 3}
    teacher |= {"expert.teacher.epochs": 2}
    run_mode("train", {**teacher, "name": "whole"})
    run = Path(shutil.copytree(tmp_path / "whole", tmp_path / "broken"))
    shutil.rmtree(entries(run / "checkpoints")[0].folder)  # as if killed before the last one
    (run / "logits.jsonl").unlink()
    run_mode("train", {**teacher, "name": "broken", "trainer.resume": "auto"})
    assert_same_run(run, tmp_path / "whole")
    assert (run / "logits.jsonl").read_text().splitlines()[1:] == (
        (tmp_path / "whole" / "logits.jsonl").read_text().splitlines()[1:]
    )


# --- errors ----------------------------------------------------------------------------------------------------------


def refused(keys: dict, mode: str = "train", **changes) -> str:
    with pytest.raises(UserError) as caught:
        run_mode(mode, {**keys, **changes})
    return str(caught.value)


def test_a_lone_picture_is_normalized_by_the_running_statistics():
    """As the last batch of an epoch, or after skips: batch normalization after pooling needs two values."""
    torch.manual_seed(0)
    teacher = build_teacher(name="resnet10t", classes=9, pretrained=False)[0].train()
    task = ClassifierTask(teacher, seen=torch.empty(0, dtype=torch.int64))
    many, lone = (SimpleNamespace(frames=torch.rand(n, 1, 3, 32, 32), histogram=torch.eye(9)[:n]) for n in (4, 1))
    task.sums(teacher, many)
    before = {name: value.clone() for name, value in teacher.named_buffers()}
    task.sums(teacher, lone)["annotators"].backward()
    assert teacher.training and all(p.grad is not None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.named_buffers())
    logits = task.logits(teacher, lone)
    torch.testing.assert_close(logits, teacher.eval()(lone.frames[:, 0]))


def test_gate_on_training_images_is_refused(keys):
    said = refused(keys, stage="gate", pretrained_name="mine-student", name="leaked", **{"dataset.gate_split": 0.6})
    assert "of the" in said and "images in dataset.train_ds" in said and "were trained on by the captioner" in said
    assert not (runs(keys) / "leaked").exists()


def test_configuration_errors_name_key_and_way_out(keys):
    assert "is a captioner without a head" in refused(keys, stage="gate", pretrained_name="mine", name="x")
    assert "there is no logits.jsonl" in refused(
        keys, stage="student", pretrained_name="mine", name="x", **{"expert.student.teacher": "mine"}
    )
    assert "set expert.teacher.epochs instead of trainer.epochs" in refused(
        keys, stage="teacher", name="x", **{"trainer.epochs": 3}
    )
    assert "was trained with expert.teacher.lr=0.01" in refused(
        keys,
        stage="teacher",
        **{"trainer.exp_name": "mine-teacher", "trainer.resume": "auto", "expert.teacher.lr": 0.1},
    )
    assert "already holds a run" in refused(keys, stage="gate", pretrained_name="mine-student")
    assert "holds a run of stage=gate" in refused(keys, stage="student", pretrained_name="mine", name="mine-gate")
    assert "is of a run of stage=teacher" in refused(keys, mode="test", pretrained_name="mine-teacher")
    assert "stage=student needs pretrained_name" in refused(keys, stage="student", name="x")


def test_cached_images_are_not_encoded_again(keys, monkeypatch):
    """Neither by the gate, nor by another student."""
    tokens = VisionEncoder._tokens

    def refuse_images(encoder: VisionEncoder, images: torch.Tensor) -> torch.Tensor:
        assert len(images) == 1, "the vision encoder was called"  # with one image for the number of tokens
        return tokens(encoder, images)

    monkeypatch.setattr(VisionEncoder, "_tokens", refuse_images)
    student = {"stage": "student", "pretrained_name": "mine", "expert.student.teacher": "mine-teacher"}
    run_mode("train", {**keys, **BRIEF, **student, "trainer.exp_name": "again-student"})
    run_mode("train", {**keys, "stage": "gate", "pretrained_name": "again-student", "trainer.exp_name": "again-gate"})
    with pytest.raises(AssertionError, match="encoder was called"):
        predict(keys, "mine-gate", **{"trainer.overwrite": True})
