"""stage=ratings: predict people's mean ratings of valence, arousal and dominance from a frozen image encoder.

A ridge regression on the encoder's tokens, in closed form: no epochs, no learning rate, seconds once the pictures are
encoded. The encoder is that of the section `model.vision`, or of the captioner that pretrained_name names.

RUN/checkpoints/step-00000001/   the head, for test and predict
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from common.config.rules import RATINGS
from common.errors import UserError
from common.html.tables import number
from data.cache.token_files import CachedTokens
from data.images import ImageError
from data.readers.ratings import rating_files
from data.samples import Samples
from data.schema import Skipped
from model.ratings import RatingNetwork, Ridge, features_of, fit_ridge
from model.vision import VisionEncoder, build_vision
from trainer.metrics.ratings import PREDICTION, TRAINING_MEAN, rating_scores
from trainer.metrics.word_vad import NAMES
from trainer.runs.checkpoint import Checkpoint, find_in_run, is_vlm, save_checkpoint
from trainer.runs.console import print_status
from trainer.runs.record import write_record
from trainer.runs.start import refuse_changes, run_lock
from trainer.runs.state import TrainState, seed_everything
from trainer.runtime.skipped import write_skipped
from trainer.setup.device import make_accelerator
from trainer.setup.head_features import HeadFeatures
from trainer.setup.ingredients import file_digest, image_digests
from trainer.setup.loading import load_samples
from trainer.setup.parts import build_parts, tensors_digest
from trainer.setup.stage_settings import require_unused_folder, stage_folder
from trainer.stages.run_stage import SPLITS, report_leak
from trainer.stages.student import named_captioner, with_captioner

VISION = "model.vision.pretrained_name"
LEAST, NEEDED = 2, 2  # pictures with a rating, of the first dimensions


def train_ratings(config: DictConfig) -> None:
    """Fit into trainer.exp_dir/NAME-ratings.

    Raises:
        UserError: other data than ratings, too few of them, or no encoder of pictures.
    """
    captioner = None if config.pretrained_name is None else named_captioner(config)
    if captioner is not None:
        if is_vlm(captioner):
            raise UserError(f"{captioner.folder} is of stage=vlm: stage=ratings needs a captioner, or none")
        config = with_captioner(config, captioner)
    if config.dataset.name != RATINGS:
        raise UserError(f"stage=ratings needs dataset.name=ratings, not {config.dataset.name}: a table of ratings")
    seed_everything(config.seed)
    run, accelerator = stage_folder(config, RATINGS), make_accelerator(config)
    if accelerator.num_processes > 1:
        raise UserError("stage=ratings runs in one process: start it without a launcher")
    with run_lock(run):
        require_unused_folder(run, config)
        _train(config, run, captioner, accelerator)


def _completed(config: DictConfig, run: Path) -> DictConfig:
    """Return the configuration of the run: without texts and emotions, and with the files of every split."""
    config = config.copy()
    changes = {"dataset.emotions": False, "dataset.explanations": False, "model.vad.enabled": False}
    changes |= {"dataset.vad_lexicon": None, "dataset.facts": None, "dataset.gate_split": 0.0}
    changes |= {"trainer.exp_name": run.name}
    for split in SPLITS:
        for key, path in zip(("json_path", "visual_dir"), rating_files(config.dataset, split), strict=True):
            changes[f"dataset.{split}.{key}"] = str(path)
    for key, value in changes.items():
        OmegaConf.update(config, key, value)
    return config


def _train(config: DictConfig, run: Path, captioner: Checkpoint | None, accelerator: Accelerator) -> None:
    vision = _vision(config, captioner)
    config = _completed(config, run)
    skipped: list[Skipped] = []
    samples = {split: load_samples(config, split, skipped) for split in SPLITS}
    ingredients = image_digests(config, samples) | {VISION: {"sha256": tensors_digest(vision.state_dict())}}
    if captioner is not None:
        ingredients["pretrained_name"] = file_digest(str(captioner.folder / "model.safetensors"))
    earlier = find_in_run(run, prefer="best") if config.trainer.resume == "auto" else None
    if earlier is not None:
        refuse_changes(config, earlier, ingredients, accelerator.num_processes)
        print_status(f"{run} is finished: nothing to do")
        return
    write_record(run, config, ingredients, step=0)
    report_leak(config, samples)
    network, about = _fit(config, vision, samples, skipped, accelerator)
    write_skipped(skipped, run)
    errors = [figures["error"] for figures in about["validation"]["sources"][PREDICTION].values()]
    monitored = sum(errors) / len(errors)
    state = TrainState(epoch=1, step=1, images=about["images"], validated=1, monitored=monitored, best=monitored)
    info = {"state": state.as_dict(), "metrics": {"validation/loss": monitored}, RATINGS: about}
    folder = save_checkpoint(
        run,
        _Weights(network, with_vision=config.model.vision.trainable or not vision.pretrained),
        config=config,
        training=None,
        info={**info, "made_of": ingredients, "processes": accelerator.num_processes},
        monitored=monitored,
        lower_is_better=True,
        keep=1,
    )
    print_status("\n".join([*_lines(about), f"head on the frozen encoder: {folder}"]))


def _vision(config: DictConfig, captioner: Checkpoint | None) -> VisionEncoder:
    if captioner is not None:
        return build_parts(config, checkpoint=captioner).captioner.vision
    settings: dict[str, Any] = OmegaConf.to_container(config.model.vision, resolve=True)
    del settings["trainable"]
    return build_vision(**settings)


class _Rated(NamedTuple):
    """The readable pictures of a split."""

    x: Tensor  # (N, F)
    y: Tensor  # (N, 3) float64 in −1..1, NaN for a dimension that was not rated
    rows: list[dict[str, Any]]  # "id" and "ratings", as in predictions.jsonl


def _fit(
    config: DictConfig,
    vision: VisionEncoder,
    samples: Mapping[str, Samples],
    skipped: list[Skipped],
    accelerator: Accelerator,
) -> tuple[RatingNetwork, dict[str, Any]]:
    """Return the network, and its entry for checkpoint.json."""
    settings = config.copy()
    settings.expert.student.update({"features": "clip", "grid": 1})
    encode = _PooledFeatures(settings, RatingNetwork(vision, 1), accelerator)
    rated = [_rated(samples[split], encode(split, samples[split]), skipped) for split in SPLITS]
    fitted = _regressions(*rated, path=config.dataset.train_ds.json_path)
    network = RatingNetwork(vision, len(fitted))
    network.head.weight.copy_(torch.stack([one.weight for one in fitted.values()]))
    network.head.bias.copy_(torch.stack([one.bias for one in fitted.values()]))
    train, validation = rated
    means = dict(zip(fitted, train.y.nanmean(dim=0).tolist(), strict=False))
    guesses = network.rate(validation.x).tolist()
    rows = [{**row, "vad": vad} for row, vad in zip(validation.rows, guesses, strict=True)]
    return network, {
        "dimensions": [*fitted],
        "images": len(train.rows),
        "mean": means,
        "strength": {name: one.strength for name, one in fitted.items()},
        "validation": rating_scores(rows, None, means)[0],
    }


def _regressions(train: _Rated, validation: _Rated, *, path: str) -> dict[str, Ridge]:
    """Return the fitted map of each dimension that enough pictures have.

    Raises:
        UserError: too few have valence or arousal.
    """
    fitted = {}
    for i, name in enumerate(NAMES):
        known = [~of_split.y[:, i].isnan() for of_split in (train, validation)]
        if all(rows.sum() >= LEAST for rows in known):
            pairs = ((of.x[rows], of.y[rows, i]) for of, rows in zip((train, validation), known, strict=True))
            fitted[name] = fit_ridge(*itertools.chain(*pairs))
        elif i < NEEDED:
            counts = [int(rows.sum()) for rows in known]
            raise UserError(
                f"{path}: {counts[0]} training pictures and {counts[1]} of validation have a rating of {name}; "
                f"stage=ratings needs {LEAST} of each"
            )
    return fitted


def _rated(samples: Samples, tokens: CachedTokens, skipped: list[Skipped]) -> _Rated:
    """Return the features and ratings of the pictures that can be read; the others are added to `skipped`."""
    x, y, rows = [], [], []
    for i, sample in enumerate(samples):
        try:
            found = tokens[i][None]
        except ImageError as error:
            skipped.append(Skipped(sample.id, sample.path, str(error)))
            continue
        x.append(features_of(found, torch.ones(found.shape[:2], dtype=torch.bool)))
        y.append(sample.ratings.vad)
        rows.append({"id": sample.id, "ratings": list(sample.ratings)})
    if not rows:
        raise UserError(f"{samples.path(0).parent}: none of {len(samples)} rated pictures can be read")
    return _Rated(torch.cat(x), torch.tensor(y, dtype=torch.float64), rows)


class _PooledFeatures(HeadFeatures):
    WHOLE = ()  # no language model reads all tokens


class _Weights:
    """What a checkpoint holds; see trainer.runs.task.Task."""

    def __init__(self, network: RatingNetwork, *, with_vision: bool) -> None:
        self.network, self.with_vision = network, with_vision

    def state(self) -> dict[str, Tensor]:
        return self.network.own_state(with_vision=self.with_vision)

    def write(self, folder: Path) -> None:
        pass


def _lines(about: Mapping[str, Any]) -> list[str]:
    """Return a table of the validation."""
    sources, scale = about["validation"]["sources"], about["validation"]["scale"]
    unit = f" (scale {scale[0]:g} to {scale[1]:g})" if scale else ""
    lines = [f"{'':<12}{'strength':>10}{'r':>9}{'error':>9}{'of the mean':>13}   validation{unit}"]
    for name in about["dimensions"]:
        own, mean = sources[PREDICTION][name], sources[TRAINING_MEAN][name]
        cells = [number(own["correlation"]), number(own["error_on_scale"]), number(mean["error_on_scale"])]
        cells = [f"{about['strength'][name]:>10.2g}", *(f"{c:>{w}}" for c, w in zip(cells, (9, 9, 13), strict=True))]
        lines.append(f"{name:<12}{''.join(cells)}")
    pictures = about["validation"]["images"]
    return [*lines, f"{about['images']} training pictures, {pictures} of validation; error: mean absolute"]
