"""All scores of predictions with references: metrics.json, and a row per image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import to_json, write_json, write_text
from trainer.metrics.groups import write_groups
from trainer.score import looking, parts
from trainer.score.scores import Row, Scores, Settings

UNFILTERED = "explanations of all images (unfiltered)"
PARTS: dict[str, Callable[[Sequence[Row], Settings, Scores], None]] = {
    "emotion": parts.emotion,
    "baselines": looking.baseline_texts,
    "captions": parts.captions,
    "CLIPScore": parts.clip_score,
    "captions_filtered": parts.captions_filtered,
    "explanations": parts.explanations,
    "alignment": parts.alignment,
    "vad": parts.vad,
    "ratings": parts.ratings,
    "expert": parts.expert,
    "grounding": looking.grounding,
    "figures of the baselines": looking.baselines,
    "looking": looking.looking,
    "languages": parts.languages,
    "groups": parts.groups,
    "intervals": parts.intervals,
}


def measure(rows: Sequence[Row], settings: Settings, *, notes: Sequence[str] = ()) -> Scores:
    """Score one or more images, each with references; a score that fails is replaced by a note.

    Args:
        rows: as in predictions.jsonl, in any order.
        notes: precede those on the scores.
    """
    found = Scores([row["id"] for row in rows])
    rows = sorted(rows, key=lambda row: row["id"])
    found.images = {row["id"]: {} for row in rows}
    found.metrics = {
        "images": len(rows),
        "emotion": None,
        "captions": {},
        "captions_scored": UNFILTERED,
        **dict.fromkeys(("captions_filtered", "explanations", "alignment", "vad", "expert", "tokenizer")),
        **dict.fromkeys(("grounding", "baselines", "looking", "groups")),
        "intervals": {},
        "bootstrap": None,
        "notes": [*notes],
    }
    for name, part in PARTS.items():
        try:
            part(rows, settings, found)
        except Exception as error:  # an error in one score must not discard hours of predicting
            why = f": {error}" if isinstance(error, UserError) else f" ({type(error).__name__}: {error})"
            found.note(f"{name} left out{why}")
    return found


def write_scores(folder: Path, found: Scores, origin: Mapping[str, Any]) -> None:
    """Write metrics.json, per_image.jsonl with a line per image in the order of the predictions, and groups.csv."""
    lines = (to_json(row) for row in found.per_image)
    write_text(folder / "per_image.jsonl", "".join(lines))
    write_groups(folder, found.metrics["groups"])
    write_json(folder / "metrics.json", {**found.metrics, **origin})
