"""Scores of VLE's tasks, each with the score of a baseline that does not depend on the picture.

A section has its scores and, under "intervals", the 95 % interval of each by the bootstrap over pictures: all texts or
questions of a picture are drawn together, since their scores are not independent. A tie between a right and a wrong
candidate counts as wrong, so equal scores for all candidates reach nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from trainer.metrics.bootstrap import Statistic, Values, floats, intervals, ratio, score

RANKS = (1, 5, 10)
ANY_TYPE = ""  # key of the commonest answer to questions of whatever type

Box = Sequence[float]  # left, top, right, bottom in shares of the picture


def vqa_accuracy(
    predicted: Sequence[str],
    answers: Sequence[Mapping[str, float]],
    *,
    types: Sequence[str],
    pictures: Sequence[Hashable],
    commonest: Mapping[str, str],
) -> dict[str, Any]:
    """Return the mean soft score of the predicted answers, for all questions and by type.

    Args:
        answers: the soft scores of each question's answers, in the spelling of `predicted`.
        types, pictures: of each question.
        commonest: the baseline, see `commonest_answers`.

    Returns:
        accuracy; baseline, the accuracy of the commonest answer to questions of the type; gain, the difference;
        questions; types: the same by type; intervals ("accuracy", …, "types.number.gain").
    """
    fixed = [commonest.get(kind, commonest.get(ANY_TYPE, "")) for kind in types]
    reached, baseline = (
        np.array([scores.get(answer, 0.0) for answer, scores in zip(given, answers, strict=True)])
        for given in (predicted, fixed)
    )
    all_values = {"accuracy": reached, "baseline": baseline, "gain": reached - baseline}
    counts, kinds = Counter(types), np.array(types, dtype=object)
    by_type = {
        f"types.{kind}.{name}": np.where(kinds == kind, values, np.nan)
        for kind in counts
        for name, values in all_values.items()
    }
    section = _section({**all_values, **by_type}, pictures)
    section["types"] = {
        kind: {name: section.pop(f"types.{kind}.{name}") for name in all_values} | {"questions": counts[kind]}
        for kind in sorted(counts)
    }
    return {"questions": len(types), **section}


def commonest_answers(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the answer with the highest sum of soft scores for each type of question, and for any (ANY_TYPE).

    Args:
        rows: the picture rows that were trained on.
    """
    sums: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        for question in row["questions"]:
            for kind in {question["type"], ANY_TYPE}:
                sums[kind].update(question["answers"])
    return {kind: max(counts, key=lambda answer: (counts[answer], answer)) for kind, counts in sums.items() if counts}


def itm_scores(scores: np.ndarray, truth: Sequence[int]) -> dict[str, Any]:
    """Return recall among the first 1, 5 and 10 candidates of retrieval in both directions.

    A text finds its picture among all pictures. A picture finds any one of its texts among all texts; pictures without
    a text are candidates only.

    Args:
        scores: (texts, pictures), higher for a better match; a comparison with NaN counts as wrong.
        truth: (texts,) column of the picture of each text.

    Returns:
        text_to_image and image_to_text, each with "R@1", "R@5", "R@10", chance (the same for random scores),
        candidates and intervals. The intervals leave the set of candidates as it is.
    """
    scores, truth = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=np.int64)
    texts, pictures = scores.shape
    own = np.zeros(scores.shape, dtype=bool)
    own[np.arange(texts), truth] = True
    of_text = (~own & ~(scores[own][:, None] > scores)).sum(axis=1)  # pictures that are not worse than the true one
    described = np.flatnonzero(own.any(axis=0))
    best = np.where(own, np.nan_to_num(scores, nan=-np.inf), -np.inf).max(axis=0)
    of_picture = (~own & ~(best > scores)).sum(axis=0)[described]
    counts = own.sum(axis=0)[described]
    return {
        "text_to_image": _recall(of_text, truth, pictures, np.ones(texts, dtype=np.int64)),
        "image_to_text": _recall(of_picture, described, texts, counts),
    }


def _recall(better: np.ndarray, pictures: np.ndarray, candidates: int, right: np.ndarray) -> dict[str, Any]:
    """Return recall among the first of RANKS.

    Args:
        better: (items,) number of wrong candidates that are not worse than the best right one.
        pictures: (items,) for the bootstrap.
        candidates: their number.
        right: (items,) number of right candidates.
    """
    chance = {f"R@{k}": float(np.mean([_random_hit(k, candidates, count) for count in right])) for k in RANKS}
    values = {f"R@{k}": (better < k).astype(np.float64) for k in RANKS}
    return {**_section(values, pictures), "chance": chance, "candidates": candidates}


