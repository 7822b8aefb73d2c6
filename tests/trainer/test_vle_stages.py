"""The stages of VLE: training of a few steps, checkpoints, resuming, several processes, and the student's teacher."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from common.errors import UserError
from data.emotions import EMOTIONS
from data.pairs import PairBatch
from model.vle.heads import VLEForEmotion, VLEForITM, VLEForMLM, VLEForPBC, VLEForPreTraining, VLEForVQA
from model.vle.processor import VLEProcessor
from model.vle.vcr_heads import VLEForVCRQ2A, VLEForVCRQA2R
from tests.helpers.jobs import finish_job, launch_job
from tests.helpers.runs import assert_same_run, lines
from tests.helpers.tiny import run_mode, write_run, write_splits
from tests.helpers.vle import tiny_model
from tests.helpers.vle_runs import WITHOUT_DROPOUT, network_keys, train_run, vle_keys
from trainer.runs.checkpoint import best_of, find_checkpoint
from trainer.runs.retention import entries
from trainer.vle.build import parameter_groups
from trainer.vle.pretraining import PretrainTask

HEADS = {
    "vle_vqa": VLEForVQA,
    "vle_itm": VLEForITM,
    "vle_pbc": VLEForPBC,
    "vle_pretrain": VLEForPreTraining,
    "vle_vcr": VLEForVCRQ2A,
}
SHOWN = {
    "vle_vqa": {"accuracy", "loss_vqa"},
    "vle_itm": {"match_accuracy", "loss_match"},
    "vle_pbc": {"average_precision", "pointing", "loss_patches"},
    "vle_pretrain": {
        *("match_accuracy", "average_precision", "pointing"),
        *("loss_match", "loss_patches", "loss_words", "loss_object"),
    },
    "vle_vcr": {"accuracy", "loss_vcr"},
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Return the keys of a stage; all stages share data and runs."""
    root, found = tmp_path_factory.mktemp("vle"), {}

    def call(stage: str, **changes: object) -> dict[str, object]:
        if stage not in found:
            found[stage] = {**vle_keys(root, stage), "trainer.log_every_n_steps": 1}
        return found[stage] | {key.replace("__", "."): value for key, value in changes.items()}

    return call


@pytest.fixture(scope="module")
def usual(keys):
    """Return a run of a stage with its usual keys, trained once."""
    found: dict[str, Path] = {}

    def call(stage: str) -> Path:
        if stage not in found:
            found[stage] = train_run(keys(stage), stage)
        return found[stage]

    return call


@pytest.fixture(scope="module")
def plain(keys):
    """Return keys without dropout, and a run with them, trained once."""
    found: dict[str, tuple[dict[str, object], Path]] = {}

    def call(stage: str) -> tuple[dict[str, object], Path]:
        if stage not in found:
            own = keys(stage, **WITHOUT_DROPOUT)
            found[stage] = own, train_run(own, f"{stage}-plain")
        return found[stage]

    return call


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_checkpoint(str(run), run.parent, prefer="last").folder / "model.safetensors")


def validation(run: Path) -> dict[str, float]:
    """Return the last validation."""
    row = [row for row in lines(run) if "validation/loss" in row][-1]
    return {key.split("/")[1]: value for key, value in row.items() if key.startswith("validation/")}


def losses(run: Path) -> list[dict[str, float]]:
    """Return the losses of every step."""
    found = [{k: v for k, v in row.items() if k.startswith(("train/loss", "validation/loss"))} for row in lines(run)]
    return [row for row in found if row]


def assert_alike(one: Path, two: Path, **tolerance: float) -> None:
    assert len(losses(one)) == len(losses(two)) > 2
    for mine, other in zip(losses(one), losses(two), strict=True):
        assert mine == pytest.approx(other, **tolerance)


@pytest.mark.parametrize("stage", HEADS)
def test_checkpoints_load_with_from_pretrained(stage, usual):
    run = usual(stage)
    folder = find_checkpoint(str(run), run.parent).folder
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = HEADS[stage].from_pretrained(folder)
    stored, state = load_file(folder / "model.safetensors"), network.state_dict()
    assert state.keys() == stored.keys() and all(torch.equal(state[name], stored[name]) for name in state)
    processor = VLEProcessor.from_pretrained(folder)
    assert processor("a boat")["input_ids"][0] == processor.tokenizer.cls_token_id
    assert SHOWN[stage] | {"loss"} == validation(run).keys()
    steps = [row["train/loss"] for row in losses(run) if "train/loss" in row]
    assert len(steps) == 3 and all(map(math.isfinite, steps))


