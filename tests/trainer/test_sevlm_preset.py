"""preset=sevlm on small random backbones: training, learning rates, resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from common.config.check import check_config, check_overrides
from common.errors import UserError
from data.collate import collate
from data.emotions import EMOTIONS
from data.loaders import CaptionDataset
from data.readers.split import read_split
from data.schema import Batch
from data.sevlm_text import SPECIAL
from model.build import SpecialTokens, build_captioner
from model.losses import loss_counts, loss_sums
from tests.helpers.tiny import ROOT, VISION, arguments, run_mode, write_splits
from trainer.runs.checkpoint import load_training
from trainer.setup.autos import resolve_auto
from trainer.setup.parts import Parts, build_parts

STEPS = 8  # of a training below: 4 epochs of 2 batches


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, object]:
    """The preset with small backbones, data and epochs; the method is unchanged."""
    keys = write_splits(tmp_path_factory.mktemp("splits"))
    for key in [key for key in keys if key.startswith(("model.mapper", "model.resampler", "model.contrastive"))]:
        del keys[key]
    for key in ("dataset.name", "dataset.max_length", "trainer.test.decoding_strategy", "trainer.test.max_length"):
        del keys[key]
    keys |= {"preset": "sevlm", "model.vision.config": {**VISION, "quick_gelu": True}, "trainer.epochs": 4}
    return keys | {"trainer.check_val_every_n_steps": 1, "trainer.checkpoint_callback_params.save_top_k": STEPS}


@pytest.fixture(scope="module")
def run(keys) -> Path:
    """A finished training with a checkpoint at every step."""
    run_mode("train", keys)
    return Path(str(keys["trainer.exp_dir"])) / "sevlm"


def config_of(keys) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT)):
        config = compose("config", overrides=check_overrides(["mode=train", *arguments(keys)]))
    check_config(config)
    return config


def batch_of(config: DictConfig, parts: Parts) -> Batch:
    samples = read_split(config.dataset, "train_ds").samples
    dataset = CaptionDataset(
        samples,
        preprocess=parts.captioner.vision.preprocess,
        template=parts.template,
        aligner=parts.aligner,
        texts_per_image=config.dataset.texts_per_image,
        seed=0,
        max_frames=1,
    )
    return collate([dataset[0, i] for i in range(len(samples))])


def checkpoints(run: Path) -> dict[int, Path]:
    return {int(folder.name.removeprefix("step-")): folder for folder in (run / "checkpoints").glob("step-*")}


def steps(run: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def test_the_preset_lacks_only_the_lexicon():
    config = config_of({"preset": "sevlm"})
    with pytest.raises(UserError, match=r"needs dataset\.vad_lexicon=FILE"):
        resolve_auto(config, has_emotions=True)
    config = config_of({"preset": "sevlm", "dataset.vad_lexicon": "nrc.txt"})
    resolve_auto(config, has_emotions=True)
    assert config.dataset.train_ds.json_path == "datasets/artemis_v2/artEmisX_cl_train.json"


def test_the_full_size_has_the_published_number_of_weights():
    """100,237,060 in the decoder's file, 17,851 in the VAD encoder, four of which are never used."""
    config = OmegaConf.to_container(config_of({"preset": "sevlm"}).model)
    tower = {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12, "quick_gelu": True}
    config["vision"] |= {"pretrained_name": None, "config": tower}
    config["text"] |= {"pretrained_name": None, "config": {"n_layer": 6}}  # distilgpt2's
    with torch.device("meta"):  # shapes without memory
        special = SpecialTokens(50257, (50259, 50260))
        captioner = build_captioner(config, vocab_size=50257 + len(SPECIAL), eos_id=50256, special=special)
    assert captioner.vision.num_tokens == 196
    decoder = [p for name, p in captioner.named_parameters() if not name.startswith(("vision.", "vad_encoder."))]
    assert sum(p.numel() for p in decoder) == 100_237_060
    assert sum(p.numel() for p in captioner.vad_encoder.parameters()) == 17_851
    assert sum(p.numel() for p in captioner.parameters() if p.requires_grad) == 100_237_060 + 17_847


