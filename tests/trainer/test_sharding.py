"""FSDP: a sharded network trains like an unsharded one and writes the same files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from common.errors import UserError
from tests.helpers.jobs import finish_job, launch_job
from tests.helpers.runs import lines, same
from tests.helpers.tiny import ROOT, run_mode, write_splits
from tests.model.test_language_families import FAMILIES
from trainer.runtime.sharding import launched_sharding

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
LOSSES = ("train/", "epoch/")
TRAINING = {
    "mode": "train",
    "model.balance": None,  # not applied with FSDP
    "dataset.train_ds.batch_size": 2,
    "dataset.train_ds.shuffle": False,
    "dataset.validation_ds.batch_size": 2,
    "dataset.texts_per_image": 1,
    "model.text.trainable": True,  # with its dropout, and its output layer tied to its words
    "trainer.accumulation_steps": 2,
    "trainer.clip_grad_norm": 1.0,
    "trainer.epochs": 2,
    "trainer.log_every_n_steps": 1,
    "trainer.checkpoint_every_n_steps": 1,
    "trainer.checkpoint_callback_params.keep_last": 9,
    "trainer.num_validation_captions": 4,
}


@pytest.fixture(scope="module")
def shipped() -> dict[str, str]:
    """The environment that `accelerate launch --config_file configs/fsdp.yaml` sets."""
    words = ["--config_file", str(ROOT / "configs/fsdp.yaml"), str(ROOT / "run.py")]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP"):
            patch.delenv(name, raising=False)
        arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
        variables = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in variables.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, object]:
    """Three batches for each of two processes; one batch has a single image, hence no false explanation."""
    keys = write_splits(tmp_path_factory.mktemp("splits"), train=12, val=5)
    (Path(keys["dataset.train_ds.visual_dir"]) / "Style" / "picture-003.png").write_bytes(b"no picture")
    return {**keys, **TRAINING}


@pytest.fixture(scope="module")
def train(keys):
    """Train with two processes; return the run and the output of the first process."""

    def call(name: str, variables: dict[str, str], **changes: object) -> tuple[Path, str]:
        own = {key.replace("__", "."): value for key, value in changes.items()}
        runs = Path(keys["trainer.exp_dir"])
        logs = runs.parent / f"logs-{name}"
        printed = finish_job(launch_job({**keys, "name": name, **own}, logs, variables=variables), logs)
        assert printed[1] == ""
        return runs / name, printed[0]

    return call


@pytest.fixture(scope="module")
def whole(train) -> Path:
    """Trained by two processes without sharding."""
    return train("whole", {})[0]


@pytest.fixture(scope="module")
def split(train, shipped) -> tuple[Path, str]:
    return train("split", shipped)


def checkpoint(run: Path, step: int) -> tuple[dict, dict]:
    """Return the weights and the training state."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    return load_file(folder / "model.safetensors"), torch.load(folder / "training.pt", weights_only=True)


def largest_difference(one: dict, other: dict) -> float:
    assert {key: value.shape for key, value in one.items()} == {key: value.shape for key, value in other.items()}
    return max((one[key] - other[key]).abs().max().item() for key in one)


# --- equal to unsharded training -------------------------------------------------------------------------------------


def test_each_process_holds_its_shard(split):
    _, printed = split
    assert "FSDP: each of 2 processes holds about 0.2 MB of 0.5 MB of weights" in printed


def test_losses_and_metrics_equal_those_of_unsharded_training(whole, split):
    expected, found = lines(whole), lines(split[0])
    expected = [{name: v for name, v in row.items() if not name.startswith("bridge/")} for row in expected]
    assert len(found) == len(expected) and found[-1]["step"] == 4
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for name in row:
            near = 1e-5 if name.startswith(LOSSES) else 1e-4
            assert row[name] == pytest.approx(other[name], rel=near, abs=1e-6), (row["step"], name)


def test_checkpoints_equal_those_of_unsharded_training(whole, split):
    for step in (1, 2, 3, 4):
        (weights, training), (expected, other) = checkpoint(split[0], step), checkpoint(whole, step)
        assert largest_difference(weights, expected) < 2e-5
        mine, theirs = training["optimizer"], other["optimizer"]
        assert mine["param_groups"] == theirs["param_groups"] and mine["state"].keys() == theirs["state"].keys()
        for index, values in mine["state"].items():
            assert all(type(value) is torch.Tensor for value in values.values())
            assert largest_difference(values, theirs["state"][index]) < 1e-6
        assert same(training["random"], other["random"])


# --- resuming and testing --------------------------------------------------------------------------------------------


