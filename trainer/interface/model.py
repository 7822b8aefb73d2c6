"""A trained run as an object: emotions, explanations, maps and features of pictures in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from common.config.check import check_config, check_key, default_config
from common.config.rules import VLE_STAGES, VLM
from common.errors import UserError
from common.progress import progress
from data.collate import Item, collate
from data.emotions import emotion_index, labels_of
from data.images import build_transform
from data.schema import Batch, Sample
from model.attention_maps import has_attention
from trainer.interface.pictures import AnyPicture, Picture, as_list, read_picture
from trainer.interface.results import Explanation, WordMaps
from trainer.prediction.build import build_predictor, ranks_by_vle
from trainer.prediction.expert import require_no_others
from trainer.prediction.writer import computing
from trainer.report.attention import every_token, visible_box, word_maps, words_of
from trainer.runs.checkpoint import Checkpoint, find_checkpoint
from trainer.setup.device import make_accelerator
from trainer.setup.from_checkpoint import complete_from_checkpoint
from trainer.setup.parts import build_parts

if TYPE_CHECKING:
    from trainer.interface.vle import Vle
    from trainer.interface.vlm import Vlm

MOST_REASONS = 32  # drawn at once for one emotion of one picture


class EmoScribe:
    """A captioner in memory. A picture is a path, a PIL image or an array; a list of pictures gives a list of results.

        model = EmoScribe.from_pretrained("runs/demo")
        print(model.explain("a.jpg"))

    Results are those of `run.py mode=predict` with the same keys. All methods raise UserError for a picture that cannot
    be used. An object is for one thread.
    """

    def __init__(self, config: DictConfig, checkpoint: Checkpoint) -> None:
        self.config, self.checkpoint = config, checkpoint
        if ranks_by_vle(config):
            raise UserError("trainer.test.rank_by=vle needs mode=test or predict: here, take contrastive or picture")
        self.accelerator = make_accelerator(config)
        self.parts = build_parts(config, checkpoint=checkpoint)
        self.parts.captioner.to(self.accelerator.device).eval()
        self.predictor = build_predictor(config, self.parts, checkpoint)
        require_no_others(self.predictor.expert, checkpoint)
        self.transform = build_transform(self.parts.captioner.vision.preprocess)
        self.parts.optimize(bf16=self.accelerator.mixed_precision == "bf16")

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device: str = "auto", keys: Mapping[str, Any] | None = None
    ) -> EmoScribe | Vle | Vlm:
        """Load a run; one of a VLE stage gives an object of trainer.interface.vle, one of stage=vlm of interface.vlm.

        Args:
            name: folder of a run, a checkpoint or an export, a run's name under trainer.exp_dir, or hf-hub:ORG/NAME.
            device: auto, cpu, cuda or mps.
            keys: of config.yaml, as on the command line: {"trainer.test.decoding_strategy": "greedy"}.

        Raises:
            UserError: there is no such run, a key is wrong, or the network cannot be built here.
        """
        keys = {**(keys or {}), "trainer.device": device}
        config = _configuration(str(name), keys)
        checkpoint = find_checkpoint(config.pretrained_name, Path(config.trainer.exp_dir))
        config = complete_from_checkpoint(config, checkpoint, keys=keys)
        config.dataset.feature_cache = None
        if config.stage in VLE_STAGES:
            from trainer.interface.vle import Vle  # imported here: the captioner needs no VLE

            return Vle(config, checkpoint)
        if config.stage == VLM:
            from trainer.interface.vlm import Vlm

            return Vlm(config, checkpoint)
        return cls(config, checkpoint)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.parts.template.labels

    def emotions(self, images: AnyPicture | Sequence[AnyPicture]) -> dict[str, float] | list[dict[str, float]]:
        """Return the probability of each emotion; nothing is generated."""
        predictor = replace(self.predictor, with_explanations=False)
        found = [predictor(batch) for _, batch in self._batches(images, "emotions")]
        rows = [prediction.row() for predictions in found for prediction in predictions]
        if rows and rows[0]["emotion_distribution"] is None:
            raise UserError(f"{self.checkpoint.folder} was trained without emotions")
        shares = [dict(zip(labels_of(row), row["emotion_distribution"], strict=True)) for row in rows]
        return shares[0] if as_list(images)[1] else shares

    def explain(
        self, images: AnyPicture | Sequence[AnyPicture], *, emotion: str | None = None, n: int = 1
    ) -> Explanation | list[Explanation]:
        """Return why each picture evokes its likeliest emotion.

        Args:
            emotion: explain this one instead.
            n: number of explanations of each picture; those after the first are drawn by nucleus sampling.
        """
        if not 1 <= n <= MOST_REASONS:
            raise UserError(f"n must be a number from 1 to {MOST_REASONS}, not {n!r}")
        index = None if emotion is None else self._index(emotion)
        found: list[Explanation] = []
        for pictures, batch in self._batches(images, "explain"):
            visual = self.parts.captioner.look(batch.frames, batch.frame_mask, batch.tokens)
            predictions = self.predictor(batch, emotion=index, visual=visual)
            chosen = [prediction.emotion for prediction in predictions]
            drawn = self.predictor.draw(visual, batch, chosen, n) if n > 1 else [[""]] * len(predictions)
            for picture, prediction, texts in zip(pictures, predictions, drawn, strict=True):
                row = prediction.row() | ({} if index is None else {"asked_emotion": True})
                found.append(Explanation(prediction.explanation, tuple(texts[1:]), row, picture.rgb))
        return found[0] if as_list(images)[1] else found

    def attention(self, image: AnyPicture, *, text: str | None = None, emotion: str | None = None) -> WordMaps:
        """Return what each word of a text looked at in the picture.

        Args:
            text, emotion: default: the network's own.

        Raises:
            UserError: a network without open cross-attention, or a text without words.
        """
        if not has_attention(self.parts.captioner):
            raise UserError(f"{self.checkpoint.folder}: this network has no cross-attention, or all its gates are shut")
        picture = read_picture(image, max_pixels=self.config.dataset.max_pixels)
        if text is None:
            own = self.explain(image, emotion=emotion)
            text, emotion = own.text, own.emotion
        elif emotion is None and self.parts.with_emotions:
            emotion = max(shares := self.emotions(image), key=shares.get)
        row = {"explanation": text or "", "emotion": emotion, "language": self.config.language or ""}
        words = words_of(row, self.parts)
        if not words:
            raise UserError(f"{text!r} has no words")
        shown = [every_token(words), *(tokens for _, tokens in words)]
        with computing(self.parts.captioner.language, self.accelerator):
            maps = word_maps(picture.rgb, row, self.parts, shown)
        box = visible_box(self.parts.captioner.vision.preprocess, picture.rgb.size)
        return WordMaps(text, tuple(word for word, _ in words), maps[1:], maps[0], box, picture.rgb)

    def features(self, images: AnyPicture | Sequence[AnyPicture]) -> Tensor:
        """Return the image encoder's tokens on the CPU: (P, Dv), or (N, P, Dv) for a list of N pictures."""
        tokens = [batch.tokens[:, 0].float().cpu() for _, batch in self._batches(images, "features")]
        tokens = torch.cat(tokens) if tokens else torch.empty(0, *self._shape)
        return tokens[0] if as_list(images)[1] else tokens

    @property
    def _shape(self) -> tuple[int, int]:
        return self.parts.captioner.vision.num_tokens, self.parts.captioner.vision.dim

    def _index(self, emotion: str) -> int:
        if not self.parts.with_emotions:
            raise UserError(f"emotion={emotion}: {self.checkpoint.folder} was trained without emotions")
        return emotion_index(emotion, where="emotion", labels=self.labels)

    def _batches(self, images: AnyPicture | Sequence[AnyPicture], what: str) -> Iterator[tuple[list[Picture], Batch]]:
        """Yield pictures and their batch, with the encoder's tokens, on the device."""
        given, _ = as_list(images)
        size = self.config.dataset.test_ds.batch_size
        with progress(len(given), what, unit="image", enabled=len(given) > size) as bar:
            for start in range(0, len(given), size):
                limit = self.config.dataset.max_pixels
                pictures = [read_picture(image, max_pixels=limit) for image in given[start : start + size]]
                frames = [self.transform(picture.rgb)[None] for picture in pictures]
                language = self.config.language or ""
                samples = [Sample(picture.id, Path(), (), language=language) for picture in pictures]
                batch = collate([*map(Item, samples, frames, [[]] * len(frames))], labels=len(self.labels))
                batch = batch.to(self.accelerator.device)
                with computing(self.parts.captioner.language, self.accelerator):
                    batch.tokens = self.parts.captioner.encode(batch.frames)
                    yield pictures, batch
                bar.update(len(pictures))


def _configuration(name: str, keys: Mapping[str, Any]) -> DictConfig:
    """Return the checked configuration of a network whose pictures come later."""
    config = default_config()
    for key, value in {"mode": "serve", "pretrained_name": name, **keys}.items():
        if problem := check_key(key):
            raise UserError(problem)
        OmegaConf.update(config, key, str(value) if isinstance(value, Path) else value, merge=False)
    check_config(config)
    return config
