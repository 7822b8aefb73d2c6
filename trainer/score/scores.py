"""Rows, settings and results of scoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.images import MAX_PIXELS
from trainer.metrics import bootstrap
from trainer.metrics.bootstrap import Statistic
from trainer.metrics.captions import METRICS, TOKENIZERS, CaptionScores

if TYPE_CHECKING:
    from data.readers.facts import Facts
    from data.vad.lexicon import Lexicon
    from trainer.text_emotion.text_classifier import TextClassifier

Row = Mapping[str, Any]  # as in predictions.jsonl


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which scores to compute; without its resource (None) a score is left out.

    Args:
        metrics, tokenizer, spice_parser: as in `caption_scores`.
        training_texts: for the baselines and, if `novelty`, for novelty; training_emotions, training_languages: of
            each, if known.
        baselines: by system, the texts from trainer.metrics.baselines, in place of those from these training texts.
        facts: what the images show, for grounding.
        clip_name, clip_architecture: CLIP for CLIPScore, as in the configuration's model.vision; clip_section: their
            configuration section, for messages; max_pixels, device: for it.
        rating_mean: mean rating of the network's training pictures by dimension, in −1..1.
        group_by: what the "group" of the rows is, such as style.
        seed: of the bootstrap, of novelty's samples and of the baselines.
    """

    metrics: Sequence[str] = METRICS
    tokenizer: str = "ptb"
    spice_parser: Path | None = None
    training_texts: Sequence[str] | None = None
    training_emotions: Sequence[str | None] = ()
    training_languages: Sequence[str] = ()
    novelty: bool = True
    baselines: Mapping[str, Mapping[str, str]] | None = None
    facts: Facts | None = None
    lexicon: Lexicon | None = None
    lexicon_name: str | None = None  # of its file
    classifier: TextClassifier | None = None
    clip_name: str | None = None
    clip_architecture: str | None = None
    clip_section: str = "trainer.test.clip_score"
    max_pixels: int = MAX_PIXELS
    device: str = "auto"
    rating_mean: Mapping[str, float] | None = None
    group_by: str = "group"
    seed: int = bootstrap.SEED


@dataclass(slots=True)
class Scores:
    """Results of scoring.

    Args:
        ids: of the images, in the order of the predictions.
        metrics: metrics.json, plain values.
        images: by id, the values in per_image.jsonl; counts: by id, the counts behind the corpus scores.
        statistics: for trainer.metrics.bootstrap, by the keys of metrics["intervals"], over the images sorted by id.
        baselines: by system, the texts from trainer.metrics.baselines; baseline_scores: their caption scores.
    """

    ids: list[str]
    metrics: dict[str, Any] = field(default_factory=dict)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    counts: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    statistics: dict[str, Statistic] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    baseline_scores: dict[str, CaptionScores] = field(default_factory=dict)

    @property
    def per_image(self) -> list[dict[str, Any]]:
        return [{"id": id, **self.images[id]} for id in self.ids]

    def note(self, *texts: str) -> None:
        notes = self.metrics["notes"]
        notes += [text for text in texts if text not in notes]

    def add(self, section: str, each: Mapping[str, Mapping[str, Any]], statistics: Mapping[str, Statistic]) -> None:
        """Add the values of each image, the statistics and the notes of a section of metrics.json."""
        for id, values in each.items():
            self.images[id] |= values
        self.statistics |= {f"{section}.{name}": statistic for name, statistic in statistics.items()}
        self.note(*self.metrics[section].get("notes", ()))

    @property
    def tokenizer(self) -> str:
        """The tokenizer used: "whitespace" if Java failed."""
        return next(key for key, name in TOKENIZERS.items() if name == self.metrics["tokenizer"])