def test_what_is_stored_beside_the_weights(usual, keys):
    vqa, pretrain, vcr = (
        find_checkpoint(str(usual(f"vle_{name}")), Path()).folder for name in ("vqa", "pretrain", "vcr")
    )
    answers = json.loads(Path(str(keys("vle_vqa")["dataset.train_ds.json_path"])).with_name("answers.json").read_text())
    assert [*VLEForVQA.from_pretrained(vqa).config.id2label.values()] == answers
    assert VLEForPreTraining.from_pretrained(pretrain).config.object_names == ["boat", "house", "sky", "tree"]
    assert VLEForVCRQ2A.from_pretrained(vcr).config.num_token_types == 83
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for head in (VLEForITM, VLEForPBC, VLEForMLM):
            head.from_pretrained(pretrain)


def test_rationales_have_their_own_head(keys, tmp_path):
    run = train_run(keys("vle_vcr", trainer__exp_dir=tmp_path, trainer__limit_train_batches=1), "qa2r", vle__vcr="qa2r")
    VLEForVCRQA2R.from_pretrained(best_of(run).folder)
    assert any(name.startswith("vcr_qa2r_logit") for name in weights(run))


def test_seed_determines_the_run(keys, usual, tmp_path):
    one, again = usual("vle_pretrain"), train_run(keys("vle_pretrain", trainer__exp_dir=tmp_path), "again")
    assert lines(one) == lines(again)
    mine, other = weights(one), weights(again)
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    own = keys("vle_pretrain", trainer__exp_dir=tmp_path, seed=7, trainer__limit_train_batches=1)
    assert losses(train_run(own, "other"))[0] != losses(one)[0]


def test_a_resumed_run_equals_an_unbroken_one(keys, tmp_path, monkeypatch):
    """With dropout and masked words, in the middle of an epoch."""
    own = keys("vle_pretrain", trainer__exp_dir=tmp_path, trainer__epochs=2, trainer__checkpoint_every_n_steps=2)
    whole, steps, sums = train_run(own, "whole"), itertools.count(1), PretrainTask.sums

    def interrupted(task: PretrainTask, network: torch.nn.Module, batch: PairBatch) -> dict[str, torch.Tensor]:
        if next(steps) == 6:
            raise KeyboardInterrupt
        return sums(task, network, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PretrainTask, "sums", interrupted)
        train_run(own, "broken")
    assert max(entry.step for entry in entries(tmp_path / "broken" / "checkpoints")) == 4
    train_run(own, "broken", trainer__resume="auto")
    assert_same_run(tmp_path / "broken", whole)


def test_accumulated_batches_equal_a_large_one(plain):
    """Their numbers of words, regions and objects differ, so that a mean of means would not."""
    own, large = plain("vle_pretrain")
    small = train_run(own, "small", dataset__train_ds__batch_size=2, trainer__accumulation_steps=2)
    assert_alike(large, small, abs=2e-4)


@pytest.mark.parametrize("stage", ["vle_pretrain", "vle_pbc"])
def test_two_processes_train_like_one(stage, plain, tmp_path):
    own, one = plain(stage)
    job = {**own, "mode": "train", "name": "two", "dataset.train_ds.batch_size": 2, "trainer.exp_dir": tmp_path}
    _, second = finish_job(launch_job(job, tmp_path / "logs"), tmp_path / "logs")
    assert second == "", "the first process reports"
    assert_alike(one, tmp_path / "two", abs=1e-3)


def test_gradient_checkpointing_changes_nothing_but_memory(keys, usual, tmp_path):
    """The masks of dropout are the same when a layer is computed again."""
    own = keys("vle_vqa", trainer__exp_dir=tmp_path, trainer__gradient_checkpointing=True)
    assert_alike(usual("vle_vqa"), train_run(own, "less"), abs=1e-5)


