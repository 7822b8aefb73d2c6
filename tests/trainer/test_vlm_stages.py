"""stage=vlm from conversations to test, predict, student and gate, on emotion folders and on ArtEmis' form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from data.emotions import EMOTIONS
from data.prepare.__main__ import main as prepare
from tests.helpers.fake_model import FakeModel
from tests.helpers.folders import write_emotions
from tests.helpers.jobs import finish_job, launch_job
from tests.helpers.shards import write_tar
from tests.helpers.tiny import run_mode, write_artemis
from tests.helpers.vlm import write_vlm
from trainer.interface import EmoScribe
from trainer.prediction.other_sources import read_sources
from trainer.prediction.vlm import EmotionScorer, load_vlm, picture_loader
from trainer.prediction.vlm_features import VlmFeatures
from trainer.runs.checkpoint import best_of
from trainer.runs.seen import read_seen
from trainer.setup.device import make_accelerator
from trainer.setup.loading import load_samples
from trainer.stages.gate import _new_to_all

LABELS = ("fear", "joy")
TINY = {"expert.teacher.name": "test_resnet", "expert.teacher.pretrained": False, "expert.teacher.image_size": 32}
TINY |= {"expert.teacher.epochs": 1, "expert.teacher.batch_size": 4, "expert.student.epochs": 2}


def vlm_keys(root: Path, family: str, **files: Path) -> dict[str, object]:
    keys: dict[str, object] = {"preset": "none", "stage": "vlm", "vlm.pretrained_name": write_vlm(root / "vlm", family)}
    keys |= {"trainer.exp_dir": root / "runs", "trainer.device": "cpu", "trainer.epochs": 1, "model.optimizer.lr": 1e-3}
    for split in ("train", "validation", "test"):
        keys |= {f"dataset.{split}_ds.batch_size": 4, f"dataset.{split}_ds.num_workers": 0}
    keys |= {"trainer.test.decoding_strategy": "greedy", "trainer.test.max_length": 5, "trainer.log_every_n_steps": 1}
    return keys | files


def best(keys: dict, name: str) -> Path:
    return best_of(Path(str(keys["trainer.exp_dir"])) / name).folder


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def of_run(keys: dict, run: str, **changes: object) -> dict[str, object]:
    """Return the keys of a command on a run, which knows its data."""
    kept = ("preset", "trainer.exp_dir", "trainer.device")
    return {key: keys[key] for key in kept} | {"pretrained_name": run} | changes


# --- ArtEmis' form ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def artemis(tmp_path_factory) -> dict[str, object]:
    """Keys, after a training into runs/mine."""
    root = tmp_path_factory.mktemp("vlm-artemis")
    keys = vlm_keys(root, "qwen2_vl") | {"dataset.name": "artemis"}
    for seed, (split, count) in enumerate({"train": 8, "validation": 4, "test": 5}.items()):
        json_path, images = write_artemis(root / split, count, seed=seed)
        keys |= {f"dataset.{split}_ds.json_path": json_path, f"dataset.{split}_ds.visual_dir": images}
    run_mode("train", {**keys, "name": "mine", "trainer.epochs": 2})
    return keys


def test_a_checkpoint_holds_what_was_trained_and_the_processor(artemis):
    folder = best(artemis, "mine")
    weights = load_file(folder / "model.safetensors")
    assert len(weights) == 2 * 4 * 2 and all("lora" in name for name in weights)
    assert {"chat_template.jinja", "processor_config.json", "tokenizer.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert len(read_seen(folder)["vlm"]) == 8
    metrics = json.loads((folder / "checkpoint.json").read_text())["metrics"]
    assert {"validation/loss_answer", "validation/emotion_accuracy", "validation/emotion_temperature"} <= metrics.keys()


def test_resuming_gives_the_same_run(artemis):
    stopped = {**artemis, "name": "again", "trainer.resume": "auto"}
    run_mode("train", {**stopped, "trainer.epochs": 1, "model.optimizer.scheduler.name": "constant"})
    run_mode("train", {**stopped, "trainer.epochs": 2, "model.optimizer.scheduler.name": "constant"})
    whole = {**artemis, "name": "whole", "trainer.epochs": 2, "model.optimizer.scheduler.name": "constant"}
    run_mode("train", whole)
    first, second = (load_file(best(artemis, run) / "model.safetensors") for run in ("again", "whole"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_and_recomputed_activations_train_like_one_process(artemis, tmp_path):
    own = {**artemis, "vlm.lora.dropout": 0.0, "trainer.exp_dir": tmp_path}
    run_mode("train", {**own, "name": "one"})
    run_mode("train", {**own, "name": "less", "trainer.gradient_checkpointing": True})
    job = {**own, "mode": "train", "name": "two", "dataset.train_ds.batch_size": 2}
    finish_job(launch_job(job, tmp_path / "logs"), tmp_path / "logs")
    one, less, two = (load_file(best(own, run) / "model.safetensors") for run in ("one", "less", "two"))
    for name, weights in one.items():
        torch.testing.assert_close(less[name], weights, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(two[name], weights, rtol=1e-3, atol=1e-4)


def test_test_and_predict_score_emotions_and_write_reasons(artemis):
    runs = Path(str(artemis["trainer.exp_dir"]))
    run_mode("test", of_run(artemis, "mine"))
    tested = rows(runs / "mine" / "test")
    metrics = json.loads((runs / "mine" / "test" / "metrics.json").read_text())
    assert len(tested) == metrics["images"] == 5 and "BLEU-4" in metrics["captions"]
    assert metrics["baselines"] is not None and "figure" not in metrics["notes"]
    for row in tested:
        assert sum(row["emotion_distribution"]) == pytest.approx(1, abs=1e-4)
        assert row["emotion"] == row_label(row) and isinstance(row["explanation"], str)
    assert "vlm" in (runs / "mine" / "test" / "report.html").read_text()
    image = artemis["dataset.test_ds.visual_dir"]
    run_mode("predict", of_run(artemis, "mine", image=image))
    predicted = json.loads((runs / "mine" / "predict" / "predictions.json").read_text())
    by_name = {Path(row["image"]).name: row for row in tested}
    for row in predicted:
        same = by_name[Path(row["image"]).name]
        assert row["emotion_distribution"] == same["emotion_distribution"]
        assert row["explanation"] == same["explanation"]


def test_a_shard_gives_the_predictions_of_a_folder(artemis, tmp_path):
    runs, image = Path(str(artemis["trainer.exp_dir"])), Path(str(artemis["dataset.test_ds.visual_dir"]))
    pictures = sorted(image.rglob("*.png"))[:3]
    shard = write_tar(tmp_path / "0.tar", {path.name: path.read_bytes() for path in pictures})
    run_mode("predict", of_run(artemis, "mine", image=shard, name="shard"))
    run_mode("predict", of_run(artemis, "mine", image=image, name="folder"))
    found = [json.loads(line) for line in (runs / "shard" / "predict" / "predictions" / "0.jsonl").open()]
    expected = json.loads((runs / "folder" / "predict" / "predictions.json").read_text())
    for row, other in zip(found, expected, strict=False):
        assert {**row, "id": "", "image": ""} == {**other, "id": "", "image": ""}
    assert len(found) == 3


def row_label(row: dict) -> str:
    return EMOTIONS[max(range(9), key=row["emotion_distribution"].__getitem__)]


def test_several_emotions_one_asked_for_and_the_model_before_tuning(artemis, tmp_path):
    image = artemis["dataset.test_ds.visual_dir"]
    runs = Path(str(artemis["trainer.exp_dir"]))

    def predicted(name: str, **changes: object) -> list[dict]:
        run_mode("predict", of_run(artemis, "mine", image=image, name=name, **changes))
        return json.loads((runs / name / "predict" / "predictions.json").read_text())

    two = predicted("two", top_emotions=2)
    assert all(len(row["reasons"]) == 2 and row["reasons"][0]["emotion"] == row["emotion"] for row in two)
    awe = predicted("awe", emotion="awe")
    assert {row["emotion"] for row in awe} == {"awe"}
    before = predicted("before", **{"vlm.tuned": False})
    assert before[0]["emotion_distribution"] != two[0]["emotion_distribution"]


def test_the_python_interface_gives_the_same(artemis):
    runs = Path(str(artemis["trainer.exp_dir"]))
    model = EmoScribe.from_pretrained(runs / "mine", device="cpu")
    pictures = sorted(Path(str(artemis["dataset.test_ds.visual_dir"])).rglob("*.png"))
    run_mode("predict", of_run(artemis, "mine", image=pictures[0], name="one"))
    (row,) = json.loads((runs / "one" / "predict" / "predictions.json").read_text())
    found = model.explain([*pictures[:2]])
    assert (found[0].text, found[0].row["emotion_distribution"]) == (row["explanation"], row["emotion_distribution"])
    assert [*model.emotions(pictures[0]).values()] == row["emotion_distribution"]
    assert model.explain(pictures[0], emotion="awe").emotion == "awe"
    assert isinstance(model.ask(pictures[0], "Which colors stand out?"), str)


# --- emotion folders, with conversations by another model -----------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, object]:
    """Keys, after all steps: conversations, VLM, teacher, student, gate, test."""
    root = tmp_path_factory.mktemp("vlm-folders")
    data = write_emotions(root / "images", LABELS, {"train": 10, "val": 4, "test": 3})
    keys = vlm_keys(root, "llava") | {"dataset.name": "emotion_folder", "dataset.gate_split": 0.4}
    keys |= {f"dataset.{split}_ds.visual_dir": data / name for split, name in SPLITS.items()}
    of_data = {k: v for k, v in keys.items() if k.startswith("dataset.") and not k.endswith("batch_size")}
    dataset = [f"{key}={value}" for key, value in of_data.items()]
    with FakeModel() as model:
        words = ["instructions", "preset=none", *dataset, "--split", "train", "--split", "val", "--out", root / "talks"]
        assert prepare([str(word) for word in (*words, "--endpoint", model.url, "--model", "fake")]) == 0
    run_mode("train", {**keys, "name": "mine", "vlm.instructions": root / "talks"})
    of_data |= {"preset": "none", "trainer.exp_dir": keys["trainer.exp_dir"], "trainer.device": "cpu"}
    teacher = {**of_data, **TINY, "stage": "teacher", "name": "mine-teacher"}
    run_mode("train", teacher)
    stages = {"expert.student.teacher": "mine-teacher", "expert.student.epochs": 2, "expert.student.pool": "class"}
    run_mode("train", {**of_data, **of_run(keys, "mine", stage="student", **stages)})
    run_mode("train", {**of_data, **of_run(keys, "mine-student", stage="gate")})
    run_mode("test", of_run(keys, "mine-gate"))
    return keys


SPLITS = {"train": "train", "validation": "val", "test": "test"}


def test_conversations_by_another_model_teach_reasons(folders):
    config = best_of(Path(str(folders["trainer.exp_dir"])) / "mine").config
    assert config.dataset.explanations is True and config.dataset.texts_per_image == 3


def test_student_and_gate_beside_a_vlm(folders):
    runs = Path(str(folders["trainer.exp_dir"]))
    metrics = json.loads((runs / "mine-gate" / "test" / "metrics.json").read_text())
    assert {"language_model", "student", "probe", "teacher", "oracle"} <= metrics["expert"]["rows"].keys()
    row = rows(runs / "mine-gate" / "test")[0]
    assert row["sources"].keys() == {"language_model", "student", "probe", "teacher"} and len(row["gates"]) == 7
    alone = (runs / "mine-gate" / "logits.jsonl").read_text().splitlines()
    assert len(alone) > 9


def test_nothing_was_trained_on_the_pictures_of_the_gate(folders):
    seen = read_seen(best(folders, "mine-gate"))
    assert seen.keys() == {"vlm", "head", "teacher"}
    assert len({tuple(images.tolist()) for images in seen.values()}) == 1 and len(seen["vlm"]) < 20


def test_a_copy_of_a_training_picture_is_left_out_of_the_gate(folders, capsys):
    runs = Path(str(folders["trainer.exp_dir"]))
    config = best_of(runs / "mine-student").config.copy()
    held, trained = load_samples(config, "gate", []), load_samples(config, "train_ds", [])
    original = held.path(0).read_bytes()
    try:
        held.path(0).write_bytes(trained.path(0).read_bytes())
        found = _new_to_all(held, config)
    finally:
        held.path(0).write_bytes(original)
    assert len(found) == len(held) - 1 and held[0].id not in {sample.id for sample in found}
    assert f"the same as {trained.path(0)}" in capsys.readouterr().err
    assert _new_to_all(held, config) is held


def test_the_heads_read_the_same_tokens_in_training_and_in_any_batch(folders):
    found = best_of(Path(str(folders["trainer.exp_dir"])) / "mine-gate")
    assert found.info["expert"]["features"]["features"] == "vlm"
    config = found.config.copy()
    accelerator = make_accelerator(config)
    samples = load_samples(config, "test_ds", [])
    cached = VlmFeatures(config, found, accelerator)("test_ds", samples)
    scorer = EmotionScorer(load_vlm(config, found, torch.device("cpu")), LABELS)
    tokens = [scorer(batch)[1] for batch in picture_loader(config, samples)[0]]
    assert len(tokens) == 2
    for row, of_picture in enumerate(torch.cat(tokens)):
        assert torch.equal(cached[row].half(), of_picture.half())


def test_a_vlm_is_a_source_of_the_gate(folders):
    """Its probabilities are those of its own test, before calibration; other runs are refused."""
    runs = Path(str(folders["trainer.exp_dir"]))
    config = best_of(runs / "mine").config.copy()
    (source,) = read_sources([f"qwen={runs / 'mine'}"], config)
    assert source.seen().keys() == {"qwen"} and not source.answers
    samples = load_samples(config, "test_ds", [])
    found = source.log_probs(samples, config, make_accelerator(config), runs)
    scorer = EmotionScorer(load_vlm(config, best_of(runs / "mine"), torch.device("cpu")), LABELS)
    expected = torch.cat([scorer(batch)[0] for batch in picture_loader(config, samples)[0]])
    torch.testing.assert_close(torch.stack([found[sample.id] for sample in samples]), expected, rtol=1e-4, atol=1e-4)
    assert (runs / "logits-qwen.jsonl").is_file()
    assert read_sources([f"both={runs / 'mine-gate'}"], config)[0].seen().keys() == {
        "vlm of both",
        "head of both",
        "teacher of both",
    }
    with pytest.raises(UserError, match="classifier without texts"):
        read_sources([f"cnn={runs / 'mine-teacher'}"], config)


# --- what cannot be used ---------------------------------------------------------------------------------------------


def test_bad_settings(artemis, folders, tmp_path):
    with pytest.raises(UserError, match=r"stage=vlm needs vlm\.pretrained_name=MODEL"):
        run_mode("train", {**artemis, "name": "bad", "vlm.pretrained_name": "null"})
    with pytest.raises(UserError, match=r"instructions_train.jsonl cannot be read"):
        run_mode("train", {**artemis, "name": "bad", "vlm.instructions": tmp_path})
    (tmp_path / "instructions_train.jsonl").write_text('{"id": "1-0-categorical"}\n')
    with pytest.raises(UserError, match=r"line 1: not a conversation of"):
        run_mode("train", {**artemis, "name": "bad", "vlm.instructions": tmp_path})
    with pytest.raises(UserError, match=r"best_of is for a captioner"):
        several = {"trainer.test.best_of": 2, "trainer.test.decoding_strategy": "nucleus"}
        run_mode("test", of_run(artemis, "mine", **several))
