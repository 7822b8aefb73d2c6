"""mode=train: what it begins with, the parts it needs, and how it ends."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf

from data.samples import Samples
from data.schema import Skipped
from trainer.cadence import finished, validation_due
from trainer.checkpoint import load_weights
from trainer.loading import Features, load_samples, refuse_trained_encoder, split_loader
from trainer.optim import build_optimizer
from trainer.parts import Parts, build_parts, describe
from trainer.record import GOING_ON, command, ingredients, write_record
from trainer.setup import make_accelerator, output_folder, prepare_data, resolve_auto
from trainer.shelf import folder_name
from trainer.signals import STOPPED
from trainer.start import Start, alone, clear, find_start, refuse_changes
from trainer.state import TrainState, seed_everything
from trainer.tracker import Tracker
from trainer.trainer import Trainer, TrainingLoader
from trainer.validation import Validator

SPLITS = ("train_ds", "validation_ds")


@dataclass(slots=True)
class Material:
    """What a training is made of; `samples` by split, `made_of` as of trainer.record."""

    start: Start
    samples: dict[str, Samples]
    skipped: list[Skipped]
    parts: Parts
    made_of: dict[str, Any]


def train(config: DictConfig) -> None:
    """mode=train: into trainer.exp_dir/trainer.exp_name.

    Raises:
        UserError: whatever the user can mend.
        SystemExit: a signal stopped it, once a checkpoint was written; with a status of its own.
    """
    refuse_trained_encoder(config)
    seed_everything(config.seed)
    run, accelerator = output_folder(config), make_accelerator(config)
    with alone(run) if accelerator.is_main_process else nullcontext():
        material = _gather(config, run, accelerator)
        state, start = TrainState.from_dict(material.start.state), material.start
        if start.again and finished(state, config.trainer):
            say(f"{run} is finished, at step {state.step}: there is nothing left to do")
            return
        trainer = _build(config, run, accelerator, material)
        if start.goes_on:
            trainer.resume(start.checkpoint)
        _fit(trainer)


def _gather(config: DictConfig, run: Path, accelerator: Accelerator) -> Material:
    with accelerator.main_process_first():
        start = find_start(config, run)
        prepare_data(config)
    skipped: list[Skipped] = []
    samples = {split: load_samples(config, split, skipped) for split in SPLITS}
    resolve_auto(config, has_emotions=samples["train_ds"].has_emotions)
    parts = build_parts(config)
    made_of = ingredients(config, samples, parts)
    if start.again:
        refuse_changes(config, start, made_of, processes=accelerator.num_processes)
    if start.checkpoint is not None:
        load_weights(parts.captioner, start.checkpoint.folder)
    if config.trainer.gradient_checkpointing:
        parts.captioner.language.recompute()
    if config.trainer.compile:
        parts.captioner.language.compile_blocks()
    return Material(start, samples, skipped, parts, made_of)


def _build(config: DictConfig, run: Path, accelerator: Accelerator, material: Material) -> Trainer:
    start, samples, parts = material.start, material.samples, material.parts
    numbers = [len(samples[split]) for split in SPLITS]
    say(f"{describe(parts.captioner)}\n{numbers[0]} images to train on, {numbers[1]} to validate on")
    features, texts = Features(config, parts.captioner, accelerator), config.dataset.texts_per_image
    loaders = [split_loader(config, split, samples[split], parts, features, texts=texts) for split in SPLITS]
    accelerator.wait_for_everyone()  # all have read what may now be removed
    if accelerator.is_main_process:
        clear(run, config, start)
        write_record(run, config, material.made_of, step=start.step if start.same_run else 0)
    tracker = _tracker(run if accelerator.is_main_process else None, config, start)
    return Trainer(
        config=config,
        run=run,
        accelerator=accelerator,
        captioner=parts.captioner,
        optimizer=_optimizer(config, parts, fused=accelerator.device.type == "cuda"),
        data=TrainingLoader(*loaders[0], config.dataset.train_ds.batch_size),
        validator=Validator(
            loader=accelerator.prepare(loaders[1][0]),
            samples=samples["validation_ds"],
            predictor=parts.predictor(config),
            tracker=tracker,
            loss_weights=OmegaConf.to_container(config.model.loss_weights),
            strict=config.dataset.strict,
            pictures=config.trainer.num_validation_images,
            captions=config.trainer.num_validation_captions,
            limit_batches=config.trainer.limit_val_batches,
            emotion_tokens=parts.emotion_tokens(config, accelerator.device),
        ),
        tokenizer=parts.template.tokenizer,
        tracker=tracker,
        skipped=material.skipped,
        emotion_tokens=parts.emotion_tokens(config, accelerator.device),
        origin={"made_of": material.made_of, "processes": accelerator.num_processes},
    )


def _optimizer(config: DictConfig, parts: Parts, *, fused: bool) -> torch.optim.Optimizer:
    settings = config.model.optimizer
    return build_optimizer(
        parts.captioner.parameters(),
        name=settings.name,
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        apart=parts.captioner.vad_encoder,
        apart_lr=settings.vad_lr,
        fused=fused,
    )


def _tracker(folder: Path | None, config: DictConfig, start: Start) -> Tracker:
    if start.same_run:
        state = TrainState.from_dict(start.state)
        return Tracker(folder, purge_step=state.step + 1, validation_too=validation_due(state, config.trainer))
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


def say(text: str) -> None:
    """To the person in front of the screen; standard output is for results."""
    print(text, file=sys.stderr)