def _random_hit(k: int, candidates: int, right: int) -> float:
    """Return the probability that at least one of `right` candidates is among k drawn ones."""
    drawn = np.arange(min(k, candidates))
    return 1.0 - float(np.prod(np.clip(candidates - right - drawn, 0, None) / (candidates - drawn)))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the area under precision over recall, in steps; equal scores form one step. None without a positive.

    Args:
        scores, labels: (patches,), finite floats and booleans.
    """
    scores, labels = np.asarray(scores), np.asarray(labels, dtype=bool)
    if not labels.any():
        return None
    if not np.isfinite(scores).all():
        raise ValueError("scores are NaN or infinite")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of each group of equal scores
    hits, ranks = np.cumsum(labels[order])[last], (np.arange(len(scores)) + 1)[last]
    return float((np.diff(hits, prepend=0) * hits / ranks).sum() / hits[-1])


def pbc_scores(
    scores: np.ndarray,
    boxes: Sequence[Sequence[Box]],
    *,
    grid: tuple[int, int],
    pictures: Sequence[Hashable],
    labels: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return how well the scores of patches find the boxes that each text names; a text without a box does not count.

    Args:
        scores: (texts, patches), patches in rows from the top left.
        boxes: of each text, in shares of what the patches cover.
        grid: rows and columns of patches.
        pictures: of each text.
        labels: (texts, patches) of average_precision; by default, whether the center of a patch is in a box.

    Returns:
        average_precision, mean over texts; positive_rate, which random scores reach; pointing, the share of texts whose
        highest patch has its center in a box; pointing_random, the share of patches that do, which a random patch
        reaches; pointing_center, the share of texts with the center of the picture in a box; texts; intervals.
    """
    values: dict[str, list[float | None]] = defaultdict(list)
    for i, named in enumerate(boxes):
        inside = patches_in_boxes(named, grid)
        positive = inside if labels is None else np.asarray(labels[i], dtype=bool)
        found = average_precision(scores[i], positive) if named else None
        highest = np.asarray(scores[i]) == np.max(scores[i])
        values["average_precision"].append(found)
        values["positive_rate"].append(None if found is None else positive.mean())
        values["pointing"].append(inside[highest].mean() if named else None)  # of several highest, one at random
        values["pointing_random"].append(inside.mean() if named else None)
        values["pointing_center"].append(patches_in_boxes(named, (1, 1)).mean() if named else None)
    return {**_section(values, pictures), "texts": sum(map(bool, boxes))}


def patches_in_boxes(boxes: Sequence[Box], grid: tuple[int, int]) -> np.ndarray:
    """Return whether the center of each patch is in a box: (rows × columns,), in rows from the top left."""
    y, x = ((np.arange(count) + 0.5) / count for count in grid)
    inside = np.zeros(grid, dtype=bool)
    for left, top, right, bottom in boxes:
        inside |= ((y >= top) & (y < bottom))[:, None] & (x >= left) & (x < right)
    return inside.ravel()


def vcr_scores(
    q2a: np.ndarray, qa2r: np.ndarray, labels: np.ndarray, *, pictures: Sequence[Hashable] | None = None
) -> dict[str, Any]:
    """Return the accuracy of the answer (Q2A), of the rationale (QA2R) and of both (Q2AR).

    Args:
        q2a, qa2r: (questions, choices) logits.
        labels: (questions, 2) the right answer and the right rationale.
        pictures: of each question; by default, each has its own.

    Returns:
        Q2A, QA2R, Q2AR; chance, the same for random logits; questions; intervals.
    """
    labels = np.asarray(labels, dtype=np.int64)
    answer, rationale = (_chosen(np.asarray(logits), labels[:, i]) for i, logits in enumerate((q2a, qa2r)))
    values = {"Q2A": answer, "QA2R": rationale, "Q2AR": answer * rationale}
    chance = {"Q2A": 1 / np.shape(q2a)[1], "QA2R": 1 / np.shape(qa2r)[1]}
    chance["Q2AR"] = chance["Q2A"] * chance["QA2R"]
    pictures = range(len(labels)) if pictures is None else pictures
    return {**_section(values, pictures), "chance": chance, "questions": len(labels)}


def _chosen(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return 1 where the labelled choice has a higher logit than every other, else 0."""
    right = np.take_along_axis(logits, labels[:, None], axis=1)
    return ((right > logits).sum(axis=1) == logits.shape[1] - 1).astype(np.float64)


def _section(values: Mapping[str, Values], pictures: Sequence[Hashable] | np.ndarray) -> dict[str, Any]:
    """Return the mean of each of `values` (items,) and, under "intervals", its interval; NaN does not count."""
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(picture, len(numbers)) for picture in pictures], dtype=np.int64)
    statistics = {name: _clustered(floats(items), index, len(numbers)) for name, items in values.items()}
    means = {name: score(statistic, len(numbers)) for name, statistic in statistics.items()}
    return {**means, "intervals": intervals(statistics, len(numbers))}


def _clustered(items: np.ndarray, index: np.ndarray, pictures: int) -> Statistic:
    """Return the mean over items as a statistic of draws of `pictures`; `index` is the picture of each item."""
    counts = ~np.isnan(items)
    sums = np.bincount(index, weights=np.where(counts, items, 0.0), minlength=pictures)
    return ratio(sums, np.bincount(index, weights=counts, minlength=pictures))
