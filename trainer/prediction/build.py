"""Build the predictor of a network from the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from common.errors import UserError
from data.emotions import EMOTIONS
from model.decoding.generation import Decoding
from trainer.metrics.calibration import stored_temperature
from trainer.prediction.expert import load_expert
from trainer.prediction.familiar import read_familiar
from trainer.prediction.others import Others, read_others
from trainer.prediction.predictor import Predictor
from trainer.runs.checkpoint import Checkpoint
from trainer.setup.parts import Parts

if TYPE_CHECKING:
    from trainer.prediction.judge import ImageJudge


def build_predictor(
    config: DictConfig, parts: Parts, checkpoint: Checkpoint | None = None, judge: ImageJudge | None = None
) -> Predictor:
    """Return a predictor with the settings of trainer.test.

    Args:
        checkpoint: given in test and predict; None in validation, which explains the likeliest emotion only.
        judge: for trainer.test.rank_by=vle.

    Raises:
        UserError: see Predictor and load_expert; an invalid fitted temperature.
    """
    test = config.trainer.test
    used, temperature = checkpoint is not None, emotion_temperature(config, checkpoint)
    return Predictor(
        parts.captioner,
        parts.template,
        parts.aligner,
        decoding(config),
        parts.with_emotions,
        scoring=test.emotion_scoring,
        temperature=temperature,
        emotion_from=test.emotion_from,
        best_of=test.best_of if used else 1,
        rank_by=test.rank_by,
        judge=judge,
        others=_others(config, checkpoint, parts) if used else None,
        top_emotions=config.top_emotions if used and config.mode != "test" else 1,
        with_explanations=parts.with_explanations,
        expert=load_expert(config, checkpoint, parts.captioner, temperature=temperature) if used else None,
        own_reason=config.mode == "test",
        familiar=read_familiar(checkpoint.folder, dim=parts.captioner.vision.dim)
        if used and config.mode != "test"
        else None,
    )


def _others(config: DictConfig, checkpoint: Checkpoint, parts: Parts) -> Others | None:
    if config.trainer.test.rank_by != "pragmatic" or config.trainer.test.best_of == 1:
        return None
    trained = OmegaConf.select(checkpoint.config, "dataset.labels") or EMOTIONS
    return read_others(checkpoint.folder, labels=parts.template.labels, trained=trained, captioner=parts.captioner)


def emotion_temperature(config: DictConfig, checkpoint: Checkpoint | None) -> float:
    """Return the configured temperature; for `auto` the fitted one, if scoring is unchanged and no label is new."""
    test = config.trainer.test
    if test.emotion_temperature != "auto":
        return float(test.emotion_temperature)
    if checkpoint is None:
        return 1.0
    scoring = OmegaConf.select(checkpoint.config, "trainer.test.emotion_scoring")
    labels = OmegaConf.select(checkpoint.config, "dataset.labels")
    if scoring != test.emotion_scoring or not {*(config.dataset.labels or EMOTIONS)} <= {*(labels or EMOTIONS)}:
        return 1.0
    try:
        return stored_temperature(checkpoint.info.get("emotion_temperature", 1.0))
    except ValueError as error:
        path = checkpoint.folder / "checkpoint.json"
        raise UserError(f"{path}: the emotion {error}; set trainer.test.emotion_temperature=1") from error


def ranks_by_vle(config: DictConfig) -> bool:
    """Return whether trainer.test.vle chooses among several explanations."""
    return config.trainer.test.rank_by == "vle" and config.trainer.test.best_of > 1


def decoding(config: DictConfig) -> Decoding:
    test = config.trainer.test
    keys = ("max_length", "temperature", "top_p", "top_k", "beam_width", "guidance")
    return Decoding(strategy=test.decoding_strategy, seed=config.seed, **{key: test[key] for key in keys})


def decoding_settings(config: DictConfig) -> dict[str, str | int | float]:
    """Return the settings of trainer.test that affect the predictions, for metrics.json and reports."""
    test = config.trainer.test
    used = {"nucleus": ("temperature", "top_p", "top_k", "best_of"), "beam": ("beam_width",)}
    text = ["decoding_strategy", *used.get(test.decoding_strategy, ()), "max_length"]
    text += ["rank_by"] * (test.best_of > 1) + ["guidance"] * (test.guidance > 0)
    keys = ["limit_batches"] if config.dataset.explanations is False else [*text, "limit_batches"]
    if config.dataset.emotions:
        keys += ["emotion_from", "emotion_scoring"]
    return {key: test[key] for key in keys if test[key] is not None}
