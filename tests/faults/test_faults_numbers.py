"""NaN or infinite losses, gradients and weights: the message, the checkpoints, and resuming."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from tests.helpers.tiny import make_captioner, make_template, run_mode, write_splits
from tests.trainer.test_trainer import contents, make_trainer
from trainer.loop.steps import MOST_SKIPPED
from trainer.runs.retention import entries


@pytest.fixture
def trainer(tmp_path):
    captioner = make_captioner(make_template(tmp_path / "tokenizer"), gates=0.7)
    return make_trainer(tmp_path, captioner, batch_size=2, count=8)


def spoil(parameter: torch.nn.Parameter, *, value: float) -> None:
    """Like an overflow of the optimizer, which no gradient shows."""
    with torch.no_grad():
        parameter.view(-1)[0] = value


def in_fp16(trainer, *, scale: float) -> None:
    """Use the loss scaler of fp16 on a CPU, where accelerate has none; the precision stays float32."""
    accelerator, wrapped = trainer.accelerator, trainer.optimizer
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
    trainer.optimizer = trainer.stepper.optimizer = type(wrapped)(wrapped.optimizer, scaler=accelerator.scaler)
    accelerator._optimizers = [trainer.optimizer]


# --- messages --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, object]:
    keys = write_splits(tmp_path_factory.mktemp("splits"))
    return {**keys, "name": "run", "trainer.epochs": 2, "trainer.clip_grad_norm": 0.5}


def test_message_names_step_images_loss_and_command(keys, tmp_path):
    keys = {**keys, "trainer.exp_dir": tmp_path}
    run_mode("train", {**keys, "trainer.epochs": 1})
    run = tmp_path / "run"
    before = contents(run / "checkpoints" / "step-00000002")
    with pytest.raises(UserError) as caught:
        wild = {"model.optimizer.lr": 1e30, "model.optimizer.scheduler.name": "constant", "trainer.epochs": 3}
        wild |= {"pretrained_name": run, "resume_pretrained_state": True, "trainer.checkpoint_every_n_steps": 1}
        run_mode("train", {**keys, **wild})
    said, command = str(caught.value).splitlines()
    assert said.startswith("the loss is nan at step 4, in the batch of the images 100") and "caption, emotion" in said
    assert "epoch 2" in said and f"{run / 'checkpoints' / 'step-00000002'} is good" in said
    assert "model.optimizer.lr=5e+29, trainer.clip_grad_norm=0.25" in said and "precision" not in said
    words = {f"pretrained_name={run}/checkpoints/step-00000002", "resume_pretrained_state=true"}
    assert words | {"model.optimizer.lr=5e+29", "trainer.clip_grad_norm=0.25"} <= {*shlex.split(command)}
    assert contents(run / "checkpoints" / "step-00000002") == before, "step 3 is finite but leads to NaN"
    again = {"pretrained_name": run / "checkpoints" / "step-00000002", "resume_pretrained_state": True}
    run_mode("train", {**keys, **again})
    assert [entry.step for entry in entries(run / "checkpoints")] == [4, 2]


def test_losses_that_are_nan_are_named(trainer):
    head = next(p for name, p in trainer.task.network.named_parameters() if name.startswith("vad_head"))
    spoil(head, value=math.nan)
    with pytest.raises(UserError) as caught:
        trainer.fit()
    text = str(caught.value)
    assert text.startswith("the loss is nan at step 1, in the batch of the images id0, id1; epoch 1, not finite: vad;")
    assert "there is no checkpoint yet" in text and "\n" not in text


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["weights", "optimizer"])
def test_nan_is_never_saved(trainer, tmp_path, where):
    trainer.fit()
    before = contents(tmp_path / "run" / "checkpoints")
    parameter = next(p for p in trainer.task.network.parameters() if p.requires_grad)
    if where == "weights":
        spoil(parameter, value=math.inf)
    else:
        trainer.optimizer.optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, math.nan)
    trainer.settings.epochs, trainer.state.epoch, trainer.state.step = 2, 2, trainer.state.step + 1
    with pytest.raises(UserError, match=r"is no longer finite after step \d+; .*is good: check these images"):
        trainer.fit()
    assert contents(tmp_path / "run" / "checkpoints") == before


# --- fp16 ------------------------------------------------------------------------------------------------------------


def test_overflowing_step_is_skipped_and_counted(trainer):
    in_fp16(trainer, scale=2.0**127)  # beyond float32 with the first losses
    trainer.settings.epochs = 6
    before = [p.detach().clone() for p in trainer.task.network.parameters()]
    assert trainer.fit()
    state = trainer.state
    assert 0 < state.overflows < MOST_SKIPPED and state.step == 24 - state.overflows
    assert all(torch.isfinite(p).all() for p in trainer.task.network.parameters())
    assert any(not torch.equal(p, b) for p, b in zip(trainer.task.network.parameters(), before, strict=True))
    assert all(math.isfinite(value) for value in trainer.metrics.values())


def test_endless_overflows_stop_the_training(trainer, tmp_path):
    in_fp16(trainer, scale=2.0**16)
    trainer.task.network.mapper._mapper[0].bias.register_hook(lambda grad: grad * math.inf)
    trainer.settings.epochs = 20
    before = {name: p.detach().clone() for name, p in trainer.task.network.named_parameters()}
    trainer.settings.check_val_every_n_epoch = None
    with pytest.raises(UserError, match=rf"^fp16 overflowed {MOST_SKIPPED} times in a row.*trainer\.precision=fp32"):
        trainer.fit()
    assert all(torch.equal(p, before[name]) for name, p in trainer.task.network.named_parameters())
    assert not Path(tmp_path / "run" / "checkpoints").exists()
