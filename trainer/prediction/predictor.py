"""From a batch of pictures to emotions and reasons; what test, predict and validation share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from common.errors import UserError
from data.collate import Item, TextItem, collate
from data.emotions import number_of
from data.schema import Batch, Sample
from data.text import Template
from model.captioner import Captioner, Visual
from model.decoding.generation import Decoding, WordVad, generate
from model.decoding.scoring import contrastive_scores, emotion_log_probs, sentence_vad
from trainer.prediction.expert import Expert
from trainer.prediction.rows import Prediction, Reason, Vad
from trainer.setup.autos import NOT_FREE

MOST_ROWS = 256  # texts and beams that are written at once, where a batch does not have more images than that


class _Asked(NamedTuple):
    """A reason to be written."""

    image: int  # row of the batch
    id: str
    emotion: int | None
    probability: float | None


@dataclass(slots=True)
class Predictor:
    """The emotion is the template's likeliest; the reason is written for it, or for the one that is asked for.

    Args:
        scoring: how labels are scored, see model.decoding.scoring.
        temperature: what the labels' log-probabilities are divided by; it changes no order.
        emotion_from: "scores", or "text": emotion and reason are read from what the model writes freely, and the scores
            only stand beside it.
        best_of: explanations drawn for an emotion, of which the one is kept that the contrastive head gives the highest
            score. The first is the one that best_of=1 gives; each depends on the seed, the image's id and its number.
        top_emotions: so many of the likeliest emotions get a reason, unless one is asked for.
        expert: a classifier beside the language model; then the emotion is what both together say.
        own_reason: with an expert, what the language model would have said without it is written too.
        with_explanations: False for a network that learned the names of emotions alone; then no reason is written.

    Raises:
        UserError: settings that do not go together, or that this network cannot do.
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
    top_emotions: int = 1
    with_explanations: bool = True
    expert: Expert | None = None
    own_reason: bool = False

    def __post_init__(self) -> None:
        several = f"trainer.test.best_of={self.best_of}"
        if self.best_of > 1 and self.decoding.strategy != "nucleus":
            raise UserError(
                f"{several} needs trainer.test.decoding_strategy=nucleus: "
                f"{self.decoding.strategy} would write the same text every time"
            )
        if self.best_of > 1 and self.captioner.contrastive is None:
            raise UserError(
                f"{several} needs the contrastive head that chooses among them, and this network has none: train with "
                "model.contrastive.enabled=true, or leave trainer.test.best_of at 1"
            )
        if self.top_emotions > 1 and not self.with_emotions:
            raise UserError(f"top_emotions={self.top_emotions}: this network was trained without emotions")
        if self.top_emotions > len(self.template.labels):
            raise UserError(
                f"top_emotions={self.top_emotions}: there are {number_of(self.template.labels)} emotions, "
                f"{', '.join(self.template.labels)}"
            )
        if self.emotion_from == "text":
            self._check_reading()
            if self.expert is not None:
                raise UserError(
                    "trainer.test.emotion_from=text reads the language model alone: set expert.enabled=false with it"
                )

    def _check_reading(self) -> None:
        if not hasattr(self.template, "parse"):
            raise UserError(NOT_FREE)
        for key, count in (("trainer.test.best_of", self.best_of), ("top_emotions", self.top_emotions)):
            if count > 1:
                raise UserError(
                    f"{key}={count} needs trainer.test.emotion_from=scores: a text that says its own emotion is one"
                )

    def __call__(self, batch: Batch, *, emotion: int | None = None, visual: Visual | None = None) -> list[Prediction]:
        """Predictions of the batch's images; `visual`: what `look` gave for it, if that was called."""
        tokens = batch.tokens
        if self.expert is not None and tokens is None:
            tokens = self.captioner.encode(batch.frames)
        visual = visual or self.captioner.look(batch.frames, batch.frame_mask, tokens)
        if self.expert is not None:
            return self._joined(visual, tokens, batch, emotion)
        shares = self.emotions(visual).tolist() if self.with_emotions else [None] * len(batch.ids)
        if self.emotion_from == "text" and self.with_emotions and emotion is None:
            return self._read(visual, batch.ids, shares)
        found = self._answered(visual, [self._ask(i, id, emotion, shares[i]) for i, id in enumerate(batch.ids)])
        return self._predictions(batch.ids, shares, found)

    def _joined(self, visual: Visual, tokens: Tensor, batch: Batch, emotion: int | None) -> list[Prediction]:
        """Of language model and expert; `own_reason` adds the reason for what the language model says alone."""
        log_probs = self.emotion_log_probs(visual)
        opinions = self.expert(log_probs, tokens, batch.frame_mask, batch.ids)
        shares, alone = opinions.fused.tolist(), log_probs.argmax(dim=1).tolist()
        asked = [self._ask(i, id, emotion, shares[i]) for i, id in enumerate(batch.ids)]
        own = [
            [_Asked(i, id, alone[i], None)] if self.own_reason and alone[i] != asked[i][0].emotion else []
            for i, id in enumerate(batch.ids)
        ]
        found = self._answered(visual, [*asked, *own])
        predictions = self._predictions(batch.ids, shares, found[: len(asked)])
        for i, prediction in enumerate(predictions):
            prediction.beside.update(opinions.rows[i])
            if self.own_reason:
                said = next(iter(found[len(asked) + i]), found[i][0])
                name = self.template.labels[said.emotion]
                prediction.beside["own"] = {"emotion": name, "explanation": said.explanation}
        return predictions

    def _answered(self, visual: Visual, asked: Sequence[Sequence[_Asked]]) -> list[list[Reason]]:
        """The reasons of each, all written together."""
        at_least = len(visual.prefix)
        reasons = iter(self._reasons(visual, [one for some in asked for one in some], at_least=at_least))
        return [[next(reasons) for _ in some] for some in asked]

    def _predictions(
        self, ids: Sequence[str], shares: Sequence[list[float] | None], found: Sequence[Sequence[Reason]]
    ) -> list[Prediction]:
        temperature = self.temperature if self.expert is None else 1.0  # the gate's own are in what it was given
        return [
            Prediction(
                id,
                some[0].emotion,
                distribution,
                some[0].explanation,
                some[0].log_prob,
                some[0].vad,
                some[0].fit,
                some if len(some) > 1 else (),
                temperature=temperature,
                labels=self.template.labels,
            )
            for id, distribution, some in zip(ids, shares, found, strict=True)
        ]

    def emotions(self, visual: Visual) -> Tensor:
        """(B, C) probabilities of the template's labels."""
        return (self.emotion_log_probs(visual) / self.temperature).softmax(dim=1)

    def emotion_log_probs(self, visual: Visual) -> Tensor:
        """(B, C) log-probabilities as the network has them, whatever the temperature."""
        return emotion_log_probs(
            self.captioner,
            visual,
            prompt=self.template.prompt,
            labels=self.template.label_ids,
            vad=self.aligner,
            mode=self.scoring,
        )

    def _ask(self, image: int, id: str, emotion: int | None, shares: list[float] | None) -> list[_Asked]:
        """The emotions that this image gets a reason for, the likeliest first."""
        if shares is None:
            return [_Asked(image, id, None, None)]
        likeliest = sorted(range(len(shares)), key=lambda i: -shares[i])[: self.top_emotions]
        return [_Asked(image, id, i, shares[i]) for i in (likeliest if emotion is None else [emotion])]

    def _reasons(self, visual: Visual, asked: Sequence[_Asked], *, at_least: int) -> list[Reason]:
        """A reason for each, so many at a time that memory does not grow with what is asked for."""
        if not self.with_explanations:
            return [Reason(one.emotion, one.probability, None, None) for one in asked]
        width = self.decoding.beam_width if self.decoding.strategy == "beam" else 1
        step = max(1, max(at_least, MOST_ROWS // width) // self.best_of)
        return [reason for i in range(0, len(asked), step) for reason in self._write(visual, asked[i : i + step])]

    def _write(self, visual: Visual, asked: Sequence[_Asked]) -> list[Reason]:
        drafts = [one for one in asked for _ in range(self.best_of)]
        looked = _rows_of(visual, drafts)
        prompts, said = zip(*(self.template.explanation_prompt(one.emotion) for one in drafts), strict=True)
        written = generate(
            self.captioner,
            looked,
            prompts,
            explanation_tokens=said,
            eos_id=self.template.eos_id,
            vad=self.aligner,
            decoding=self.decoding,
            keys=[f"{one.id}/{i}" if i else one.id for one in asked for i in range(self.best_of)],
        )
        texts = [self.template.decode(text.tokens) for text in written]
        fits: list[float] | list[None] = [None] * len(drafts)
        if self.best_of > 1:
            sentences = self._sentences(texts, [one.emotion for one in drafts]).to(visual.prefix.device)
            fits = contrastive_scores(self.captioner, looked, sentences).tolist()
        first = range(0, len(drafts), self.best_of)
        best = [max(range(i, i + self.best_of), key=fits.__getitem__) for i in first]
        return [
            Reason(one.emotion, one.probability, texts[k], written[k].log_prob, vad, fits[k])
            for one, k, vad in zip(asked, best, self._vads(visual, asked), strict=True)
        ]

    def _sentences(self, explanations: Sequence[str], emotions: Sequence[int | None]) -> Batch:
        """The texts as training reads them; there are no images with them."""
        items = []
        for explanation, emotion in zip(explanations, emotions, strict=True):
            encoded = self.template.encode(explanation, emotion)
            text = TextItem(encoded, -1 if emotion is None else emotion, *self.aligner.align(encoded.input_ids))
            items.append(Item(Sample("", Path(), ()), torch.empty(0, 3, 0, 0), [text]))
        return collate(items)

    def _vads(self, visual: Visual, asked: Sequence[_Asked]) -> list[Vad] | list[None]:
        """Of the reaction with each emotion, where the network tells it."""
        if self.captioner.vad_sentence_head is None:
            return [None] * len(asked)
        prompts, said = zip(*(self.template.explanation_prompt(one.emotion) for one in asked), strict=True)
        looked = _rows_of(visual, asked)
        vad = sentence_vad(self.captioner, looked, prompts, explanation_tokens=said, vad=self.aligner)
        return [tuple(values) for values in vad.tolist()]

    def _read(self, visual: Visual, ids: Sequence[str], shares: Sequence[list[float]]) -> list[Prediction]:
        """Emotion and reason from one free text, as it stands."""
        written = generate(
            self.captioner,
            visual,
            [self.template.prompt] * len(ids),
            explanation_tokens=[0] * len(ids),
            eos_id=self.template.eos_id,
            vad=self.aligner,
            decoding=self.decoding,
            keys=ids,
            switch=self.template.because[0],
        )
        parsed = [self.template.parse(text.tokens, steps=self.decoding.max_length) for text in written]
        return [
            Prediction(
                id,
                self._label(found.emotion),
                distribution,
                found.explanation,
                text.log_prob,
                emotion_text=found.emotion,
                text=f"the emotion is {found.full}",
                temperature=self.temperature,
                labels=self.template.labels,
            )
            for id, distribution, text, found in zip(ids, shares, written, parsed, strict=True)
        ]

    def _label(self, name: str) -> int | None:
        return self.template.labels.index(name) if name in self.template.labels else None


def _rows_of(visual: Visual, asked: Sequence[_Asked]) -> Visual:
    return visual.rows(torch.tensor([one.image for one in asked], device=visual.prefix.device))
