"""The presets of VLE: published values, and a step of training with each of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from common.config.check import ROOT, check_config
from model.vle.heads import VLEForPreTraining
from tests.helpers.tiny import run_mode, write_artemis
from tests.helpers.vle import tiny_model, write_processor
from tests.helpers.vle_runs import write_rows, write_vcr
from trainer.vle.build import parameter_groups

STAGES = ("vle_pretrain", "vle_vqa", "vle_itm", "vle_pbc", "vle_vcr", "vle_emotion")


def composed(*overrides: str):
    with initialize_config_dir(config_dir=str(ROOT), version_base="1.3"):
        config = compose("config", overrides=[*overrides])
    check_config(config)
    return config


@pytest.mark.parametrize(
    ("preset", "lr", "epochs", "image_size", "text_length"),
    [("vle_vqa", 7e-6, 10, 576, 50), ("vle_vcr", 1e-5, 5, 384, 80)],
)
def test_published_values(preset, lr, epochs, image_size, text_length):
    config = composed(f"preset={preset}")
    optimizer, vle = config.model.optimizer, config.vle
    assert (optimizer.lr, optimizer.betas, optimizer.eps, optimizer.weight_decay) == (lr, [0.9, 0.98], 1e-8, 0.01)
    schedule = optimizer.scheduler
    assert (schedule.name, schedule.warmup_ratio, schedule.warmup_steps, schedule.min_lr) == ("linear", 0.1, None, 0.0)
    assert (config.trainer.epochs, vle.image_size, vle.text_length) == (epochs, image_size, text_length)
    assert (vle.pretrained_name, vle.head_lr, vle.fusion_lr) == ("hfl/vle-base", 50, 5)


def test_batches_are_about_as_large_as_published():
    size = {}
    for preset in ("vle_vqa", "vle_vcr"):
        config = composed(f"preset={preset}")
        size[preset] = config.dataset.train_ds.batch_size * config.trainer.accumulation_steps
    assert size == {"vle_vqa": round(256 / (443757 / 82783)), "vle_vcr": 128}  # questions and pictures of VQAv2's train


def test_stage_is_that_of_the_preset():
    assert {preset: composed(f"preset={preset}").stage for preset in STAGES} == {stage: stage for stage in STAGES}
    assert composed("preset=vle_vcr", "vle.vcr=qa2r").trainer.exp_name == "vle_vcr_qa2r"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """Return a folder with the files of a published checkpoint, its encoder tiny and for pictures of 32 pixels."""
    folder = write_processor(tmp_path_factory.mktemp("vle"))
    tiny_model(VLEForPreTraining, num_token_types=2).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_of_training(stage, pretrained, tmp_path):
    if stage in ("vle_itm", "vle_emotion"):
        json_path, images = write_artemis(tmp_path / "data", 6)
    else:
        json_path, images = (write_vcr if stage == "vle_vcr" else write_rows)(tmp_path, "train", 6), tmp_path / "images"
    keys = {"preset": stage, "vle.pretrained_name": pretrained, "vle.image_size": 48, "name": "x"}
    for split in ("train_ds", "validation_ds", "test_ds"):
        files = {"json_path": json_path, "visual_dir": images, "num_workers": 0, "batch_size": 2}
        keys |= {f"dataset.{split}.{key}": value for key, value in files.items()}
    keys |= {"trainer.epochs": 1, "trainer.limit_train_batches": 2, "trainer.limit_val_batches": 1}
    run_mode("train", {**keys, "trainer.exp_dir": tmp_path / "runs", "trainer.device": "cpu"})
    assert (tmp_path / "runs/x/checkpoints/step-00000001/model.safetensors").is_file()


def test_learning_rates_of_head_and_fusion():
    config = composed("preset=vle_vqa")
    groups = parameter_groups(tiny_model(VLEForPreTraining), config)
    assert sorted((round(group["lr"] / 7e-6), group["weight_decay"]) for group in groups) == [
        (1, 0.0), (1, 0.01), (5, 0.0), (5, 0.01), (50, 0.0), (50, 0.01)
    ]  # fmt: skip
