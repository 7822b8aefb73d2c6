"""Build the predictor of a network from the configuration."""

from __future__ import annotations

import math

from omegaconf import DictConfig, OmegaConf

from common.errors import UserError
from data.emotions import EMOTIONS
from model.decoding.generation import Decoding
from trainer.prediction.expert import load_expert
from trainer.prediction.predictor import Predictor
from trainer.runs.checkpoint import Checkpoint
from trainer.setup.parts import Parts


def build_predictor(config: DictConfig, parts: Parts, checkpoint: Checkpoint | None = None) -> Predictor:
    """Return a predictor with the settings of trainer.test.

    Args:
        checkpoint: what test and predict use; None in validation, which writes one reason for the likeliest emotion.

    Raises:
        UserError: see Predictor and load_expert; an invalid fitted temperature.
    """
    test = config.trainer.test
    used, temperature = checkpoint is not None, _temperature(config, checkpoint)
    expert = load_expert(config, checkpoint, parts.captioner, temperature=temperature) if used else None
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
        top_emotions=config.top_emotions if used and config.mode == "predict" else 1,
        with_explanations=parts.with_explanations,
        expert=expert,
        own_reason=config.mode == "test",
    )


def _temperature(config: DictConfig, checkpoint: Checkpoint | None) -> float:
    """As given; `auto` is what was fitted, to probabilities that were scored as they are here, of the same labels."""
    test = config.trainer.test
    if test.emotion_temperature != "auto":
        return float(test.emotion_temperature)
    scored = checkpoint and OmegaConf.select(checkpoint.config, "trainer.test.emotion_scoring")
    of = checkpoint and OmegaConf.select(checkpoint.config, "dataset.labels")
    if scored != test.emotion_scoring or list(of or EMOTIONS) != list(config.dataset.labels or EMOTIONS):
        return 1.0
    fitted = checkpoint.info.get("emotion_temperature", 1.0)
    if not isinstance(fitted, int | float) or not 0 < fitted < math.inf:
        raise UserError(
            f"{checkpoint.folder / 'checkpoint.json'}: emotion_temperature is {fitted!r}, not a number above 0; set "
            "trainer.test.emotion_temperature=1"
        )
    return float(fitted)


def decoding(config: DictConfig) -> Decoding:
    test = config.trainer.test
    return Decoding(
        strategy=test.decoding_strategy,
        max_length=test.max_length,
        temperature=test.temperature,
        top_p=test.top_p,
        top_k=test.top_k,
        beam_width=test.beam_width,
        seed=config.seed,
    )


def decoding_settings(config: DictConfig) -> dict[str, str | int | float]:
    """The settings of trainer.test that have a say under its strategy, for metrics.json and reports."""
    test = config.trainer.test
    used = {"nucleus": ("temperature", "top_p", "top_k", "best_of"), "beam": ("beam_width",)}
    written = ["decoding_strategy", *used.get(test.decoding_strategy, ()), "max_length"]
    keys = ["limit_batches"] if config.dataset.explanations is False else [*written, "limit_batches"]
    if config.dataset.emotions:
        keys += ["emotion_from", "emotion_scoring"]
    return {key: test[key] for key in keys if test[key] is not None}
