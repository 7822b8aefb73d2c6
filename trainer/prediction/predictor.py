"""Predict emotions and explanations for a batch of images; shared by test, predict and validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import NamedTuple

import torch
from torch import Tensor

from data.collate import collate_texts
from data.schema import Batch
from model.captioner import Visual
from model.decoding.beam import GeneratedText
from model.decoding.generation import Decoding, generate
from model.decoding.scoring import contrastive_scores, emotion_log_probs, sentence_vad, text_log_probs
from trainer.prediction.familiar import describe
from trainer.prediction.predictor_settings import PredictorSettings
from trainer.prediction.rows import Prediction, Reason, Vad

MOST_ROWS = 256  # texts and beams generated at once, unless the batch has more images
LISTENED = 4  # one in so many explanations, the best by "picture", is also compared with other pictures


class _Request(NamedTuple):
    """An explanation to generate."""

    image: int  # row of the batch
    id: str
    emotion: int | None
    probability: float | None
    language: str = ""  # "": the template's own


@dataclass(slots=True)
class Predictor(PredictorSettings):
    """Predicts the likeliest label and generates its explanation, or that of a given emotion; see PredictorSettings."""

    def __call__(self, batch: Batch, *, emotion: int | None = None, visual: Visual | None = None) -> list[Prediction]:
        """Return the predictions of the batch's images.

        Args:
            emotion: index of the emotion to explain, instead of the likeliest.
            visual: result of `captioner.look` for the batch, if it is at hand.
        """
        tokens = batch.tokens
        if self.expert is not None and tokens is None:
            tokens = self.captioner.encode(batch.frames)
        visual = visual or self.captioner.look(batch.frames, batch.frame_mask, tokens)
        predictions = self._predict(visual, tokens, batch, emotion)
        if self.template.language_ids and self.with_explanations:
            for prediction, language in zip(predictions, batch.languages, strict=True):
                prediction.beside["language"] = language or self.template.default_language
        if self.familiar is not None:
            unlike = self.familiar.unlike(*describe(batch.frames, batch.frame_mask, visual.mean))
            for prediction, marked in zip(predictions, unlike, strict=True):
                prediction.beside.update({"unfamiliar": True} if marked else {})
        return predictions

    def _predict(self, visual: Visual, tokens: Tensor | None, batch: Batch, emotion: int | None) -> list[Prediction]:
        if self.expert is not None:
            return self._with_expert(visual, tokens, batch, emotion)
        shares = self.emotions(visual).tolist() if self.with_emotions else [None] * len(batch.ids)
        if self.emotion_from == "text" and self.with_emotions and emotion is None:
            return self._from_text(visual, batch.ids, shares)
        requests = self._requests(batch, emotion, shares)
        return self._predictions(batch.ids, shares, self._reasons(visual, requests))

    def _with_expert(self, visual: Visual, tokens: Tensor, batch: Batch, emotion: int | None) -> list[Prediction]:
        """Predict the fused emotion; with `own_reason`, add the explanation of the language model's own emotion."""
        log_probs = self.emotion_log_probs(visual)
        fused = self.expert(log_probs, tokens, batch.frame_mask, batch.ids)
        shares, alone = fused.fused.tolist(), log_probs.argmax(dim=1).tolist()
        requests = self._requests(batch, emotion, shares)
        own = [
            [one[0]._replace(emotion=other, probability=None)] if self.own_reason and other != one[0].emotion else []
            for one, other in zip(requests, alone, strict=True)
        ]
        found = self._reasons(visual, [*requests, *own])
        predictions = self._predictions(batch.ids, shares, found[: len(requests)])
        for i, prediction in enumerate(predictions):
            prediction.beside.update(fused.rows[i])
            if self.own_reason:
                reason = (found[len(requests) + i] or found[i])[0]
                name = self.template.labels[reason.emotion]
                prediction.beside["own"] = {"emotion": name, "explanation": reason.explanation}
        return predictions

    def _predictions(
        self, ids: Sequence[str], shares: Sequence[list[float] | None], found: Sequence[Sequence[Reason]]
    ) -> list[Prediction]:
        temperature = self.temperature if self.expert is None else 1.0  # fused probabilities are calibrated already
        predictions = []
        for id, distribution, reasons in zip(ids, shares, found, strict=True):
            first = {key: getattr(reasons[0], key) for key in ("emotion", "explanation", "log_prob", "vad", "fit")}
            first |= {"reasons": reasons if len(reasons) > 1 else (), "temperature": temperature}
            predictions.append(Prediction(id, distribution=distribution, labels=self.template.labels, **first))
        return predictions

    def emotions(self, visual: Visual) -> Tensor:
        """Return (B, C) probabilities of the template's labels."""
        return (self.emotion_log_probs(visual) / self.temperature).softmax(dim=1)

    def emotion_log_probs(self, visual: Visual) -> Tensor:
        """Return (B, C) log-probabilities before calibration."""
        return emotion_log_probs(
            self.captioner,
            visual,
            prompt=self.template.prompt,
            labels=self.template.label_ids,
            vad=self.aligner,
            mode=self.scoring,
        )

    def _requests(
        self, batch: Batch, emotion: int | None, shares: Sequence[list[float] | None]
    ) -> list[list[_Request]]:
        """Return the explanations that each image gets, that of its likeliest emotion first."""
        found = []
        for image, (id, language, row) in enumerate(zip(batch.ids, batch.languages, shares, strict=True)):
            if row is None:
                chosen = [None]
            else:
                likeliest = sorted(range(len(row)), key=lambda i: -row[i])[: self.top_emotions]
                chosen = likeliest if emotion is None else [emotion]
            found.append([_Request(image, id, i, None if row is None else row[i], language) for i in chosen])
        return found

    def _reasons(self, visual: Visual, requests: Sequence[Sequence[_Request]]) -> list[list[Reason]]:
        """Return the explanation of each request, generated in parts so that memory does not grow with their number."""
        flat = [request for group in requests for request in group]
        if self.with_explanations:
            step = max(1, max(len(visual.prefix), MOST_ROWS // self.decoding.width) // self.best_of)
            reasons = [reason for i in range(0, len(flat), step) for reason in self._write(visual, flat[i : i + step])]
        else:
            reasons = [Reason(request.emotion, request.probability, None, None) for request in flat]
        rest = iter(reasons)
        return [list(islice(rest, len(group))) for group in requests]

    def _write(self, visual: Visual, requests: Sequence[_Request]) -> list[Reason]:
        """Draw `best_of` explanations per request and keep the one that fits best."""
        drafts = [request for request in requests for _ in range(self.best_of)]
        rows = _rows_of(visual, drafts)
        written = self._generate(rows, drafts, self.decoding)
        texts = [self.template.decode(text.tokens) for text in written]
        fits: list[float] | list[None] = [None] * len(drafts)
        if self.best_of > 1:
            fits = self._fits(rows, drafts, texts)
        first = range(0, len(drafts), self.best_of)
        best = [max(range(i, i + self.best_of), key=fits.__getitem__) for i in first]
        return [
            Reason(request.emotion, request.probability, texts[k], written[k].log_prob, vad, fits[k])
            for request, k, vad in zip(requests, best, self._vads(visual, requests), strict=True)
        ]

    def draw(self, visual: Visual, batch: Batch, emotions: Sequence[int | None], count: int) -> list[list[str]]:
        """Return `count` explanations of each image for its emotion, by nucleus sampling."""
        each = zip(batch.ids, emotions, batch.languages, strict=True)
        requests = [_Request(i, id, emotion, None, language) for i, (id, emotion, language) in enumerate(each)]
        drafts = [request for request in requests for _ in range(count)]
        nucleus = replace(self.decoding, strategy="nucleus")
        texts = [
            self.template.decode(text.tokens) for text in self._generate(_rows_of(visual, drafts), drafts, nucleus)
        ]
        return [texts[i : i + count] for i in range(0, len(texts), count)]

    def _generate(self, rows: Visual, drafts: Sequence[_Request], decoding: Decoding) -> list[GeneratedText]:
        """Generate a text per draft; equal drafts follow each other, and each has its own random numbers."""
        prompts, lengths = self._prompts(drafts)
        numbers = [i for _, same in groupby(drafts) for i, _ in enumerate(same)]
        return generate(
            self.captioner,
            rows,
            prompts,
            explanation_tokens=lengths,
            eos_id=self.template.eos_id,
            vad=self.aligner,
            decoding=decoding,
            keys=[f"{draft.id}/{i}" if i else draft.id for draft, i in zip(drafts, numbers, strict=True)],
        )

    def _prompts(self, requests: Sequence[_Request]) -> tuple[Sequence[list[int]], Sequence[int]]:
        """Return the tokens before each explanation, and their number in the explanation segment."""
        prompts = (self.template.explanation_prompt(request.emotion, request.language) for request in requests)
        return zip(*prompts, strict=True)

    def _fits(self, visual: Visual, drafts: Sequence[_Request], texts: Sequence[str]) -> list[float]:
        """Return how well each text fits its picture, by `rank_by`."""
        if self.rank_by == "vle":
            return self.judge([draft.id for draft in drafts], texts)
        emotions, languages = [draft.emotion for draft in drafts], [draft.language for draft in drafts]
        sentences = collate_texts(texts, emotions, languages, template=self.template, aligner=self.aligner)
        sentences = sentences.to(visual.prefix.device)
        if self.rank_by == "contrastive":
            return contrastive_scores(self.captioner, visual, sentences).tolist()
        seen, blind = (text_log_probs(self.captioner, view, sentences) for view in (visual, visual.without_picture()))
        gain = seen - blind
        if self.rank_by == "picture":
            return gain.tolist()
        best = gain.view(-1, self.best_of).topk(math.ceil(self.best_of / LISTENED), dim=1).indices
        rows = (best + torch.arange(0, len(gain), self.best_of, device=best.device)[:, None]).flatten()
        fits = torch.full_like(gain, -torch.inf)
        fits[rows] = gain[rows] + self.others.log_posteriors(self.captioner, sentences, rows, seen)
        return fits.tolist()

    def _vads(self, visual: Visual, requests: Sequence[_Request]) -> list[Vad] | list[None]:
        """Return the predicted mean VAD of each explanation, if the network has that head."""
        if self.captioner.vad_sentence_head is None:
            return [None] * len(requests)
        prompts, lengths = self._prompts(requests)
        rows = _rows_of(visual, requests)
        vad = sentence_vad(self.captioner, rows, prompts, explanation_tokens=lengths, vad=self.aligner)
        return [tuple(values) for values in vad.tolist()]

    def _from_text(self, visual: Visual, ids: Sequence[str], shares: Sequence[list[float]]) -> list[Prediction]:
        """Parse emotion and explanation from freely generated texts."""
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
        labels = self.template.labels
        return [
            Prediction(
                id,
                labels.index(found.emotion) if found.emotion in labels else None,
                distribution,
                found.explanation,
                text.log_prob,
                emotion_text=found.emotion,
                text=f"the emotion is {found.full}",
                temperature=self.temperature,
                labels=labels,
            )
            for id, distribution, text, found in zip(ids, shares, written, parsed, strict=True)
        ]


def _rows_of(visual: Visual, requests: Sequence[_Request]) -> Visual:
    return visual.rows(torch.tensor([request.image for request in requests], device=visual.prefix.device))
