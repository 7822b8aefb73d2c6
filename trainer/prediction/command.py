"""Predict a set of images into a folder; shared by mode=test and mode=predict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from accelerate import Accelerator
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from common.config.rules import RATINGS, VLM
from common.errors import UserError
from common.files import require_inside
from common.ranks import Agreed
from data.loaders import EpochSampler
from data.samples import Samples
from data.schema import Skipped
from trainer.prediction.build import build_predictor, ranks_by_vle
from trainer.prediction.expert import describe_expert
from trainer.prediction.identity import identity_of
from trainer.prediction.looking import Looking
from trainer.prediction.nearest import training_images
from trainer.prediction.resume import Rows, Unfinished
from trainer.prediction.writer import AnyPredictor, write_predictions
from trainer.runs.checkpoint import Checkpoint
from trainer.runs.console import print_status
from trainer.runs.start import run_lock
from trainer.runs.state import seed_everything
from trainer.runtime.processes import from_main_rank, gather_results
from trainer.runtime.skipped import write_skipped
from trainer.setup.loading import Features, split_loader
from trainer.setup.parts import Parts, build_parts

if TYPE_CHECKING:
    from trainer.prediction.judge import ImageJudge, Judge


class Predicted(NamedTuple):
    """What a command needs after the last prediction; looking: None in mode=predict; both: None but for a captioner."""

    unfinished: Unfinished
    parts: Parts | None
    looking: Looking | None


@contextmanager
def folder_lock(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Lock the folder against other commands.

    Raises:
        UserError: another command writes into it, it cannot be written, or it is a link to elsewhere.
    """
    require_inside(folder, folder.parent, is_folder=True)
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
        UserError: the folder holds unfinished predictions of other settings, the processes find different images, or
            trainer.test.vle is not a run that can judge.
    """
    judge = load_judge(config, accelerator)
    seed_everything(config.seed)
    host = load_host(config, checkpoint, samples, accelerator, judge)
    predictor, parts = host.predictor, host.parts
    if predictor.expert is not None:
        print_status(f"expert: {describe_expert(predictor.expert.about)}")
        if config.mode == "test":  # the teacher is a row of its table
            show = accelerator.is_local_main_process
            predictor.expert.read_teacher(samples, config.dataset.feature_cache, show=show)
        predictor.expert.read_others(samples, config, accelerator, folder)
    identity = identity_of(config, checkpoint, samples, predictor, precision=accelerator.mixed_precision)
    if any(images != identity["images"] for images in gather_results(accelerator, lambda: identity["images"])):
        raise Agreed("the processes do not find the same images: let all machines read the same folders")
    unfinished = Unfinished(folder, samples, batch_size=config.dataset.test_ds.batch_size)
    done = from_main_rank(accelerator, lambda: unfinished.begin(identity, overwrite=overwrite))
    if done:
        print_status(f"{folder}: continuing after {done} of {len(samples)} images")
    looking = None
    if config.mode == "test" and parts is not None:
        training = training_images(config, parts, host.features, accelerator)
        looking = Looking(config, parts, accelerator, host.loader, training, judge)
    if parts is not None:
        parts.optimize(bf16=accelerator.mixed_precision == "bf16")
    write_predictions(
        unfinished,
        done=done,
        loader=host.loader,
        sampler=host.sampler,
        predictor=predictor,
        accelerator=accelerator,
        strict=config.dataset.strict,
        emotion=predictor.labels.index(config.emotion) if config.mode == "predict" and config.emotion else None,
    )
    return Predicted(unfinished, parts, looking)


class Host(NamedTuple):
    """The network that predicts, and what it reads."""

    predictor: AnyPredictor
    loader: DataLoader
    sampler: EpochSampler
    parts: Parts | None = None  # of a captioner
    features: Features | None = None


def load_host(
    config: DictConfig, checkpoint: Checkpoint, samples: Samples, accelerator: Accelerator, judge: Judge | None
) -> Host:
    """Return the network of a checkpoint with a loader of the samples."""
    build = {VLM: _vlm, RATINGS: _ratings}.get(config.stage, _captioner)
    return build(config, checkpoint, samples, accelerator, judge)


def _captioner(
    config: DictConfig, checkpoint: Checkpoint, samples: Samples, accelerator: Accelerator, judge: Judge | None
) -> Host:
    parts = build_parts(config, checkpoint=checkpoint)
    parts.captioner.to(accelerator.device).eval()
    features = Features(config, parts.captioner, accelerator)
    loaded = split_loader(config, "test_ds", samples, parts, features, texts=0)
    predictor = build_predictor(config, parts, checkpoint, _of_images(judge, config, samples))
    return Host(predictor, *loaded, parts, features)


def _vlm(
    config: DictConfig, checkpoint: Checkpoint, samples: Samples, accelerator: Accelerator, judge: Judge | None
) -> Host:
    from trainer.prediction.vlm import picture_loader  # imported here: a captioner needs no peft
    from trainer.prediction.vlm_predictor import build_vlm_predictor

    predictor = build_vlm_predictor(config, checkpoint, accelerator)
    return Host(predictor, *picture_loader(config, samples, processes=accelerator.num_processes))


def _ratings(
    config: DictConfig, checkpoint: Checkpoint, samples: Samples, accelerator: Accelerator, judge: Judge | None
) -> Host:
    from trainer.prediction.ratings import RatingPredictor, load_rating_network, rating_loader

    network = load_rating_network(config, checkpoint).to(accelerator.device)
    return Host(RatingPredictor(network), *rating_loader(config, network, samples, accelerator))


def load_judge(config: DictConfig, accelerator: Accelerator) -> Judge | None:
    """Return the VLE of trainer.test.vle; None without that key, and in mode=predict if it chooses no explanation.

    Raises:
        UserError: it has to choose, and there is none, or none with a matching head.
    """
    name, chooses = config.trainer.test.vle if config.stage not in (VLM, RATINGS) else None, ranks_by_vle(config)
    if name is None and chooses:
        raise UserError("trainer.test.rank_by=vle needs trainer.test.vle=RUN: a run of stage=vle_pretrain or vle_itm")
    if name is None or not (chooses or config.mode == "test"):
        return None
    from trainer.prediction.judge import Judge  # imported here: no other command of the captioner needs VLE

    judge = Judge.load(name, Path(config.trainer.exp_dir), accelerator.device, key="trainer.test.vle")
    if chooses and not judge.matches:
        raise UserError(
            f"trainer.test.vle={name} is of stage=vle_pbc, which compares no texts: trainer.test.rank_by=vle needs a "
            "run of stage=vle_pretrain or vle_itm"
        )
    return judge


def _of_images(judge: Judge | None, config: DictConfig, samples: Samples) -> ImageJudge | None:
    """Return the judge that chooses among explanations, None if none does."""
    if judge is None or not ranks_by_vle(config):
        return None
    from trainer.prediction.judge import ImageJudge

    paths = {sample.id: sample.path for sample in samples}
    return ImageJudge(judge, paths, max_pixels=config.dataset.max_pixels)


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
