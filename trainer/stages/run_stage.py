"""Run a training of any stage: start or resume, build the Trainer, fit, report."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from common.cli import STOPPED
from common.errors import UserError
from data.loaders import EpochSampler
from data.samples import Samples
from data.schema import Batch, Skipped
from trainer.loop.tracker import Tracker
from trainer.loop.trackers import TENSORBOARD, FurtherTrackers, require_installed, start_trackers
from trainer.loop.trainer import Trainer, TrainingLoader
from trainer.runs.checkpoint import load_network
from trainer.runs.console import print_status
from trainer.runs.record import RESUME, command, write_record
from trainer.runs.retention import folder_name
from trainer.runs.start import Start, clear, find_start, refuse_changes
from trainer.runs.task import AnyValidator, Task
from trainer.runtime.sharding import Sharding, launched_sharding
from trainer.setup.demo_data import prepare_demo
from trainer.setup.loading import copies

SPLITS = ("train_ds", "validation_ds")
Loader = tuple[DataLoader[Batch], EpochSampler]


class Stage(Protocol):
    """A network to train, its data, optimizer and validation."""

    task: Task
    samples: dict[str, Samples]  # by split
    skipped: list[Skipped]
    ingredients: dict[str, Any]  # see trainer.setup.ingredients

    def describe(self) -> str: ...

    def prepare(self) -> None:
        """Called once the initial weights are loaded."""

    def loaders(self, accelerator: Accelerator) -> list[Loader]:
        """Return the loaders for training and validation."""

    def optimizer(self, *, fused: bool) -> torch.optim.Optimizer: ...

    def validator(self, loader: DataLoader[Batch], accelerator: Accelerator, tracker: Tracker) -> AnyValidator: ...


AnyStage = TypeVar("AnyStage", bound=Stage)


def run_stage(
    config: DictConfig, run: Path, accelerator: Accelerator, build: Callable[[], AnyStage], *, named: bool = True
) -> AnyStage:
    """Train into the folder `run`, whose lock this job holds, and return the stage.

    Args:
        build: called once the data exists and `config.dataset` is complete.
        named: whether pretrained_name is the run with the initial weights.

    Raises:
        UserError: for anything the user can fix.
        SystemExit: with status STOPPED, after a stop signal and a checkpoint.
    """
    sharding = launched_sharding(stage=config.stage, precision=accelerator.mixed_precision)
    with accelerator.main_process_first():
        start = find_start(config, run, named=named)
        prepare_demo(config)
    stage = build()
    if start.auto:
        refuse_changes(config, start.checkpoint, stage.ingredients, accelerator.num_processes)
    if start.checkpoint is not None:
        load_network(stage.task.network, stage.task.state(), start.checkpoint.folder / "model.safetensors")
    stage.prepare()
    if start.auto and start.state.finished(config.trainer):
        print_status(f"{run} is finished, at step {start.state.step}: nothing to do")
        return stage
    trainer = _build_trainer(config, run, accelerator, stage, start, sharding)
    if start.resumes:
        trainer.resume(start.checkpoint)
    _fit(trainer)
    return stage


def _build_trainer(
    config: DictConfig, run: Path, accelerator: Accelerator, stage: Stage, start: Start, sharding: Sharding | None
) -> Trainer:
    train, validation = (len(stage.samples[split]) for split in SPLITS)
    print_status(f"{stage.describe()}\n{train} training images, {validation} validation images")
    loaders = stage.loaders(accelerator)
    accelerator.wait_for_everyone()  # `clear` removes files that the others may still be reading
    if accelerator.is_main_process:
        report_leak(config, stage.samples)
    folder, state, names = run if accelerator.is_main_process else None, start.state, config.trainer.trackers
    require_installed(names)
    others = FurtherTrackers(start_trackers(names, run, config) if folder is not None else {})
    if folder is not None:
        clear(run, config, start)
        write_record(run, config, stage.ingredients, step=state.step if start.same_run else 0)
    kept = {"purge_step": state.step + 1, "validation_too": state.validation_due(config.trainer)}
    tracker = Tracker(folder, **(kept if start.same_run else {}), tensorboard=TENSORBOARD in names, others=others)
    if not start.same_run:
        tracker.text("configuration", f"```yaml\n{OmegaConf.to_yaml(config)}```")
    if sharding is not None:
        print_status(sharding.split(stage.task.network, accelerator))
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
        origin={"made_of": stage.ingredients, "processes": accelerator.num_processes},
        sharding=sharding,
    )


def report_leak(config: DictConfig, samples: Mapping[str, Samples]) -> None:
    """Warn of validation images that are training images too, by the bytes of their files.

    Raises:
        UserError: there are some, with dataset.strict.
    """
    if same := copies(config, *(samples[name] for name in SPLITS)):
        text = (
            f"{len(same)} of the validation images are training images too, the first is {same[0][1]}, the same as "
            f"{same[0][0]}: give every picture one split (`python -m data.prepare check` lists them)"
        )
        if config.dataset.strict:
            raise UserError(text)
        print_status(f"warning: {text}")


def _fit(trainer: Trainer) -> None:
    """Raises SystemExit with status STOPPED after a stop signal."""
    try:
        with trainer.stop.listening():
            over = trainer.fit()
    finally:
        trainer.tracker.others.finish()
    if over:
        metrics = ", ".join(f"{name.split('/')[1]} {value:.4f}" for name, value in trainer.metrics.items())
        text = f"trained: {metrics}\nrun: {trainer.run}"
        if trainer.tracker.writer is not None:
            program = "tensorboard" if shutil.which("tensorboard") else f"{sys.executable} -m tensorboard.main"
            text += f"\ncurves: {program} --logdir {trainer.run.parent}"
    else:
        step, signal = trainer.state.step, trainer.stop.name or "a signal"
        text = (
            f"{signal}: stopped after step {step} of {trainer.total_steps}, saved in "
            f"{trainer.run / 'checkpoints' / folder_name(step)}. To resume:\n    {command(RESUME)}"
        )
    if trainer.accelerator.is_main_process:
        print_status(text)
    if not over:
        sys.exit(STOPPED)
