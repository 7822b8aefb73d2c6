"""Settings of scoring from a configuration."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from common.config.rules import SHARDS
from common.errors import UserError
from common.reading import expand_user
from data.readers.facts import Facts, read_facts
from data.readers.shard_lists import find_shards
from data.readers.split import read_samples
from data.readers.texts import AnnotatedText, read_annotated_texts
from data.samples import Samples
from data.split_names import TRAIN
from data.vad.lexicon_files import configured_lexicon
from trainer.score.scores import Settings
from trainer.text_emotion.text_classifier import load_classifier


def scoring_settings(config: DictConfig) -> tuple[Settings, list[str]]:
    """Return the settings of trainer.test, and notes on scores that are left out.

    Raises:
        UserError: trainer.test.text_emotion is not a classifier.
    """
    test, dataset, notes = config.trainer.test, config.dataset, []
    classifier = lexicon = None
    if test.text_emotion is not None:
        classifier = load_classifier(expand_user(test.text_emotion), device=config.trainer.device)
    training = _training_texts(config, notes)
    try:
        lexicon = configured_lexicon(dataset)
    except UserError as error:
        notes.append(f"VAD left out: {error}")
    settings = Settings(
        metrics=tuple(test.metrics),
        group_by=test.group_by or "group",
        training_texts=[found.text for found in training] or None,
        training_emotions=[found.emotion for found in training],
        training_languages=[found.language for found in training],
        novelty=test.novelty,
        facts=_facts(config, notes),
        lexicon=lexicon,
        lexicon_name=dataset.vad_lexicon and Path(dataset.vad_lexicon).name,
        classifier=classifier,
        clip_name=test.clip_score.pretrained_name,
        clip_architecture=test.clip_score.architecture,
        max_pixels=dataset.max_pixels,
        device=config.trainer.device,
        seed=config.seed,
    )
    return settings, notes


def _training_texts(config: DictConfig, notes: list[str]) -> list[AnnotatedText]:
    path = config.dataset.train_ds.json_path
    if config.dataset.explanations is False:
        return []
    what = f"{'novelty and ' if config.trainer.test.novelty else ''}baselines of training texts left out"
    if path is None:
        notes.append(f"{what}: dataset.train_ds.json_path does not name the training texts")
        return []
    try:
        if find_shards(path, where="dataset.train_ds.json_path") is not None:
            shards = OmegaConf.merge(config.dataset, {"name": SHARDS})
            return list(_texts_of(read_samples(shards, "train_ds").samples))
        return read_annotated_texts(expand_user(path), split=TRAIN)
    except UserError as error:
        notes.append(f"{what}: {error}")
        return []


def _texts_of(samples: Samples) -> Iterator[AnnotatedText]:
    for sample in samples:
        names = [samples.labels[emotion] for emotion in sample.emotions]
        pairs = zip_longest(sample.texts, names)
        yield from (AnnotatedText(text, name, sample.language) for text, name in pairs if text.strip())


def _facts(config: DictConfig, notes: list[str]) -> Facts | None:
    path = config.dataset.facts
    if config.dataset.explanations is False:
        return None
    try:
        if path is not None:
            return read_facts(expand_user(path))
        notes.append("grounding left out: dataset.facts does not name a file of what each image shows")
    except UserError as error:
        notes.append(f"grounding left out: {error}")
    return None
