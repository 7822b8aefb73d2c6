"""BLEU and METEOR of any set of images, from counts per image.

Neither is a mean over images: BLEU pools the matches (Papineni et al., 2002), METEOR its own counts (Denkowski and
Lavie, 2014). The counts per image therefore give the score of every bootstrap replicate, equal to pycocoevalcap's.

bleu_counts: 10 integers, matches of 1 to 4 words clipped by the references, n-grams of the caption of 1 to 4 words,
words of the caption, words of the reference closest in length (the shorter of two).

meteor_counts: the 23 numbers with which METEOR 1.5 answers a SCORE line: words of caption and reference; function words
of each; for exact, stem, synonym and paraphrase matches the matched content words of caption and reference and the
matched function words of each; chunks; matched words of caption and of reference. A caption that is matched completely
in one chunk adds no chunk to the sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.metrics.bootstrap import Statistic, mean, of_sums

ORDERS = 4
METEOR_COUNTS = 23
TINY, SMALL = 1e-15, 1e-9  # added by pycocoevalcap to the counts of BLEU against division by 0
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75  # METEOR 1.5's parameters for English
STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])

BLEU = tuple(f"BLEU-{n}" for n in range(1, ORDERS + 1))


def bleu_counts(caption: str, references: Sequence[str]) -> list[int]:
    """Return the counts of one image from tokenized texts."""
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    counts = cook_test(caption, cook_refs(references), eff="closest")
    return [int(n) for n in (*counts["correct"], *counts["guess"], counts["testlen"], counts["reflen"])]


def caption_statistics(rows: Sequence[Mapping[str, Any] | None], names: Sequence[str]) -> dict[str, Statistic]:
    """Return the statistics of the scores `names` ("BLEU-1" to "BLEU-4", "METEOR", "CIDEr", …).

    Args:
        rows: for every image its scores by name and, if known, its `bleu_counts` and `meteor_counts`; None for an image
            that does not count, as in the filtered scores.

    BLEU and METEOR without counts are left out, as a mean over images is another number. All others are means of the
    images' scores; CIDEr keeps the document frequencies of all references, drawn or not.
    """
    rows = [row or {} for row in rows]
    known = {key: [row.get(key) for row in rows] for key in ("bleu_counts", "meteor_counts")}
    statistics = {}
    for name in names:
        if name in BLEU and any(known["bleu_counts"]):
            statistics[name] = corpus_bleu(known["bleu_counts"], BLEU.index(name) + 1)
        elif name == "METEOR" and any(known["meteor_counts"]):
            statistics[name] = corpus_meteor(known["meteor_counts"])
        elif name not in (*BLEU, "METEOR"):
            statistics[name] = mean([row.get(name) for row in rows])
    return statistics


def corpus_bleu(counts: Sequence[Sequence[float] | None], n: int) -> Statistic:
    """Return BLEU of n-grams up to `n`, with the closest reference length."""

    def formula(sums: np.ndarray) -> np.ndarray:
        correct, guess = sums[:, :n], sums[:, ORDERS : ORDERS + n]
        length, reference = sums[:, -2], sums[:, -1]
        precision = np.prod((correct + TINY) / (guess + SMALL), axis=1) ** (1 / n)
        shorter = (length + TINY) / (reference + SMALL)
        score = precision * np.exp(np.minimum(0.0, 1 - 1 / shorter))
        return np.where(reference > 0, np.where(length > 0, score, 0.0), np.nan)

    return of_sums(_matrix(counts, 2 * ORDERS + 2), formula)


def corpus_meteor(counts: Sequence[Sequence[float] | None]) -> Statistic:
    """Return METEOR 1.5 for English, ranking weights, of one caption per image."""

    def formula(sums: np.ndarray) -> np.ndarray:
        length, reference, function, reference_function = sums[:, :4].T
        stages = sums[:, 4:20].reshape(-1, len(STAGE_WEIGHTS), 4)
        precision = _weighed(stages[..., 0], stages[..., 2]) / (DELTA * (length - function) + (1 - DELTA) * function)
        recall = _weighed(stages[..., 1], stages[..., 3]) / (
            DELTA * (reference - reference_function) + (1 - DELTA) * reference_function
        )
        chunks, *matched = sums[:, 20:].T
        harmonic = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
        score = harmonic * (1 - GAMMA * (2 * chunks / sum(matched)) ** BETA)
        score = np.where(harmonic > 0, score, 0.0)  # NaN without any match
        return np.where(length + reference > 0, score, np.nan)

    columns = _matrix(counts, METEOR_COUNTS)
    whole = (columns[:, 20] == 1) & (columns[:, 21:] == columns[:, :2]).all(axis=1)
    columns[whole, 20] = 0
    return of_sums(columns, formula)


def _weighed(content: np.ndarray, function: np.ndarray) -> np.ndarray:
    return (DELTA * content + (1 - DELTA) * function) @ STAGE_WEIGHTS


def _matrix(counts: Sequence[Sequence[float] | None], width: int) -> np.ndarray:
    return np.array([[0] * width if row is None else row for row in counts], dtype=np.float64).reshape(-1, width)