def test_the_run_works_in_test_and_predict(run, keys, tmp_path):
    assert sorted(checkpoints(run)) == [*range(1, STEPS + 1)]
    used = {"preset": "none", "pretrained_name": run, "trainer.device": "cpu", "trainer.exp_dir": run.parent}
    run_mode("test", {**used, "trainer.test.metrics": "[bleu]", "trainer.test.novelty": False})
    rows = [json.loads(line) for line in (run / "test" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 5
    for row in rows:
        assert row["emotion"] is None or row["emotion"] in EMOTIONS
        assert row["emotion_text"] is not None and row["explanation"] and row["text"].startswith("the emotion is ")
    run_mode("predict", {**used, "image": keys["dataset.test_ds.visual_dir"]})
    found = json.loads((run / "predict" / "predictions.json").read_text())
    assert [row["text"] for row in found] == [row["text"] for row in rows], "the same images in the same order"


def test_losses_fall(keys, tmp_path):
    """With a higher learning rate than the published one, which is for thousands of steps."""
    quick = {"model.optimizer.lr": 4e-3, "model.optimizer.vad_lr": 8e-3, "trainer.epochs": 30}
    quick |= {"trainer.check_val_every_n_steps": None, "trainer.check_val_every_n_epoch": 30}
    quick |= {"trainer.log_every_n_steps": 1, "trainer.exp_dir": tmp_path}
    run_mode("train", {**keys, **quick})
    for loss, share in {"caption": 0.75, "contrastive": 0.9, "vad": 0.75}.items():
        found = steps(tmp_path / "sevlm", f"train/loss_{loss}")
        assert len(found) == 60
        assert sum(found[-6:]) < share * sum(found[:6]), loss


def test_both_learning_rates_fall_linearly(run):
    """Published: 2e-5, and 4e-5 for the VAD encoder; no warm-up, linear decay to zero."""
    for step in (1, STEPS // 2 + 1, STEPS):
        left = (STEPS - (step - 1)) / STEPS
        groups = load_training(checkpoints(run)[step])["optimizer"]["param_groups"]
        rates = [group["lr"] for group in groups]
        assert rates == pytest.approx([2e-5 * left, 2e-5 * left, 4e-5 * left, 4e-5 * left], rel=1e-12)
        assert all(tuple(group["betas"]) == (0.9, 0.999) and group["eps"] == 1e-6 for group in groups)
        assert all(group["weight_decay"] == 0.0 for group in groups)
    assert left == 1 / STEPS, "the rate of the last step is not zero"


def test_resuming_keeps_both_rates_and_gives_equal_weights(run, keys, tmp_path):
    """Resume from the third step and compare with the uninterrupted training."""
    start = {"pretrained_name": checkpoints(run)[3], "resume_pretrained_state": True, "trainer.exp_dir": tmp_path}
    run_mode("train", {**keys, **start})
    again, before = checkpoints(tmp_path / "sevlm"), checkpoints(run)
    assert sorted(again) == [*range(4, STEPS + 1)]
    for step in (4, STEPS):
        one, other = (load_training(folder[step])["optimizer"]["param_groups"] for folder in (again, before))
        assert one == other and one[0]["lr"] * 2 == one[2]["lr"]
    one, other = (load_file(folder[STEPS] / "model.safetensors") for folder in (again, before))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_gradients_reach_all_trained_weights(keys):
    config = config_of(keys)
    resolve_auto(config, has_emotions=True)
    torch.manual_seed(0)
    parts = build_parts(config)
    captioner, batch = parts.captioner.train(), batch_of(config, parts)
    torch.nn.init.normal_(captioner.fusion.linear.weight, std=0.02)  # zero at initialization
    assert batch.input_ids.shape[0] == 2 * len(batch.ids)
    sums, counts = loss_sums(captioner(batch), batch), loss_counts(batch)
    weights = config.model.loss_weights
    assert all(counts[name] > 0 for name in ("caption", "vad", "contrastive"))
    sum(weights[name] * value / counts[name].clamp(min=1) for name, value in sums.items()).backward()
    idle = {name for name, p in captioner.named_parameters() if p.grad is None or not p.grad.any()}
    dead = {"vad_encoder.decoder.weight", "vad_encoder.decoder.bias"}
    frozen = {name for name, p in captioner.named_parameters() if not p.requires_grad}
    assert frozen == dead | {f"vision.{name}" for name, _ in captioner.vision.named_parameters()}
    # A constant added to all three scores of the softmax has no gradient.
    assert idle - frozen <= {"contrastive.pred.8.bias"} and frozen <= idle
