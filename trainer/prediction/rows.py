"""A prediction, and its row of predictions.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from data.emotions import EMOTIONS, labels_entry
from trainer.runs.console import round_significant

Vad = tuple[float, float, float]  # valence, arousal, dominance, in −1..1


@dataclass(frozen=True, slots=True)
class Reason:
    """The explanation of one emotion."""

    emotion: int | None  # index into the labels; None for a model without emotions
    probability: float | None
    explanation: str | None  # None for a model without explanations
    log_prob: float | None  # mean per token of the explanation
    vad: Vad | None = None  # predicted for the whole explanation
    fit: float | None = None  # value by which it was selected among several explanations

    def row(self, labels: Sequence[str] = EMOTIONS) -> dict[str, Any]:
        """Return the entry among the "reasons" of a row."""
        return {
            "emotion": None if self.emotion is None else labels[self.emotion],
            "probability": None if self.probability is None else round_significant(self.probability),
            "explanation": self.explanation,
            "log_prob": self.log_prob and round(self.log_prob, 6),
            **_measures(self.vad, self.fit),
        }


@dataclass(frozen=True, slots=True)
class Prediction:
    id: str
    emotion: int | None  # index into labels; None for a model without emotions, or if its text names no label
    distribution: list[float] | None  # C probabilities, summing to 1
    explanation: str | None  # as in Reason
    log_prob: float | None  # mean per token of the explanation; of the whole text, if the emotion is parsed from it
    vad: Vad | None = None  # as in Reason
    fit: float | None = None
    reasons: Sequence[Reason] = ()  # of the likeliest emotions, this one first; empty if there is only one
    emotion_text: str | None = None  # the emotion as generated, if it is parsed from the text
    text: str | None = None  # that text
    temperature: float = 1.0  # of the calibrated distribution
    labels: Sequence[str] = EMOTIONS  # names of the C emotions
    beside: dict[str, Any] = field(default_factory=dict)  # further entries of the row: sources, gates, own

    def row(self) -> dict[str, Any]:
        """Return the row of predictions.jsonl."""
        name = None if self.emotion is None else self.labels[self.emotion]
        row = {
            "id": self.id,
            **labels_entry(self.labels),
            "emotion": name,
            "emotion_distribution": self.distribution and [round_significant(p) for p in self.distribution],
            "explanation": self.explanation,
            "text": self._sentence(name) if self.text is None else self.text,
            "log_prob": self.log_prob and round(self.log_prob, 6),
            **_measures(self.vad, self.fit),
        }
        if self.distribution is not None and self.temperature != 1:
            row["emotion_temperature"] = self.temperature
        if self.emotion_text is not None:
            row["emotion_text"] = self.emotion_text
        if self.reasons:
            row["reasons"] = [reason.row(self.labels) for reason in self.reasons]
        return row | self.beside

    def _sentence(self, name: str | None) -> str | None:
        if name is None:
            return self.explanation
        return f"the emotion is {name}" + ("" if self.explanation is None else f" because {self.explanation}")


def _measures(vad: Vad | None, fit: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {} if vad is None else {"vad": [round(value, 4) for value in vad]}
    return row if fit is None else row | {"fit": round(fit, 6)}
