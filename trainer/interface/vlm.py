"""A vision-language model tuned by stage=vlm as an object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from omegaconf import DictConfig

from data.emotions import emotion_index
from data.prepare.instructions.conversations import asking
from data.talks import TalkBatch, reduced
from trainer.interface.pictures import AnyPicture, Picture, as_list, read_picture
from trainer.interface.results import Explanation
from trainer.prediction.expert import require_no_others
from trainer.prediction.vlm_predictor import build_vlm_predictor
from trainer.prediction.writer import computing
from trainer.runs.checkpoint import Checkpoint
from trainer.setup.device import make_accelerator


class Vlm:
    """A VLM in memory, see docs/vlm.md. A picture is a path, a PIL image or an array; a list gives a list."""

    def __init__(self, config: DictConfig, checkpoint: Checkpoint) -> None:
        self.config, self.checkpoint = config, checkpoint
        self.accelerator = make_accelerator(config)
        self.predictor = build_vlm_predictor(config, checkpoint, self.accelerator)
        require_no_others(self.predictor.expert, checkpoint)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.predictor.labels

    def emotions(self, images: AnyPicture | Sequence[AnyPicture]) -> dict[str, float] | list[dict[str, float]]:
        """Return the probability of each emotion; nothing is generated."""
        found = self._explained(images, replace(self.predictor, with_explanations=False))
        shares = [dict(zip(self.labels, one.row["emotion_distribution"], strict=True)) for one in found]
        return shares[0] if as_list(images)[1] else shares

    def explain(
        self, images: AnyPicture | Sequence[AnyPicture], *, emotion: str | None = None
    ) -> Explanation | list[Explanation]:
        """Return why each picture evokes its likeliest emotion, or the one that is named."""
        found = self._explained(images, replace(self.predictor, with_explanations=True), emotion)
        return found[0] if as_list(images)[1] else found

    def ask(self, images: AnyPicture | Sequence[AnyPicture], question: str) -> str | list[str]:
        """Return the model's answer to any question about each picture."""
        found: list[str] = []
        for pictures, batch in self._batches(images):
            with computing(self.predictor.language, self.accelerator):
                answerer = self.predictor.scorer.answerer
                found += answerer.generate(batch.pictures, [asking(question)] * len(pictures), **self.predictor.options)
        return found[0] if as_list(images)[1] else found

    def _explained(
        self, images: AnyPicture | Sequence[AnyPicture], predictor, emotion: str | None = None
    ) -> list[Explanation]:
        index = None if emotion is None else emotion_index(emotion, where="emotion", labels=self.labels)
        found: list[Explanation] = []
        for pictures, batch in self._batches(images):
            with computing(predictor.language, self.accelerator):
                predictions = predictor(batch, emotion=index)
            for picture, prediction in zip(pictures, predictions, strict=True):
                row = prediction.row() | ({} if index is None else {"asked_emotion": True})
                found.append(Explanation(prediction.explanation, (), row, picture.rgb))
        return found

    def _batches(self, images: AnyPicture | Sequence[AnyPicture]) -> Iterator[tuple[list[Picture], TalkBatch]]:
        given, _ = as_list(images)
        dataset, side = self.config.dataset, self.config.vlm.max_side
        size, limit = dataset.test_ds.batch_size, dataset.max_pixels
        for start in range(0, len(given), size):
            pictures = [read_picture(image, max_pixels=limit) for image in given[start : start + size]]
            shown = [reduced(picture.rgb.copy(), max_side=side) for picture in pictures]
            none = torch.zeros(len(pictures), len(self.labels))
            yield pictures, TalkBatch([picture.id for picture in pictures], shown, none)
