"""Predict a set of images into a folder; shared by mode=test and mode=predict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from omegaconf import DictConfig

from common.errors import UserError
from common.files import require_inside
from common.ranks import Agreed
from data.samples import Samples
from data.schema import Skipped
from model.decoding.packed import optimize_for_generation
from trainer.prediction.build import build_predictor
from trainer.prediction.expert import describe_expert
from trainer.prediction.identity import identity_of
from trainer.prediction.looking import Looking
from trainer.prediction.nearest import training_images
from trainer.prediction.resume import Rows, Unfinished
from trainer.prediction.writer import write_predictions
from trainer.runs.checkpoint import Checkpoint
from trainer.runs.console import print_status
from trainer.runs.start import run_lock
from trainer.runs.state import seed_everything
from trainer.runtime.processes import from_main_rank, gather_results
from trainer.runtime.skipped import write_skipped
from trainer.setup.loading import Features, split_loader
from trainer.setup.parts import Parts, build_parts


class Predicted(NamedTuple):
    """What a command needs after the last prediction; looking: None in mode=predict."""

    unfinished: Unfinished
    parts: Parts
    looking: Looking | None


@contextmanager
def folder_lock(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Lock the folder against other commands.

    Raises:
        UserError: another command writes into it, it cannot be written, or it is a link to elsewhere.
    """
    require_inside(folder, folder.parent)
    with ExitStack() as stack:
        from_main_rank(accelerator, lambda: stack.enter_context(run_lock(folder, purpose=folder.name)) and None)
        yield


def predict_all(
    config: DictConfig,
    checkpoint: Checkpoint,
    samples: Samples,
    folder: Path,
    accelerator: Accelerator,
    *,
    overwrite: bool,
) -> Predicted:
    """Predict the samples; rows of an interrupted command with the same settings are reused.

    Raises:
        UserError: the folder holds unfinished predictions of other settings, or the processes find different images.
    """
    seed_everything(config.seed)
    parts = build_parts(config, checkpoint=checkpoint)
    parts.captioner.to(accelerator.device).eval()
    features = Features(config, parts.captioner, accelerator)
    loader, sampler = split_loader(config, "test_ds", samples, parts, features, texts=0)
    predictor = build_predictor(config, parts, checkpoint)
    if predictor.expert is not None:
        print_status(f"expert: {describe_expert(predictor.expert.about)}")
        if config.mode == "test":  # the teacher is a row of its table
            show = accelerator.is_local_main_process
            predictor.expert.read_teacher(samples, config.dataset.feature_cache, show=show)
    identity = identity_of(config, checkpoint, samples, predictor, precision=accelerator.mixed_precision)
    if any(images != identity["images"] for images in gather_results(accelerator, lambda: identity["images"])):
        raise Agreed("the processes do not find the same images: let all machines read the same folders")
    unfinished = Unfinished(folder, samples, batch_size=config.dataset.test_ds.batch_size)
    done = from_main_rank(accelerator, lambda: unfinished.begin(identity, overwrite=overwrite))
    if done:
        print_status(f"{folder}: continuing after {done} of {len(samples)} images")
    looking = None
    if config.mode == "test":
        training = training_images(config, parts, features, accelerator)
        looking = Looking(config, parts, accelerator, loader, training)
    optimize_for_generation(parts.captioner, bf16=accelerator.mixed_precision == "bf16")
    write_predictions(
        unfinished,
        done=done,
        loader=loader,
        sampler=sampler,
        predictor=predictor,
        accelerator=accelerator,
        strict=config.dataset.strict,
        emotion=parts.template.labels.index(config.emotion) if config.mode == "predict" and config.emotion else None,
    )
    return Predicted(unfinished, parts, looking)


def results(unfinished: Unfinished, skipped: list[Skipped], *, none: str) -> Rows:
    """Return all rows; images that could not be used are added to `skipped` and listed in skipped.jsonl.

    Raises:
        UserError: with the message `none` if there is no row; results of an earlier command stay.
    """
    skipped.extend(unfinished.skipped_images())
    write_skipped(skipped, unfinished.folder)
    if not unfinished.has_rows:
        unfinished.close()
        raise UserError(none)
    return unfinished.name_rows()
