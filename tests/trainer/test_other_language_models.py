"""Whole commands with another language model than GPT-2."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.tiny import run_mode, write_pictures, write_splits
from tests.model.test_language_families import FAMILIES
from trainer.runs.retention import entries


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, object]:
    keys = write_splits(tmp_path_factory.mktemp("splits"))
    settings = {"model.text.config": FAMILIES["llama"], "model.text.lora.r": 4, "trainer.checkpoint_every_n_steps": 1}
    settings |= {"model.optimizer.scheduler.name": "constant", "model.optimizer.scheduler.warmup_steps": 0}
    return {**keys, **settings, "model.vad.enabled": True, "trainer.test.decoding_strategy": "beam"}


@pytest.fixture(scope="module")
def run(keys, tmp_path_factory):
    """Trained for two epochs."""
    folder = tmp_path_factory.mktemp("runs")
    run_mode("train", {**keys, "trainer.exp_dir": folder, "name": "whole", "trainer.epochs": 2})
    return folder / "whole"


def weights(run) -> dict[str, torch.Tensor]:
    return load_file(entries(run / "checkpoints")[0].folder / "model.safetensors")


def test_resumed_training_has_equal_weights(run, keys, tmp_path):
    again = {**keys, "trainer.exp_dir": tmp_path, "name": "again", "trainer.resume": "auto"}
    run_mode("train", {**again, "trainer.epochs": 1})
    run_mode("train", {**again, "trainer.epochs": 2})
    one, other = weights(run), weights(tmp_path / "again")
    assert one.keys() == other.keys() and any("lora_B" in name for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_trained_run_is_tested_and_predicts(run, keys, tmp_path):
    run_mode("test", {"pretrained_name": run, **{key: keys[key] for key in keys if key.startswith("dataset.test_ds")}})
    rows = [json.loads(line) for line in (run / "test/predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and all(abs(sum(row["emotion_distribution"]) - 1) < 1e-5 for row in rows)
    write_pictures(tmp_path, 2)
    run_mode("predict", {"pretrained_name": run, "image": tmp_path})
    assert len(json.loads((run / "predict/predictions.json").read_text())) == 2
