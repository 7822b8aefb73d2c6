"""Emotion accuracy and macro-F1 of predicted emotions against what the annotators felt.

An image counts only where its annotators agree enough; three rules for that are in use and give different numbers
on the same predictions, so every result names its rule:

- "more_than_half": one emotion has more than half of the votes (SEVLM, Fu et al., 2024);
- "at_least_half": at least half, and no other has as many (ArtEmis, Achlioptas et al., 2021);
- "unique_maximum": more votes than any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from data.emotions import EMOTIONS
from errors import UserError

RULES = ("more_than_half", "at_least_half", "unique_maximum")
TOLERANCE = 1e-6  # shares are ratios of small counts, so a real difference is far larger than rounding
NO_PREDICTION = -1


@dataclass(slots=True)
class EmotionScores:
    """What `emotion_scores` found; lists over emotions are in the order of EMOTIONS."""

    accuracy: float | None  # over the `count` labelled images; None where there is none
    macro_f1: float | None
    majority: float | None  # accuracy of always saying the commonest label
    rule: str
    count: int  # images with a label under the rule
    total: int  # all images
    confusion: list[list[int]]  # 9 x 9: row = annotators' label, column = prediction
    support: list[int]  # images with each label, those without a prediction included
    recall: list[float | None]  # None: no image has this label
    precision: list[float | None]  # None: never predicted for a labelled image
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def dominant_label(histogram: Sequence[float] | None, rule: str = "more_than_half") -> int | None:
    """Emotion (index into EMOTIONS) that the annotators agree on under `rule`, or None.

    Args:
        histogram: nine shares or counts; None or all zero gives None.

    Raises:
        UserError: unknown rule, or not nine finite non-negative numbers.
    """
    if rule not in RULES:
        raise UserError(f"rule {rule!r} is unknown; choose from {', '.join(RULES)}")
    if histogram is None:
        return None
    votes = np.asarray(histogram, dtype=np.float64)
    if votes.shape != (len(EMOTIONS),) or not np.isfinite(votes).all() or (votes < 0).any():
        raise UserError(f"an emotion histogram needs nine numbers of at least 0, not {list(histogram)!r}")
    if votes.sum() <= 0:
        return None
    shares = votes / votes.sum()
    best = int(shares.argmax())
    second = float(np.delete(shares, best).max())
    untied = shares[best] - second > TOLERANCE
    agreed = {
        "more_than_half": shares[best] > 0.5 + TOLERANCE,
        "at_least_half": shares[best] >= 0.5 - TOLERANCE and untied,
        "unique_maximum": untied,
    }
    return best if agreed[rule] else None


def emotion_scores(
    predicted: Sequence[int], histograms: Sequence[Sequence[float] | None], *, rule: str = "more_than_half"
) -> EmotionScores:
    """Scores N predictions (index into EMOTIONS, -1 = none, which counts as wrong) against N histograms of nine.

    macro_f1 is the mean F1 over the emotions that occur among the labels: an emotion that no labelled image has
    does not enter it, though wrongly predicting that emotion lowers the recall of the true one.

    Raises:
        UserError: different lengths, a prediction outside -1..8, an unknown rule, a malformed histogram.
    """
    if len(predicted) != len(histograms):
        raise UserError(f"{len(predicted)} predicted emotions for {len(histograms)} histograms")
    wrong = [p for p in predicted if not NO_PREDICTION <= p < len(EMOTIONS)]
    if wrong:
        raise UserError(f"predicted emotion {wrong[0]} is outside 0..{len(EMOTIONS) - 1}")
    pairs = [(dominant_label(h, rule), int(p)) for h, p in zip(histograms, predicted, strict=True)]
    return _score([(label, p) for label, p in pairs if label is not None], len(pairs), rule)


def _score(pairs: list[tuple[int, int]], total: int, rule: str) -> EmotionScores:
    n = len(EMOTIONS)
    confusion = np.zeros((n, n), dtype=np.int64)
    support = np.zeros(n, dtype=np.int64)
    for label, guess in pairs:
        support[label] += 1
        if guess != NO_PREDICTION:
            confusion[label, guess] += 1
    hits, guessed = confusion.diagonal(), confusion.sum(axis=0)
    present = support > 0
    f1 = 2 * hits / np.maximum(support + guessed, 1)
    notes = [] if pairs else [f"no emotion accuracy: no image has a label under the rule {rule}"]
    return EmotionScores(
        accuracy=float(hits.sum() / support.sum()) if pairs else None,
        macro_f1=float(f1[present].mean()) if pairs else None,
        majority=float(support.max() / support.sum()) if pairs else None,
        rule=rule,
        count=len(pairs),
        total=total,
        confusion=confusion.tolist(),
        support=support.tolist(),
        recall=_ratios(hits, support),
        precision=_ratios(hits, guessed),
        notes=notes,
    )


def _ratios(hits: np.ndarray, totals: np.ndarray) -> list[float | None]:
    return [float(h / t) if t else None for h, t in zip(hits, totals, strict=True)]
