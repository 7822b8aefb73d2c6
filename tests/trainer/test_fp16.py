"""Mixed precision in fp16 with a scaled loss, as on a GPU without bf16, computed for real on the CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.gated_xattn import GatedCrossAttention
from tests.helpers.tiny import run_mode, write_splits
from trainer.loop.steps import Stepper
from trainer.stages import caption

SCALE = 2.0**12


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, object]:
    keys = write_splits(tmp_path_factory.mktemp("splits"))
    return {
        **keys,
        "name": "run",
        "trainer.epochs": 2,
        "trainer.log_every_n_steps": 1,
        "trainer.checkpoint_every_n_steps": 1,
    }


@pytest.fixture
def fp16(monkeypatch):
    """Give the training an accelerator in fp16; accelerate itself refuses that on a CPU, torch does not."""
    settings, make = {"init_scale": SCALE, "growth_interval": 1000}, caption.make_accelerator

    def in_fp16(config):
        accelerator = make(config)
        accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
        accelerator.scaler = torch.amp.GradScaler("cpu", **settings)
        return accelerator

    monkeypatch.setattr(caption, "make_accelerator", in_fp16)
    return settings


def train(keys: dict, folder: Path, **changes: object) -> Path:
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    run_mode("train", {**keys, "trainer.exp_dir": folder, **changes})
    return folder / "run"


def training_lines(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "train/loss" in line]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08}" / "model.safetensors")


def scaler_of(run: Path, step: int) -> dict:
    return torch.load(run / "checkpoints" / f"step-{step:08}" / "training.pt", weights_only=True)["scaler"]


def test_layers_compute_in_half_precision_and_weights_stay_whole(keys, fp16, tmp_path, monkeypatch):
    kinds, forward = set(), GatedCrossAttention.forward

    def spy(self, *args, **options):
        kinds.add((next(self.parameters()).dtype, torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return forward(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(GatedCrossAttention, "forward", spy)
        half = train(keys, tmp_path / "half")
    assert kinds == {(torch.float32, True, torch.float16)}
    monkeypatch.undo()
    whole = train(keys, tmp_path / "whole")
    assert all(tensor.dtype == torch.float32 for tensor in weights(half, 4).values())
    found, expected = training_lines(half), training_lines(whole)
    assert len(found) == 4
    for one, other in zip(found, expected, strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=2e-2)
        assert one["train/loss"] != other["train/loss"]
        assert one["train/grad_norm"] == pytest.approx(other["train/grad_norm"], rel=0.1), "unscaled before clipping"
    assert {scaler_of(half, step)["scale"] for step in (3, 4)} <= {SCALE} and scaler_of(whole, 4) == {}


def test_an_overflow_is_skipped_and_the_scale_halved(keys, fp16, tmp_path, monkeypatch):
    fp16["init_scale"] = 2.0**20
    taken, call = [], Stepper.__call__

    def spy(self, *args):
        before = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}
        scale, step = self.accelerator.scaler.get_scale(), call(self, *args)
        after = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        changed = any(not torch.equal(before[name], after[name]) for name in before)
        taken.append((step.taken, changed, self.accelerator.scaler.get_scale() / scale))
        return step

    monkeypatch.setattr(Stepper, "__call__", spy)
    run = train(keys, tmp_path, trainer__epochs=5)
    skipped = [step for step in taken if not step[0]]
    assert 0 < len(skipped) < len(taken) and set(skipped) == {(False, False, 0.5)}
    assert set(taken) - set(skipped) == {(True, True, 1.0)}
    last = max((run / "checkpoints").glob("step-*"))
    state = json.loads((last / "checkpoint.json").read_text())["state"]
    assert (state["overflows"], state["step"]) == (len(skipped), len(taken) - len(skipped))


def test_the_scale_grows_after_good_steps(keys, fp16, tmp_path):
    fp16["growth_interval"] = 2
    run = train(keys, tmp_path)
    assert scaler_of(run, 4)["scale"] == 4 * SCALE
    assert scaler_of(run, 4)["_growth_tracker"] == 0


def test_a_resumed_training_equals_the_unbroken_one(keys, fp16, tmp_path):
    fp16 |= {"init_scale": 2.0**18, "growth_interval": 3}  # some overflows, then growth
    settings = {"trainer__epochs": 5, "trainer__checkpoint_callback_params__keep_last": 99}
    whole = train(keys, tmp_path / "whole", **settings)
    broken = tmp_path / "broken" / whole.name
    shutil.copytree(whole, broken)
    steps = sorted((whole / "checkpoints").glob("step-*"))
    last = int(steps[-1].name.removeprefix("step-"))
    for folder in sorted((broken / "checkpoints").glob("step-*"))[3:]:
        shutil.rmtree(folder)
    (broken / "checkpoints" / "index.json").unlink()
    fp16 |= {"init_scale": 1.0}
    train(keys, tmp_path / "broken", **settings, trainer__resume="auto")
    assert scaler_of(broken, last) == scaler_of(whole, last) and scaler_of(whole, last)["scale"] != 1.0
    expected, found = weights(whole, last), weights(broken, last)
    assert len(steps) > 5 and all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_training_in_fp16_resumes_in_fp32(keys, fp16, tmp_path, monkeypatch):
    run = train(keys, tmp_path, trainer__epochs=1)
    monkeypatch.undo()
    train(keys, tmp_path, trainer__epochs=2, trainer__resume="auto")
    assert len(training_lines(run)) > 1 and scaler_of(run, 4) == {}


def test_accumulated_batches_have_one_scale_and_one_step(keys, fp16, tmp_path):
    settings = {"trainer__epochs": 1, "model__contrastive__enabled": False}
    together = train(keys, tmp_path / "together", **settings, dataset__train_ds__batch_size=8)
    apart = train(keys, tmp_path / "apart", **settings, dataset__train_ds__batch_size=4, trainer__accumulation_steps=2)
    (one,), (other,) = training_lines(together), training_lines(apart)
    assert one["train/loss"] == pytest.approx(other["train/loss"], rel=5e-3)
    assert one["train/grad_norm"] == pytest.approx(other["train/grad_norm"], rel=2e-2)