def test_bf16_trains_close_to_fp32(keys, usual, tmp_path):
    run = train_run(keys("vle_pretrain", trainer__exp_dir=tmp_path, trainer__precision="bf16"), "bf16")
    assert {tensor.dtype for tensor in weights(run).values()} == {torch.float32}
    assert_alike(usual("vle_pretrain"), run, rel=0.1, abs=0.05)
    assert losses(usual("vle_pretrain")) != losses(run)


@pytest.mark.parametrize(
    ("source", "stage", "head"), [("vle_vqa", "vle_itm", "itm_score"), ("vle_pretrain", "vle_pbc", "")]
)
def test_another_stage_goes_on_from_a_run(source, stage, head, keys, usual, tmp_path):
    """A head that the run lacks is new, with a warning; frozen towers stay as they are."""
    before = weights(usual(source))
    own = keys(stage, trainer__exp_dir=tmp_path, vle__pretrained_name=usual(source), vle__freeze="towers")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = train_run(own, "next")
    said = [str(warning.message) for warning in caught if "has no weights of" in str(warning.message)]
    assert [text.split("has no weights of ")[1].split(":")[0] for text in said] == [head] * bool(head)
    after = weights(run)
    for name, tensor in before.items():
        if name.startswith(("vle.vision_model.", "vle.text_model.")):
            assert torch.equal(after[name], tensor), name
    assert not torch.equal(after["vle.image_projection_layer.weight"], before["vle.image_projection_layer.weight"])
    assert (after["vle.image_projection_layer.weight"] - before["vle.image_projection_layer.weight"]).abs().max() < 0.02
    if head:  # no weight of it is the old run's
        assert not any(name.startswith(head) for name in before)


