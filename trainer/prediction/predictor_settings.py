"""What a predictor is made of and how it predicts, checked for settings that exclude each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.errors import UserError
from data.emotions import number_word
from data.text import Template
from model.captioner import Captioner
from model.decoding.generation import Decoding, WordVad
from model.language import LanguageModel
from trainer.prediction.expert import Expert
from trainer.prediction.familiar import Familiar
from trainer.prediction.others import Others
from trainer.setup.autos import NEEDS_TEXT_EMOTION


@dataclass(slots=True)
class PredictorSettings:
    """Parts and settings of a predictor.

    Args:
        scoring: how labels are scored, see model.decoding.scoring.
        temperature: divides the labels' log-probabilities; it does not change their order.
        emotion_from: "scores", or "text": emotion and explanation are parsed from freely generated text, and the scores
            are reported only.
        best_of: explanations drawn per emotion; the best by `rank_by` is kept. The first is that of best_of=1; each
            depends on the seed, the image's id and its number.
        rank_by: "contrastive" score; "picture": log p(explanation | picture) − log p(explanation | no picture);
            "pragmatic": that plus log p(picture | explanation) among `others`; or "vle": the score of `judge`.
        judge: image ids and explanations → how well each explanation fits its image, see prediction.judge.ImageJudge.
        others: pictures for "pragmatic".
        top_emotions: number of the likeliest emotions that get an explanation, unless an emotion is given.
        expert: a classifier whose fusion with the language model decides the emotion.
        own_reason: with an expert, also generate the explanation of the language model's own emotion.
        with_explanations: False for a network that was trained on emotion names only.
        familiar: training pictures; marks the rows of images that are unlike them.

    Raises:
        UserError: settings that exclude each other or that this network does not support.
    """

    captioner: Captioner
    template: Template
    aligner: WordVad
    decoding: Decoding
    with_emotions: bool
    scoring: str = "sequence"
    temperature: float = 1.0
    emotion_from: str = "scores"
    best_of: int = 1
    rank_by: str = "contrastive"
    judge: Callable[[Sequence[str], Sequence[str]], list[float]] | None = None
    others: Others | None = None
    top_emotions: int = 1
    with_explanations: bool = True
    expert: Expert | None = None
    own_reason: bool = False
    familiar: Familiar | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        return self.template.labels

    @property
    def language(self) -> LanguageModel:
        return self.captioner.language

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise UserError(problem)

    def _problem(self) -> str | None:
        """Return what is wrong with the settings."""
        labels = self.template.labels
        if self.best_of > 1 and (problem := self._ranking_problem()):
            return problem
        if self.top_emotions > 1 and not self.with_emotions:
            return f"top_emotions={self.top_emotions}: this network was trained without emotions"
        if self.top_emotions > len(labels):
            return f"top_emotions={self.top_emotions}: there are {number_word(labels)} emotions, {', '.join(labels)}"
        if self.emotion_from == "text":
            if not hasattr(self.template, "parse"):
                return NEEDS_TEXT_EMOTION
            for key, count in (("trainer.test.best_of", self.best_of), ("top_emotions", self.top_emotions)):
                if count > 1:
                    return f"{key}={count} needs trainer.test.emotion_from=scores: a generated text has one emotion"
            if self.expert is not None:
                return "trainer.test.emotion_from=text uses the language model alone: add expert.enabled=false"
        return None

    def _ranking_problem(self) -> str | None:
        """Return why several texts cannot be drawn and ranked."""
        several = f"trainer.test.best_of={self.best_of}"
        if self.decoding.strategy != "nucleus":
            return (
                f"{several} needs trainer.test.decoding_strategy=nucleus: "
                f"{self.decoding.strategy} would write the same text every time"
            )
        if self.rank_by == "contrastive" and self.captioner.contrastive is None:
            return (
                f"{several} needs a contrastive head to choose among the texts, and this network has none: train with "
                "model.contrastive.enabled=true, set trainer.test.rank_by=picture, or leave trainer.test.best_of at 1"
            )
        if self.rank_by in ("picture", "pragmatic") and not self.captioner.causal:
            return (
                f"{several} with trainer.test.rank_by={self.rank_by} needs the probability of a text, and this network "
                "has none, since its VAD encoder reads later words: set trainer.test.rank_by=contrastive"
            )
        return None
