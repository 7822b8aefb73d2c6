"""What the fused emotion does to the words: explanations written for it against the language model's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.metrics import bootstrap
from trainer.metrics.bootstrap import Statistic, mean
from trainer.metrics.caption_counts import caption_statistics
from trainer.metrics.captions import caption_scores
from trainer.score.scores import Row, Scores, Settings

ALIGNMENT = {"alignment": "accuracy", "alignment_cross_entropy": "cross_entropy"}  # of an image, of all


def own_captions(rows: Sequence[Row], settings: Settings, found: Scores) -> dict[str, Any]:
    """Both explanations of every image against its references; those for the fused emotion have been scored already.

    Args:
        rows: each with its "own", the emotion and explanation of the language model alone (None: it learned none).
        found: with the scores of the captions and, where there is a classifier, of the alignment.

    Returns:
        images; emotions_differ and explanations_differ, in how many of them; figures: by score, what bootstrap.paired
        says, `first` the language model's own and `second` the fused; none where all explanations are the same.

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
    each = [scores.per_image[row["id"]] | scores.counts.get(row["id"], {}) for row in rows]
    statistics = caption_statistics(each, list(scores.scores))
    return {f"captions.{name}": statistic for name, statistic in statistics.items()}


def _alignment(rows: Sequence[Row], own: Mapping[str, str], settings: Settings, found: Scores) -> dict[str, Statistic]:
    if settings.classifier is None or not found.metrics["alignment"]:
        return {}
    from trainer.metrics.alignment import alignment_scores

    _, each = alignment_scores(own, {row["id"]: row.get("histogram") for row in rows}, settings.classifier)
    return {f"alignment.{key}": mean([each[row["id"]][name] for row in rows]) for name, key in ALIGNMENT.items()}
