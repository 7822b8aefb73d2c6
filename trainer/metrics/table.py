"""The scores of a test as rows, for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RULE_WORDS = {
    "more_than_half": "one emotion has more than half of the votes",
    "at_least_half": "one emotion has at least half of the votes, untied",
    "unique_maximum": "one emotion has more votes than any other",
}
CAPTION_ORDER = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Aligned plain text of the scores and their notes, without a final newline."""
    rows = emotion_rows(metrics) + caption_rows(metrics)
    name, value = (max((len(row[i]) for row in rows), default=0) for i in (0, 1))
    lines = [f"{row[0]:<{name}}  {row[1]:>{value}}  {row[2]}".rstrip() for row in rows]
    lines += [f"note: {note}" for note in metrics.get("notes") or ()]
    return "\n".join(lines) if lines else "no scores"


def emotion_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, what it was computed on) of the emotion scores; a missing value is an en dash."""
    emotion = metrics.get("emotion")
    if not emotion:
        return []
    rule = RULE_WORDS.get(emotion["rule"], emotion["rule"])
    rows = [
        (
            "emotion accuracy",
            _percent(emotion["accuracy"]),
            f"{emotion['count']} of {emotion['total']} images, where {rule}",
        ),
        ("emotion macro-F1", _number(emotion["macro_f1"]), "mean over the emotions among those labels"),
    ]
    if emotion.get("majority") is not None:
        rows.append(("majority label", _percent(emotion["majority"]), "accuracy of always saying the commonest label"))
    return rows


def caption_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The same of the caption scores; the first row alone says what they were computed on."""
    scores = metrics.get("captions") or {}
    names = [n for n in CAPTION_ORDER if n in scores] + [n for n in scores if n not in CAPTION_ORDER]
    where = [f"{metrics['images']} images"] if metrics.get("images") is not None else []
    where += [f"tokenizer: {metrics['tokenizer']}"] if metrics.get("tokenizer") else []
    return [(n, f"{scores[n]:.3f}", ", ".join(where) if i == 0 else "") for i, n in enumerate(names)]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
