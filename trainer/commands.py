"""The three modes: what `run.py` calls with a configuration that has been checked."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from data.emotions import INDEX
from data.images import find_pictures
from data.samples import Samples
from data.schema import Batch, Sample, Skipped
from errors import UserError
from files import write_json
from trainer.attention import looked_at
from trainer.checkpoint import Checkpoint, find_checkpoint, load_weights, provenance
from trainer.loading import Features, load_samples, refuse_trained_encoder, split_loader
from trainer.metrics.table import metrics_table
from trainer.optim import build_optimizer
from trainer.predictions import table, write_predictions
from trainer.report import ATTENTION_EXAMPLES, drawn, write_predictions_page, write_test_report
from trainer.score.configured import settings_of
from trainer.score.measure import measure, write_scores
from trainer.setup import (
    Parts,
    build_parts,
    complete_from_checkpoint,
    decoding_settings,
    describe,
    make_accelerator,
    output_folder,
    prepare_data,
    resolve_auto,
)
from trainer.skipped import unique, write_skipped
from trainer.state import seed_everything
from trainer.tracker import Tracker
from trainer.trainer import Trainer, TrainingLoader
from trainer.validation import Validator


def train(config: DictConfig) -> None:
    """mode=train: into trainer.exp_dir/trainer.exp_name."""
    refuse_trained_encoder(config)
    seed_everything(config.seed)
    start = _starting_point(config)
    run = output_folder(config)
    _refuse_mixing(run, config, start)
    accelerator = make_accelerator(config)
    with accelerator.main_process_first():
        prepare_data(config)
    skipped: list[Skipped] = []
    train_samples = load_samples(config, "train_ds", skipped)
    val_samples = load_samples(config, "validation_ds", skipped)
    resolve_auto(config, has_emotions=train_samples.has_emotions)
    parts = build_parts(config)
    if start is not None:
        load_weights(parts.captioner, start.folder)
    say(f"{describe(parts.captioner)}\n{len(train_samples)} images to train on, {len(val_samples)} to validate on")
    features, texts = Features(config, parts.captioner, accelerator), config.dataset.texts_per_image
    loader, sampler = split_loader(config, "train_ds", train_samples, parts, features, texts=texts)
    val_loader, _ = split_loader(config, "validation_ds", val_samples, parts, features, texts=texts)
    if accelerator.is_main_process:
        _clear(run, config, start)
    again = start.info["state"]["step"] + 1 if _goes_on(run, config, start) else None
    tracker = Tracker(run if accelerator.is_main_process else None, purge_step=again)
    tracker.text("configuration", f"```yaml\n{OmegaConf.to_yaml(config)}```")
    data = TrainingLoader(loader, sampler, config.dataset.train_ds.batch_size)
    trainer = _trainer(config, run, accelerator, parts, data, val_loader, val_samples, tracker, skipped)
    if start is not None and config.resume_pretrained_state:
        trainer.resume(start.folder, start.info["state"])
    try:
        trainer.fit()
    finally:
        tracker.close()
    figures = ", ".join(f"{name.split('/')[1]} {value:.4f}" for name, value in trainer.metrics.items())
    say(f"trained: {figures}\nrun: {run}\nlook at it: tensorboard --logdir {run.parent}")


def _starting_point(config: DictConfig) -> Checkpoint | None:
    """The checkpoint whose weights, or whose whole state, the training begins with."""
    if config.pretrained_name is None:
        if config.resume_pretrained_state:
            raise UserError("resume_pretrained_state=true needs pretrained_name=RUN: the run to go on with")
        return None
    prefer = "last" if config.resume_pretrained_state else "best"
    return find_checkpoint(config.pretrained_name, Path(config.trainer.exp_dir), prefer=prefer)


TRACES = ("checkpoints", "tensorboard", "metrics.jsonl", "skipped.jsonl")


def _goes_on(run: Path, config: DictConfig, start: Checkpoint | None) -> bool:
    return start is not None and config.resume_pretrained_state and start.run.resolve() == run.resolve()


def _refuse_mixing(run: Path, config: DictConfig, start: Checkpoint | None) -> None:
    """Two trainings never share a folder."""
    if _goes_on(run, config, start) or config.trainer.overwrite:
        return
    if any((run / name).exists() for name in TRACES):
        raise UserError(
            f"{run} already holds a run: choose another name=…, go on with it (pretrained_name={run} "
            "resume_pretrained_state=true), or replace it (trainer.overwrite=true)"
        )


def _clear(run: Path, config: DictConfig, start: Checkpoint | None) -> None:
    """Make room for a new run, once nothing can go wrong any more that the user could have known."""
    if _goes_on(run, config, start):
        return
    for path in (run / name for name in TRACES):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _trainer(
    config: DictConfig,
    run: Path,
    accelerator: Accelerator,
    parts: Parts,
    data: TrainingLoader,
    val_loader: DataLoader[Batch],
    val_samples: Samples,
    tracker: Tracker,
    skipped: list[Skipped],
) -> Trainer:
    optimizer = config.model.optimizer
    return Trainer(
        config=config,
        run=run,
        accelerator=accelerator,
        captioner=parts.captioner,
        optimizer=build_optimizer(
            parts.captioner.parameters(),
            name=optimizer.name,
            lr=optimizer.lr,
            betas=optimizer.betas,
            weight_decay=optimizer.weight_decay,
            fused=accelerator.device.type == "cuda",
        ),
        data=data,
        validator=Validator(
            loader=accelerator.prepare(val_loader),
            samples=val_samples,
            predictor=parts.predictor(config),
            tracker=tracker,
            loss_weights=OmegaConf.to_container(config.model.loss_weights),
            strict=config.dataset.strict,
            pictures=config.trainer.num_validation_images,
            captions=config.trainer.num_validation_captions,
            limit_batches=config.trainer.limit_val_batches,
        ),
        tokenizer=parts.template.tokenizer,
        tracker=tracker,
        skipped=skipped,
    )


def test(config: DictConfig) -> None:
    """mode=test: predictions.jsonl first, then metrics.json, per_image.jsonl and report.html, into RUN/test."""
    checkpoint = find_checkpoint(config.pretrained_name, Path(config.trainer.exp_dir))
    config = complete_from_checkpoint(config, checkpoint)
    refuse_trained_encoder(config)
    for key in ("visual_dir", "json_path"):
        if config.dataset.test_ds[key] is None:
            raise UserError(f"mode=test needs dataset.test_ds.{key}=PATH")
    prepare_data(config)
    measured, notes = settings_of(config)
    skipped: list[Skipped] = []
    samples = load_samples(config, "test_ds", skipped)
    folder = output_folder(config, checkpoint) / "test"
    limit = config.trainer.test.limit_batches
    rows, parts = _predict_all(config, checkpoint, samples, folder, skipped, limit_batches=limit)
    if not rows:
        raise UserError(f"{config.dataset.test_ds.json_path}: none of its {len(samples)} images could be read")
    scores = measure(rows, measured, notes=notes)
    metrics = {**scores.metrics, "decoding": decoding_settings(config)}
    write_scores(folder, scores, {"decoding": metrics["decoding"], **_origin(config, checkpoint)})
    write_test_report(
        rows,
        metrics,
        folder / "report.html",
        title=f"Test of {checkpoint.run.name}",
        facts={**_facts(config, checkpoint), "annotations": str(config.dataset.test_ds.json_path)},
        per_image=scores.per_image,
        attention=looked_at(
            drawn(rows, ATTENTION_EXAMPLES, seed=config.seed), parts, max_pixels=config.dataset.max_pixels
        ),
        skipped=[(str(s.path), s.reason) for s in unique(skipped)],
        seed=config.seed,
    )
    print(metrics_table(metrics))
    say(f"predictions, metrics and report: {folder}")


def predict(config: DictConfig) -> None:
    """mode=predict: a table on screen, predictions.json and report.html, into RUN/predict."""
    pictures = find_pictures(Path(config.image).expanduser())
    checkpoint = find_checkpoint(config.pretrained_name, Path(config.trainer.exp_dir))
    config = complete_from_checkpoint(config, checkpoint)
    config.dataset.feature_cache = None  # these pictures may never come again
    if config.emotion is not None and not config.dataset.emotions:
        raise UserError(f"emotion={config.emotion}: {checkpoint.folder} was trained without emotions")
    emotion = INDEX[config.emotion] if config.emotion is not None else None
    skipped: list[Skipped] = []
    samples = Samples.pack(Sample(id=str(path), path=path.resolve(), texts=()) for path in pictures)
    folder = output_folder(config, checkpoint) / "predict"
    rows, _ = _predict_all(config, checkpoint, samples, folder, skipped, emotion=emotion)
    if not rows:
        raise UserError(f"image={config.image}: none of its {len(pictures)} pictures could be read")
    write_json(folder / "predictions.json", rows)
    write_predictions_page(
        rows,
        folder / "report.html",
        title=Path(config.image).name or str(config.image),
        facts=_facts(config, checkpoint),
        skipped=[(str(s.path), s.reason) for s in unique(skipped)],
    )
    print(table(rows))
    say(f"predictions and page: {folder}")


def _predict_all(
    config: DictConfig,
    checkpoint: Checkpoint,
    samples: Samples,
    folder: Path,
    skipped: list[Skipped],
    *,
    limit_batches: int | None = None,
    emotion: int | None = None,
) -> tuple[list[dict[str, Any]], Parts]:
    seed_everything(config.seed)
    accelerator = make_accelerator(config)
    parts = build_parts(config, checkpoint=checkpoint)
    parts.captioner.to(accelerator.device).eval()
    features = Features(config, parts.captioner, accelerator)
    loader, _ = split_loader(config, "test_ds", samples, parts, features, texts=0)
    rows = write_predictions(
        folder / "predictions.jsonl",
        loader=loader,
        samples=samples,
        predictor=parts.predictor(config),
        accelerator=accelerator,
        skipped=skipped,
        strict=config.dataset.strict,
        limit_batches=limit_batches,
        emotion=emotion,
    )
    write_skipped(skipped, folder)
    return rows, parts


def _origin(config: DictConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "checkpoint": str(checkpoint.folder),
        "step": checkpoint.info["state"]["step"],
        "seed": config.seed,
        "shuffled_images": config.dataset.shuffle_images,
        **provenance(),
    }


def _facts(config: DictConfig, checkpoint: Checkpoint) -> dict[str, str]:
    """What a report says of where its figures come from."""
    origin = _origin(config, checkpoint)
    facts = {
        "checkpoint": origin["checkpoint"],
        "trained for": f"{origin['step']} steps, {checkpoint.info['state']['epoch']} epochs",
        "vision": str(
            config.model.vision.pretrained_name or config.model.vision.architecture or "random, trained here"
        ),
        "language": str(config.model.text.pretrained_name or "random, trained here"),
        "decoding": ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in decoding_settings(config).items()),
        "seed": str(config.seed),
        "versions": ", ".join(f"{name} {number}" for name, number in origin["versions"].items()),
        "machine": origin["device"],
        "commit": str(origin["git"] or "unknown"),
    }
    if config.dataset.shuffle_images:
        facts["control"] = "images shuffled against their annotations"
    return facts


def say(text: str) -> None:
    """To the person in front of the screen; standard output is for results."""
    print(text, file=sys.stderr)
