"""What benchmarks.metrics lists beside the caption scores: language, emotions, words' VAD, and the bootstrap of all."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from trainer.metrics.bootstrap import Statistic

VOTES = 6


class Texts(Protocol):
    predictions: Mapping[str, str]
    references: Mapping[str, list[str]]


def explanations(texts: Texts) -> object:
    from trainer.metrics.explanations import explanation_scores

    return explanation_scores(texts.predictions, texts.references)


def novelty(texts: Texts) -> object:
    """The other images' references stand in for training texts."""
    from trainer.metrics.explanations import novelty_scores, tokens

    captions = {image: tokens(text) for image, text in texts.predictions.items()}
    return novelty_scores(captions, itertools.chain.from_iterable(texts.references.values()))


def word_vad(texts: Texts) -> object:
    from data.lexicon import Lexicon
    from trainer.metrics.word_vad import vad_scores

    rng = random.Random(0)
    words = sorted({word for text in texts.predictions.values() for word in text.split()})
    lexicon = Lexicon({word: tuple(rng.uniform(-1, 1) for _ in range(3)) for word in words[::2]})
    return vad_scores(texts.predictions, texts.references, lexicon)


def emotions(texts: Texts) -> object:
    from trainer.metrics.emotions import emotion_report

    return emotion_report(*random_emotions(len(texts.predictions)))


def intervals(texts: Texts) -> object:
    from trainer.metrics.bootstrap import intervals

    images = len(texts.predictions)
    return intervals(figures(images), images)


def comparison(texts: Texts) -> object:
    from trainer.metrics.bootstrap import paired

    images = len(texts.predictions)
    return paired(figures(images), figures(images, seed=1), images)


def figures(images: int, *, seed: int = 0) -> dict[str, Statistic]:
    """A statistic for every figure that has an interval, from rows of random values as a test keeps them."""
    from trainer.metrics import caption_counts, emotions, explanations, word_vad

    rng = np.random.default_rng(seed)
    names = (*caption_counts.BLEU, "METEOR", "ROUGE-L", "CIDEr", "CLIPScore", "RefCLIPScore")
    people = [f"{whose}{name}" for whose in ("", "people_", "same_emotion_") for name in word_vad.NAMES]
    columns = [*names, *people, "simile", "tokens", "max_lcs", "mean_lcs"]
    counts = rng.integers(1, 9, size=(images, 33)).tolist()
    rows = [
        {**dict(zip(columns, values, strict=True)), "bleu_counts": count[:10], "meteor_counts": count[10:]}
        for values, count in zip(rng.random((images, len(columns))).tolist(), counts, strict=True)
    ]
    parts = {
        "captions": caption_counts.caption_statistics(rows, names),
        "captions_filtered": caption_counts.caption_statistics([None, *rows[1:]], names),
        "explanations": explanations.statistics(rows),
        "vad": word_vad.statistics(rows),
        "emotion": emotions.statistics(emotions.emotion_rows(*random_emotions(images, seed=seed))),
    }
    return {f"{part}.{name}": statistic for part, found in parts.items() for name, statistic in found.items()}


def random_emotions(images: int, *, seed: int = 0) -> tuple[list[int], list[list[float]], list[list[int]]]:
    """Predicted emotions, their distributions and people's votes."""
    rng = np.random.default_rng(seed)
    felt = rng.dirichlet([0.3] * 9, size=images)
    votes, distributions = rng.multinomial(VOTES, felt), (felt + rng.dirichlet([0.3] * 9, size=images)) / 2
    return distributions.argmax(axis=1).tolist(), distributions.tolist(), votes.tolist()


MEASURES: list[tuple[str, Callable[[Texts], object]]] = [
    ("language of explanations", explanations),
    ("novelty, 800 in 25,000", novelty),
    ("VAD of words", word_vad),
    ("emotions", emotions),
    ("intervals of 60 figures", intervals),
    ("two runs compared", comparison),
]
