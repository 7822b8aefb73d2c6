"""Seconds that the metrics of a test take, on generated captions.

    python -m benchmarks.metrics [--images 8000] [--references 5] [--only NAME …]

Captions have the lengths of ArtEmis (10 words, references 15) and its vocabulary size (14,469), with the frequencies of
English; those of one image share a subject.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from benchmarks.real_size import print_provenance, print_table
from data.emotions import EMOTIONS
from data.vad.lexicon import Lexicon
from trainer.metrics.captions import caption_scores
from trainer.metrics.explanations import novelty_scores, tokens
from trainer.metrics.word_vad import vad_scores
from trainer.score.measure import measure
from trainer.score.scores import Settings

WORDS, SUBJECT_WORDS, SUBJECT_SHARE = 14_469, 12, 0.4
CAPTION_WORDS, REFERENCE_WORDS, SPREAD, FEWEST, MOST = 10, 15, 5, 5, 30
VOTES = 6


class Texts(NamedTuple):
    """Generated captions and references by image id."""

    predictions: dict[str, str]
    references: dict[str, list[str]]


def generate(images: int, references: int, *, seed: int = 0) -> Texts:
    rng = random.Random(seed)
    lines = (files("symspellpy") / "frequency_dictionary_en_82_765.txt").read_text(encoding="utf-8-sig").splitlines()
    words, counts = zip(*(line.split() for line in lines[:WORDS]), strict=True)
    cumulative = list(itertools.accumulate(map(int, counts)))

    def write(subject: list[str], mean: int) -> str:
        length = min(max(round(rng.gauss(mean, SPREAD)), FEWEST), MOST)
        drawn = rng.choices(words, cum_weights=cumulative, k=length)
        return " ".join(rng.choice(subject) if rng.random() < SUBJECT_SHARE else word for word in drawn)

    texts = Texts({}, {})
    for image in map(str, range(images)):
        subject = rng.sample(words, SUBJECT_WORDS)
        texts.predictions[image] = write(subject, CAPTION_WORDS)
        texts.references[image] = [write(subject, REFERENCE_WORDS) for _ in range(references)]
    return texts


def captions(texts: Texts) -> list[str]:
    return caption_scores(texts.predictions, texts.references, metrics=("bleu", "meteor", "rouge_l", "cider")).notes


def novelty(texts: Texts) -> list[str]:
    """Compare with the references, in place of training texts."""
    written = {image: tokens(text) for image, text in texts.predictions.items()}
    novelty_scores(written, itertools.chain.from_iterable(texts.references.values()))
    return []


def word_vad(texts: Texts) -> list[str]:
    rng = random.Random(0)
    words = sorted({word for text in texts.predictions.values() for word in text.split()})
    lexicon = Lexicon({word: tuple(rng.uniform(-1, 1) for _ in range(3)) for word in words[::2]})
    vad_scores(texts.predictions, texts.references, lexicon)
    return []


def whole_test(texts: Texts) -> list[str]:
    """Score as mode=test does by default, with the references in place of training texts."""
    rng = np.random.default_rng(0)
    felt = rng.dirichlet([0.3] * len(EMOTIONS), size=len(texts.predictions))
    votes, guesses = rng.multinomial(VOTES, felt).tolist(), rng.permuted(felt, axis=1)
    rows = [
        {
            "id": image,
            "explanation": text,
            "emotion": EMOTIONS[int(guess.argmax())],
            "emotion_distribution": guess.tolist(),
            "references": texts.references[image],
            "histogram": histogram,
        }
        for (image, text), guess, histogram in zip(texts.predictions.items(), guesses, votes, strict=True)
    ]
    training = [text for references in texts.references.values() for text in references]
    return measure(rows, Settings(training_texts=training)).metrics["notes"]


MEASURES: dict[str, Callable[[Texts], list[str]]] = {  # each returns notes on what it left out
    "caption metrics": captions,
    "novelty": novelty,
    "VAD of words": word_vad,
    "a whole test, with intervals": whole_test,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metrics", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8000, help="(%(default)s)")
    parser.add_argument("--references", type=int, default=5, help="of each image (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=[*MEASURES], help="rows to measure (all)")
    options = parser.parse_args()
    texts = generate(options.images, options.references)
    rows = []
    for name in options.only:
        start = time.perf_counter()
        notes = MEASURES[name](texts)
        rows.append((name, time.perf_counter() - start))
        for note in notes:
            print(f"{name}: {note}", file=sys.stderr)
    print_provenance(options)
    print_table(("measure", "s"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