def test_pretraining_goes_on_with_other_objects(keys, usual, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = Path(str(keys("vle_pretrain")["dataset.train_ds.json_path"])).read_text().replace('"boat"', '"ship"')
    path.write_text(rows.replace('"name": "sky"', '"name": "ship"'))
    own = keys("vle_pretrain", trainer__exp_dir=tmp_path, vle__pretrained_name=usual("vle_pretrain"))
    with pytest.warns(UserWarning, match="no weights of mpc_classifier"):
        run = train_run(own, "next", dataset__train_ds__json_path=path)
    assert VLEForPreTraining.from_pretrained(best_of(run).folder).config.object_names == ["house", "ship", "tree"]


def test_parameters_have_six_groups():
    network = tiny_model(VLEForVQA)
    config = OmegaConf.create({
        "vle": {"head_lr": 50.0, "fusion_lr": 5.0}, "model": {"optimizer": {"lr": 1e-5, "weight_decay": 0.01}}
    })  # fmt: skip
    groups = parameter_groups(network, config)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {
        names[id(parameter)]: (round(group["lr"] / 1e-5), group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    assert len(groups) == 6 and len({*found.values()}) == 6
    assert sum(len(group["params"]) for group in groups) == len(names) == len(found)
    vision, fusion = "vle.vision_model.vision_model.", "vle.cross_modal_text_layers.1."
    expected = {
        "vqa_classifier.0.weight": (50, 0.01),
        "vqa_classifier.1.weight": (50, 0.01),  # the norm in the head decays, as published
        "vqa_classifier.1.bias": (50, 0.0),
        f"{fusion}attention.self.query.weight": (5, 0.01),
        f"{fusion}attention.self.query.bias": (5, 0.0),
        f"{fusion}crossattention.output.LayerNorm.weight": (5, 0.0),
        "vle.cross_modal_image_pooler.dense.weight": (5, 0.01),
        "vle.text_projection_layer.weight": (1, 0.01),
        "vle.token_type_embeddings.weight": (1, 0.01),
        "vle.text_model.embeddings.word_embeddings.weight": (1, 0.01),
        "vle.text_model.encoder.LayerNorm.weight": (1, 0.0),
        f"{vision}pre_layrnorm.weight": (1, 0.0),
        f"{vision}post_layernorm.weight": (1, 0.0),
        f"{vision}encoder.layers.0.layer_norm1.weight": (1, 0.0),
        f"{vision}encoder.layers.0.layer_norm2.bias": (1, 0.0),
        f"{vision}embeddings.class_embedding": (1, 0.01),
    }
    assert {name: found[name] for name in expected} == expected


# --- emotions --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paintings(tmp_path_factory) -> dict[str, object]:
    """Keys of a captioner."""
    return write_splits(tmp_path_factory.mktemp("paintings"), train=8, val=4, test=5)


@pytest.fixture(scope="module")
def emotion_keys(paintings) -> dict[str, object]:
    """Keys of stage=vle_emotion on the same paintings."""
    own = {key: value for key, value in paintings.items() if key.startswith(("dataset.", "preset", "trainer."))}
    root = Path(str(paintings["trainer.exp_dir"])).parent
    own |= network_keys(root) | {"trainer.exp_dir": root / "runs", "trainer.log_every_n_steps": 1}
    return own | {"stage": "vle_emotion"}


@pytest.fixture(scope="module")
def emotions(emotion_keys) -> Path:
    return train_run(emotion_keys, "feel")


def test_emotions_are_trained_with_and_without_reasons(emotion_keys, emotions, tmp_path):
    folder = find_checkpoint(str(emotions), Path()).folder
    assert [*VLEForEmotion.from_pretrained(folder).config.id2label.values()] == list(EMOTIONS)
    found = validation(emotions)
    assert {"emotion_accuracy", "emotion_nll", "emotion_temperature", "loss_emotion", "loss"} <= found.keys()
    assert found["loss_emotion"] == pytest.approx(found["emotion_nll"], abs=1e-3)
    own = {**emotion_keys, "trainer.exp_dir": tmp_path}
    own |= {"trainer.checkpoint_callback_params.monitor": "val_emotion_accuracy"}
    asked = train_run(own, "asked", dataset__explanations=False)
    assert losses(asked) == losses(train_run(own, "none", vle__reasons=0.0)) != losses(emotions)


def test_pictures_without_emotions_are_refused(emotion_keys, tmp_path):
    with pytest.raises(UserError, match=r"stage=vle_emotion needs emotions, and the images of dataset\.train_ds"):
        train_run({**emotion_keys, "trainer.exp_dir": tmp_path}, "x", dataset__emotions=False)


def test_a_student_learns_from_the_logits(emotion_keys, emotions, paintings):
    """They stand in the expert's table as those of a teacher."""
    head, *rows = map(json.loads, (emotions / "logits.jsonl").read_text().splitlines())
    assert head["labels"] == list(EMOTIONS) and len(rows) == 8 + 4 + 5
    exp_dir = emotion_keys["trainer.exp_dir"]
    keys = {**paintings, "trainer.exp_dir": exp_dir}
    write_run(keys, "captioner")
    own = {key: value for key, value in keys.items() if not key.startswith(("model.", "trainer.epochs"))}
    own.pop("dataset.train_ds.batch_size")
    student = {"stage": "student", "pretrained_name": "captioner", "expert.student.teacher": "feel"}
    run_mode("train", {**own, **student, "expert.student.epochs": 1, "name": "student"})
    run_mode("test", {**own, "pretrained_name": "student"})
    folder = Path(str(exp_dir)) / "student" / "test"
    assert "teacher" in json.loads((folder / "metrics.json").read_text())["expert"]["rows"]
    logits = {row["image"]: torch.tensor(row["teacher"]) for row in rows[12:]}
    temperature = validation(emotions)["emotion_temperature"]
    for row in map(json.loads, (folder / "predictions.jsonl").read_text().splitlines()):
        expected = (logits[Path(row["image"]).name] / temperature).softmax(0)
        torch.testing.assert_close(torch.tensor(row["sources"]["teacher"]), expected, atol=1e-4, rtol=1e-3)


def test_logits_are_completed_after_an_interruption(emotion_keys, emotions, tmp_path):
    run = Path(shutil.copytree(emotions, tmp_path / "feel"))
    rows = (run / "logits.jsonl").read_text().splitlines(keepends=True)
    (run / "logits.jsonl").write_text("".join(rows[:5]))
    train_run({**emotion_keys, "trainer.exp_dir": tmp_path}, "feel", trainer__resume="auto")
    assert sorted((run / "logits.jsonl").read_text().splitlines()) == sorted("".join(rows).splitlines())
