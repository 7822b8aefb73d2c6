"""Predict emotion and reason with a vision-language model, alone or with heads and a gate beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import Tensor, nn

from common.errors import UserError
from data.emotions import number_word
from data.loaders import drop_empty_batches
from data.samples import Samples
from data.talks import TalkBatch
from model.expert.student import STUDENT
from trainer.metrics.sources import LANGUAGE_MODEL
from trainer.prediction.build import emotion_temperature
from trainer.prediction.expert import Expert, load_expert
from trainer.prediction.rows import Prediction, Reason
from trainer.prediction.vlm import EmotionScorer, load_vlm, picture_loader
from trainer.prediction.writer import computing
from trainer.runs.checkpoint import Checkpoint

BECAUSE = "because "


@dataclass(slots=True)
class VlmPredictor:
    """Predicts emotion and reason; used as trainer.prediction.predictor.Predictor is.

    The emotion is scored: the model's probability of each label, with the end of its turn, as the answer to a fixed
    question. Nothing is parsed from generated text.

    Args:
        options: of transformers' generate.
        temperature: divides the labels' log-probabilities.
        with_explanations: whether reasons are generated.
    """

    scorer: EmotionScorer
    options: dict[str, Any]
    temperature: float = 1.0
    top_emotions: int = 1
    with_explanations: bool = True
    expert: Expert | None = None
    own_reason: bool = False
    judge: None = None  # as in Predictor

    def __post_init__(self) -> None:
        if self.top_emotions > len(self.labels):
            known = f"there are {number_word(self.labels)} emotions, {', '.join(self.labels)}"
            raise UserError(f"top_emotions={self.top_emotions}: {known}")

    @property
    def language(self) -> nn.Module:
        return self.scorer.answerer.network

    @property
    def labels(self) -> tuple[str, ...]:
        return self.scorer.labels

    def __call__(self, batch: TalkBatch, *, emotion: int | None = None) -> list[Prediction]:
        """Return the predictions; emotion: to explain, instead of the likeliest."""
        log_probs, tokens = self.scorer(batch)
        alone = (log_probs / self.temperature).softmax(dim=1)
        shares, beside = alone, [{} for _ in batch.ids]
        if self.expert is not None:
            real = torch.ones(len(tokens), 1, dtype=torch.bool, device=tokens.device)
            shares, beside = self.expert(log_probs, tokens, real, batch.ids)
        likeliest, own = shares.argsort(dim=1, descending=True).tolist(), alone.argmax(dim=1).tolist()
        wanted = [[emotion] if emotion is not None else some[: self.top_emotions] for some in likeliest]
        also = [[own[i]] * (self.own_reason and own[i] != some[0]) for i, some in enumerate(wanted)]
        pairs = [(i, label) for i, some in enumerate(wanted) for label in (*some, *also[i])]
        texts = dict(zip(pairs, self._reasons(batch, pairs), strict=True))
        predictions = []
        for i, id in enumerate(batch.ids):
            distribution = shares[i].tolist()
            reasons = [Reason(label, distribution[label], texts[i, label], None) for label in wanted[i]]
            if self.own_reason and self.expert is not None:
                beside[i]["own"] = {"emotion": self.labels[own[i]], "explanation": texts.get((i, own[i]))}
            predictions.append(
                Prediction(
                    id, reasons[0].emotion, distribution, reasons[0].explanation, None,
                    reasons=reasons if len(reasons) > 1 else (),
                    temperature=self.temperature if self.expert is None else 1.0,
                    labels=self.labels, beside=beside[i],
                )
            )  # fmt: skip
        return predictions

    def _reasons(self, batch: TalkBatch, pairs: Sequence[tuple[int, int]]) -> list[str] | list[None]:
        """Return the reason of each picture and emotion, generated in parts as large as the batch."""
        if not self.with_explanations:
            return [None] * len(pairs)
        texts = []
        for start in range(0, len(pairs), len(batch.ids)):
            part = pairs[start : start + len(batch.ids)]
            pictures, questions = zip(
                *((batch.pictures[i], self.scorer.why(self.labels[k])) for i, k in part), strict=True
            )
            texts += self.scorer.answerer.generate(pictures, questions, **self.options)
        return [text.removeprefix(BECAUSE) for text in texts]


def generation_options(config: DictConfig) -> dict[str, Any]:
    """Return trainer.test as options of transformers' generate."""
    test = config.trainer.test
    if test.best_of > 1 or test.guidance:
        key = "best_of" if test.best_of > 1 else "guidance"
        raise UserError(f"trainer.test.{key} is for a captioner; a run of stage=vlm generates each reason once")
    options: dict[str, Any] = {"max_new_tokens": test.max_length, "do_sample": False, "num_beams": 1}
    if test.decoding_strategy == "beam":
        options["num_beams"] = test.beam_width
    if test.decoding_strategy == "nucleus":
        sampling = {key: test[key] for key in ("temperature", "top_p", "top_k") if test[key] is not None}
        options |= {"do_sample": True, **sampling}
    return options


def build_vlm_predictor(config: DictConfig, checkpoint: Checkpoint, accelerator: Accelerator) -> VlmPredictor:
    """Return a predictor with the settings of trainer.test, and the expert of the checkpoint if it has one."""
    temperature = emotion_temperature(config, checkpoint)
    answerer = load_vlm(config, checkpoint, accelerator.device)
    return VlmPredictor(
        EmotionScorer(answerer, config.dataset.labels),
        generation_options(config),
        temperature=temperature if config.vlm.tuned else 1.0,
        top_emotions=config.top_emotions if config.mode == "predict" else 1,
        with_explanations=bool(config.dataset.explanations),
        expert=load_expert(config, checkpoint, answerer.network, temperature=temperature),
        own_reason=config.mode == "test",
    )


def with_head(
    config: DictConfig, checkpoint: Checkpoint, accelerator: Accelerator
) -> tuple[Callable[[TalkBatch], dict[str, Tensor]], Callable[[str, Samples], Iterable[TalkBatch]]]:
    """Return the functions from a batch to the logits of VLM and student, and from samples to batches, for the gate."""
    predictor = build_vlm_predictor(config, checkpoint, accelerator)

    def compute(batch: TalkBatch) -> dict[str, Tensor]:
        with computing(predictor.language, accelerator):
            log_probs, tokens = predictor.scorer(batch)
            real = torch.ones(len(tokens), 1, dtype=torch.bool, device=tokens.device)
            return {LANGUAGE_MODEL: log_probs, STUDENT: predictor.expert.heads(tokens, real)[STUDENT]}

    def loader(split: str, samples: Samples) -> Iterable[TalkBatch]:
        return drop_empty_batches(picture_loader(config, samples)[0], [], strict=False)

    return compute, loader
