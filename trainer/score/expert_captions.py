"""Explanations generated for the fused emotion, compared with the language model's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.metrics import bootstrap
from trainer.metrics.bootstrap import Statistic, mean
from trainer.metrics.captions import caption_scores
from trainer.score.scores import Row, Scores, Settings

ALIGNMENT = {"alignment": "accuracy", "alignment_cross_entropy": "cross_entropy"}  # key per image: key of the mean


def own_captions(rows: Sequence[Row], settings: Settings, found: Scores) -> dict[str, Any]:
    """Score the language model's own explanations, and compare them with those for the fused emotion.

    Args:
        rows: each with "own", the emotion and explanation of the language model alone (None if it has none).
        found: with the scores of the captions and, if there is a classifier, of the alignment.

    Returns:
        images; emotions_differ and explanations_differ, numbers of images; figures: by score, the result of
        bootstrap.paired, `first` the language model's own and `second` the fused; empty if no explanation differs.

    Raises:
        UserError: as `caption_scores`.
    """
    own = {row["id"]: row["own"]["explanation"] for row in rows}
    section: dict[str, Any] = {
        "images": len(rows),
        "emotions_differ": sum(row["own"].get("emotion") != row["emotion"] for row in rows),
        "explanations_differ": sum(own[row["id"]] != row["explanation"] for row in rows),
        "figures": {},
    }
    if section["explanations_differ"]:
        own = {id: text or "" for id, text in own.items()}
        first = _captions(rows, own, settings, found) | _alignment(rows, own, settings, found)
        second = {key: found.statistics[key] for key in first if key in found.statistics}
        section["figures"] = bootstrap.paired(first, second, len(rows), seed=settings.seed)
    return section


def _captions(rows: Sequence[Row], own: Mapping[str, str], settings: Settings, found: Scores) -> dict[str, Statistic]:
    if not found.metrics["captions"]:
        return {}
    scores = caption_scores(
        own,
        {row["id"]: row["references"] for row in rows},
        metrics=settings.metrics,
        tokenizer=found.tokenizer,
        spice_parser=settings.spice_parser,
    )
    found.note(*(f"the language model's own explanations: {note}" for note in scores.notes))
    statistics = scores.statistics([row["id"] for row in rows])
    return {f"captions.{name}": statistic for name, statistic in statistics.items()}


def _alignment(rows: Sequence[Row], own: Mapping[str, str], settings: Settings, found: Scores) -> dict[str, Statistic]:
    if settings.classifier is None or not found.metrics["alignment"]:
        return {}
    from trainer.metrics.alignment import alignment_scores

    _, each = alignment_scores(own, {row["id"]: row.get("histogram") for row in rows}, settings.classifier)
    return {f"alignment.{key}": mean([each[row["id"]][name] for row in rows]) for name, key in ALIGNMENT.items()}
