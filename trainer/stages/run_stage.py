"""Run a training of any stage: start or resume, build the Trainer, fit, report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from data.loaders import EpochSampler
from data.samples import Samples
from data.schema import Batch, Skipped
from trainer.loop.tracker import Tracker
from trainer.loop.trainer import Trainer, TrainingLoader
from trainer.runs.checkpoint import load_state
from trainer.runs.console import say
from trainer.runs.record import GOING_ON, command, write_record
from trainer.runs.retention import folder_name
from trainer.runs.start import Start, clear, find_start, refuse_changes
from trainer.runs.state import TrainState
from trainer.runs.task import Measuring, Task
from trainer.runtime.sharding import Sharding, asked_for
from trainer.runtime.signals import STOPPED
from trainer.setup.demo_data import prepare_data

SPLITS = ("train_ds", "validation_ds")
Loader = tuple[DataLoader[Batch], EpochSampler]


class Stage(Protocol):
    """A network to train, its data, optimizer and validation.

    samples: by split; skipped: missing images; made_of: see trainer.runs.record.
    """

    task: Task
    samples: dict[str, Samples]
    skipped: list[Skipped]
    made_of: dict[str, Any]

    def describe(self) -> str:
        """The network in a few lines."""

    def ready(self) -> None:
        """Called once the initial weights are in the network."""

    def loaders(self, accelerator: Accelerator) -> list[Loader]:
        """Loaders for training and validation."""

    def optimizer(self, *, fused: bool) -> torch.optim.Optimizer: ...

    def validator(self, loader: DataLoader[Batch], accelerator: Accelerator, tracker: Tracker) -> Measuring: ...


AnyStage = TypeVar("AnyStage", bound=Stage)


def carry_out(
    config: DictConfig, run: Path, accelerator: Accelerator, gather: Callable[[], AnyStage], *, named: bool = True
) -> AnyStage:
    """Train into the folder `run`, whose lock this job holds.

    Args:
        gather: builds the stage; called once the data is there and `config.dataset` is complete.
        named: whether pretrained_name is the run to take the initial weights from.

    Returns:
        the stage, once the training is over.

    Raises:
        UserError: for anything the user can fix.
        SystemExit: with status STOPPED, after a stop signal and a checkpoint.
    """
    sharding = asked_for(stage=config.stage, precision=accelerator.mixed_precision)
    with accelerator.main_process_first():
        start = find_start(config, run, named=named)
        prepare_data(config)
    stage = gather()
    if start.again:
        refuse_changes(config, start, stage.made_of, processes=accelerator.num_processes)
    if start.checkpoint is not None:
        load_state(stage.task.network, stage.task.state(), start.checkpoint.folder / "model.safetensors")
    stage.ready()
    state = TrainState.from_dict(start.state)
    if start.again and state.finished(config.trainer):
        say(f"{run} is finished, at step {state.step}: there is nothing left to do")
        return stage
    trainer = _build(config, run, accelerator, stage, start, sharding)
    if start.goes_on:
        trainer.resume(start.checkpoint)
    _fit(trainer)
    return stage


def _build(
    config: DictConfig, run: Path, accelerator: Accelerator, stage: Stage, start: Start, sharding: Sharding | None
) -> Trainer:
    numbers = [len(stage.samples[split]) for split in SPLITS]
    say(f"{stage.describe()}\n{numbers[0]} images to train on, {numbers[1]} to validate on")
    loaders = stage.loaders(accelerator)
    accelerator.wait_for_everyone()  # `clear` removes files that the others may still be reading
    if accelerator.is_main_process:
        clear(run, config, start)
        write_record(run, config, stage.made_of, step=start.step if start.same_run else 0)
    tracker = _tracker(run if accelerator.is_main_process else None, config, start)
    if sharding is not None:
        say(sharding.split(stage.task.network, accelerator))
    return Trainer(
        config=config,
        run=run,
        accelerator=accelerator,
        task=stage.task,
        optimizer=stage.optimizer(fused=accelerator.device.type == "cuda"),
        data=TrainingLoader(*loaders[0], config.dataset.train_ds.batch_size),
        validator=stage.validator(accelerator.prepare(loaders[1][0]), accelerator, tracker),
        tracker=tracker,
        skipped=stage.skipped,
        origin={"made_of": stage.made_of, "processes": accelerator.num_processes},
        sharding=sharding,
    )


def _tracker(folder: Path | None, config: DictConfig, start: Start) -> Tracker:
    if start.same_run:
        state = TrainState.from_dict(start.state)
        return Tracker(folder, purge_step=state.step + 1, validation_too=state.validation_due(config.trainer))
    tracker = Tracker(folder)
    tracker.text("configuration", f"```yaml\n{OmegaConf.to_yaml(config)}```")
    return tracker


def _fit(trainer: Trainer) -> None:
    """Raises SystemExit with status STOPPED where a signal stopped it."""
    with trainer.stop.listening():
        over = trainer.fit()
    if over:
        figures = ", ".join(f"{name.split('/')[1]} {value:.4f}" for name, value in trainer.metrics.items())
        text = f"trained: {figures}\nrun: {trainer.run}\nlook at it: tensorboard --logdir {trainer.run.parent}"
    else:
        step, signal = trainer.state.step, trainer.stop.name or "a signal"
        text = (
            f"{signal}: stopped after step {step} of {trainer.total_steps}; "
            f"{trainer.run / 'checkpoints' / folder_name(step)} holds it. To go on:\n    {command(GOING_ON)}"
        )
    if trainer.accelerator.is_main_process:
        say(text)
    if not over:
        sys.exit(STOPPED)
