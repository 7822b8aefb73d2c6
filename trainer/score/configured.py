"""What a configuration has a test measure."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from common.errors import UserError
from common.reading import expanded
from data.readers.texts import read_texts
from data.vad.lexicon import Lexicon
from data.vad.lexicon_files import configured_lexicon
from trainer.score.scores import Settings
from trainer.text_emotion.text_classifier import load_classifier


def settings_of(config: DictConfig) -> tuple[Settings, list[str]]:
    """The settings of trainer.test, and notes on what they ask for that is not to be had.

    Raises:
        UserError: trainer.test.text_emotion is no classifier.
    """
    test, dataset, notes = config.trainer.test, config.dataset, []
    classifier = None
    if test.text_emotion is not None:
        classifier = load_classifier(expanded(test.text_emotion), device=config.trainer.device)
    settings = Settings(
        metrics=tuple(test.metrics),
        training_texts=_training_texts(config, notes) if test.novelty else None,
        lexicon=_lexicon(config, notes),
        lexicon_name=dataset.vad_lexicon and Path(dataset.vad_lexicon).name,
        classifier=classifier,
        clip_name=test.clip_score.pretrained_name,
        clip_architecture=test.clip_score.architecture,
        max_pixels=dataset.max_pixels,
        device=config.trainer.device,
        seed=config.seed,
    )
    return settings, notes


def _training_texts(config: DictConfig, notes: list[str]) -> list[str] | None:
    path = config.dataset.train_ds.json_path
    if config.dataset.explanations is False:
        return None
    if path is None:
        notes.append("novelty left out: dataset.train_ds.json_path does not say what was trained on")
        return None
    try:
        return read_texts(expanded(path))
    except UserError as error:
        notes.append(f"novelty left out: {error}")
        return None


def _lexicon(config: DictConfig, notes: list[str]) -> Lexicon | None:
    try:
        return configured_lexicon(config.dataset)
    except UserError as error:
        notes.append(f"VAD left out: {error}")
        return None