def test_resumed_sharded_training_equals_the_uninterrupted_one(train, split, shipped):
    run, _ = split
    start = {"pretrained_name": run / "checkpoints/step-00000001", "resume_pretrained_state": True}
    resumed, _ = train("resumed", shipped, **start)
    assert same(list(checkpoint(resumed, 4)), list(checkpoint(run, 4)))
    assert lines(resumed)[-1] == lines(run)[-1]


def test_one_process_resumes_and_tests_a_sharded_training(keys, split, tmp_path):
    run, _ = split
    own = {**{key: value for key, value in keys.items() if key != "mode"}, "trainer.exp_dir": tmp_path, "name": "one"}
    begun = {"pretrained_name": run / "checkpoints/step-00000003", "resume_pretrained_state": True}
    run_mode("train", {**own, **begun, "trainer.epochs": 3})
    weights, training = checkpoint(tmp_path / "one", lines(tmp_path / "one")[-1]["step"])
    assert largest_difference(weights, checkpoint(run, 3)[0]) > 0 and training["optimizer"]["state"]
    run_mode("test", {"pretrained_name": run, "trainer.exp_dir": tmp_path, "trainer.test.metrics": "[bleu]"})
    assert len((tmp_path / "split/test/predictions.jsonl").read_text().splitlines()) == 5


def test_testing_is_not_sharded(split, tmp_path):
    own = {"pretrained_name": split[0], "trainer.exp_dir": tmp_path, "trainer.test.metrics": "[bleu]"}
    run_mode("test", {**own, "name": "one"})
    job = launch_job({**own, "mode": "test", "name": "two"}, tmp_path / "logs", variables=FSDP)
    finish_job(job, tmp_path / "logs")
    one, two = (tmp_path / name / "test/predictions.jsonl" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


# --- other networks --------------------------------------------------------------------------------------------------


OTHERS = {
    "sevlm": {
        "model__architecture": "sevlm",  # cross-attention inside the blocks
        "model__vision__trainable": True,
        "trainer__gradient_checkpointing": True,
    },
    "llama": {  # its own weights are frozen, low-rank updates are trained
        "model__text__config": FAMILIES["llama"],
        "model__text__trainable": False,
        "model__text__lora__r": 4,
        "model__text__lora__dropout": 0.0,
        "trainer__gradient_checkpointing": True,
    },
    "heads": {  # no trained parameter is behind a block's output
        "model__text__trainable": False,
        "model__enable_resampler_xattn": False,
        "model__mapper__trainable": False,
        "model__vad__fusion": "off",
    },
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_can_be_sharded(train, name):
    changes = {**OTHERS[name], "trainer__epochs": 1, "trainer__num_validation_captions": 0}
    runs = [train(f"{name}-{how}", variables, **changes)[0] for how, variables in (("whole", {}), ("split", FSDP))]
    (weights, _), (expected, _) = (checkpoint(run, 2) for run in runs)
    assert largest_difference(weights, expected) < 2e-5
    first = [lines(run)[0]["train/grad_norm"] for run in runs]
    assert first[0] == pytest.approx(first[1], rel=1e-4) and first[0] > 0


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "enables DeepSpeed.*MULTI_GPU"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "enables Megatron-LM.*MULTI_GPU"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "enables a parallelism_config.*MULTI_GPU"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version: 2"),
        ({**FSDP, "FSDP_VERSION": "1"}, "fsdp_version: 2.*configs/fsdp.yaml"),
        ({**FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ({**FSDP, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "trainer.gradient_checkpointing=true"),
    ],
)
def test_unsupported_launchers_are_refused(monkeypatch, keys, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    own = {key: value for key, value in keys.items() if key != "mode"}
    with pytest.raises(UserError, match=said):
        run_mode("train", {**own, "name": "refused"})
    assert not (Path(keys["trainer.exp_dir"]) / "refused").exists()


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"stage": "teacher", "precision": "no"}, "stage=teacher.*MULTI_GPU"),
        ({"stage": "caption", "precision": "fp16"}, "trainer.precision=bf16"),
    ],
)
def test_unsupported_stage_and_precision_are_refused(monkeypatch, training, said):
    for name, value in {**FSDP, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        launched_sharding(**training)


def test_one_process_is_not_sharded(monkeypatch, keys, tmp_path):
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    own = {key: value for key, value in keys.items() if key != "mode"}
    run_mode("train", {**own, "trainer.exp_dir": tmp_path, "name": "alone", "trainer.epochs": 1})
    assert json.loads((tmp_path / "alone/run.json").read_text())["starts"]
