"""From a batch of pictures to emotions and reasons; what test, predict and validation share."""

from __future__ import annotations

from dataclasses import dataclass

from data.emotions import EMOTIONS
from data.schema import Batch
from data.text import Template
from data.vad_align import VadAligner
from model.captioner import Captioner, Visual
from model.generation import Decoding, generate
from model.scoring import emotion_log_probs


@dataclass(frozen=True, slots=True)
class Prediction:
    id: str
    emotion: int | None  # index into EMOTIONS; None for a model without emotions
    distribution: list[float] | None  # nine probabilities, summing to 1
    explanation: str
    log_prob: float  # mean per token of the explanation

    def row(self) -> dict:
        """As it stands in predictions.jsonl."""
        name = None if self.emotion is None else EMOTIONS[self.emotion]
        return {
            "id": self.id,
            "emotion": name,
            "emotion_distribution": self.distribution and [round(p, 6) for p in self.distribution],
            "explanation": self.explanation,
            "text": self.explanation if name is None else f"the emotion is {name} because {self.explanation}",
            "log_prob": round(self.log_prob, 6),
        }


@dataclass(slots=True)
class Predictor:
    """The emotion is the likeliest of the nine; the reason is written for it, or for the one that is asked for."""

    captioner: Captioner
    template: Template
    aligner: VadAligner
    decoding: Decoding
    with_emotions: bool

    def __call__(self, batch: Batch, *, emotion: int | None = None, visual: Visual | None = None) -> list[Prediction]:
        """Predictions of the batch's images; `visual`: what `look` gave for it, if that was called."""
        visual = visual or self.captioner.look(batch.frames, batch.frame_mask, batch.tokens)
        distribution: list[list[float]] | list[None] = [None] * len(batch.ids)
        chosen: list[int | None] = [None] * len(batch.ids)
        if self.with_emotions:
            probabilities = self.emotions(visual)
            distribution = probabilities.tolist()
            chosen = [emotion] * len(batch.ids) if emotion is not None else probabilities.argmax(dim=1).tolist()
        prompts = [self.template.explanation_prompt(label) for label in chosen]
        written = generate(
            self.captioner,
            visual,
            [ids for ids, _ in prompts],
            explanation_tokens=[said for _, said in prompts],
            eos_id=self.template.eos_id,
            vad=self.aligner,
            decoding=self.decoding,
            keys=batch.ids,
        )
        return [
            Prediction(key, label, shares, self.template.decode(text.tokens), text.log_prob)
            for key, label, shares, text in zip(batch.ids, chosen, distribution, written, strict=True)
        ]

    def emotions(self, visual: Visual):
        """(B, 9) probabilities."""
        return emotion_log_probs(
            self.captioner, visual, prompt=self.template.prompt, labels=self.template.label_ids, vad=self.aligner
        ).exp()
