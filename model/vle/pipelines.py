"""Pipelines for questions, matching and regions: pictures and texts → answers, with the results of the published code.

They work in batches, and a picture that several texts refer to is encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from common.errors import UserError
from model.vle.encoder import VLEModel, VLEModelOutput
from model.vle.heads import VLEForITM, VLEForPBC, VLEForVQA, VLEHead
from model.vle.overlay import draw_overlay
from model.vle.processor import Picture, VLEProcessor

GRIDS = ("stretch", "crop")
Encode = Callable[[Sequence[int]], Mapping[str, Any]]


class VLEPipeline:
    """A model in evaluation mode on a device, with its processor.

    Args:
        model: of the task.
        device: "cpu", "cuda", torch.device, or the number of a GPU (-1: CPU).
        batch_size: texts per batch.

    Raises:
        UserError: the model has another head.
    """

    model_class: ClassVar[type[VLEHead]]

    def __init__(
        self,
        model: VLEHead,
        device: str | int | torch.device = "cpu",
        vle_processor: VLEProcessor | None = None,
        *,
        batch_size: int = 16,
    ) -> None:
        if not isinstance(model, self.model_class):
            raise UserError(
                f"{type(self).__name__} needs a {self.model_class.__name__}, not a {type(model).__name__}: load it "
                f"with {self.model_class.__name__}.from_pretrained(…)"
            )
        if not isinstance(vle_processor, VLEProcessor):
            raise UserError(f"{type(self).__name__} needs vle_processor=VLEProcessor.from_pretrained(…)")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1")
        self.device = torch.device("cpu" if device == -1 else device)
        self.model, self.vle_processor, self.batch_size = model.to(self.device).eval(), vle_processor, batch_size

    @torch.inference_mode()
    def score(self, images: Sequence[Picture], encode: Encode) -> list[Tensor]:
        """Return the logits of each text, on the CPU, in the order of the texts.

        Args:
            images: one for each text; the same object, or the same path, is encoded once.
            encode: text numbers → arguments of `fuse_batches`.
        """
        logits: list[Tensor] = [torch.empty(0)] * len(images)
        for rows, fused in fuse_batches(
            self.model.vle, self.vle_processor, images, encode, self.batch_size, pooled_only=self.model.pooled_only
        ):
            for row, scores in zip(rows, self.model.score(fused).float().cpu(), strict=True):
                logits[row] = scores
        return logits


def fuse_batches(
    model: VLEModel,
    processor: VLEProcessor,
    images: Sequence[Picture],
    encode: Encode,
    batch_size: int,
    *,
    pooled_only: bool = False,
) -> Iterator[tuple[list[int], VLEModelOutput]]:
    """Yield text numbers and the encoder's outputs for them; texts of one picture follow each other.

    Args:
        images: one for each text.
        encode: text numbers → input_ids, attention_mask, and if needed patch_ids and extend_token_type_ids.
        pooled_only: see VLEModel.fuse.
    """
    keys = [str(image) if isinstance(image, str | Path) else id(image) for image in images]
    first = {key: number for number, key in reversed(list(enumerate(keys)))}
    order = sorted(range(len(images)), key=lambda number: first[keys[number]])
    states: dict[str | int, Tensor] = {}
    device, dtype = model.device, model.dtype
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        needed = list(dict.fromkeys(keys[row] for row in rows))
        states = {key: states[key] for key in needed if key in states}
        if new := [key for key in needed if key not in states]:
            pixels = processor(images=[images[first[key]] for key in new], return_tensors="pt")["pixel_values"]
            states.update(zip(new, model.get_image_features(pixels.to(device, dtype)), strict=True))
        texts = dict(encode(rows))
        ids, mask = (texts.pop(name).to(device) for name in ("input_ids", "attention_mask"))
        index = torch.tensor([needed.index(keys[row]) for row in rows], device=device)
        image_states = torch.stack([states[key] for key in needed])
        texts |= {"image_index": index, "pooled_only": pooled_only}
        yield rows, model.fuse(model.get_text_features(ids, mask), mask, image_states, **texts)


class TextPipeline(VLEPipeline):
    """Base of the pipelines that take one text for a picture.

    Args:
        max_length: most tokens of a text, [CLS] and [SEP] included; None: no limit, as published.
    """

    text_key: ClassVar[str] = "text"

    def __init__(self, *args: Any, max_length: int | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.max_length = max_length

    def __call__(self, image: Any = None, text: str | None = None, **options: Any) -> Any:
        """Return the result for one picture and text, or the list of results for several.

        Args:
            image: a picture (PIL image, path or array); or a mapping with the picture and its text, or an iterable of
                such mappings.
            text: of the picture.

        Raises:
            UserError: nothing or something else is given, a picture cannot be read, or a text is too long.
        """
        single = text is not None or isinstance(image, Mapping)
        entries = self._entries({"image": image, self.text_key: text} if text is not None else image)
        images, texts = [entry["image"] for entry in entries], [entry[self.text_key] for entry in entries]
        self._check_lengths(texts)
        logits = self.score(images, lambda rows: self._encode([texts[row] for row in rows]))
        results = [self.describe(scores, image, **options) for scores, image in zip(logits, images, strict=True)]
        return results[0] if single else results

    def describe(self, logits: Tensor, image: Picture) -> Any:
        """Return the result of one text."""
        raise NotImplementedError

    def _entries(self, given: Any) -> list[Mapping[str, Any]]:
        given = [given] if isinstance(given, Mapping) else given
        expected = f'{{"image": …, "{self.text_key}": …}}'
        if isinstance(given, str | Path | Image.Image | Tensor) or not isinstance(given, Iterable):
            raise UserError(f"{type(self).__name__} needs image= and {self.text_key}=, {expected}, or a list of these")
        entries = list(given)
        if not entries:
            raise UserError(f"{type(self).__name__} got an empty list: give at least one {expected}")
        for number, entry in enumerate(entries, start=1):
            if not isinstance(entry, Mapping) or "image" not in entry or not isinstance(entry.get(self.text_key), str):
                keys = ", ".join(map(str, entry)) if isinstance(entry, Mapping) else type(entry).__name__
                raise UserError(f"input {number} must be {expected} with a text as {self.text_key}, and has: {keys}")
        return entries

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        encoded = self.vle_processor(text=texts, padding=True, return_tensors="pt")
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def _check_lengths(self, texts: list[str]) -> None:
        if self.max_length is None:
            return
        for text, ids in zip(texts, self.vle_processor.tokenizer(texts)["input_ids"], strict=True):
            if len(ids) > self.max_length:
                raise UserError(
                    f"the {self.text_key} {text[:60]!r} has {len(ids)} tokens, and max_length={self.max_length}: "
                    "shorten it, or leave max_length out"
                )


class VLEForVQAPipeline(TextPipeline):
    """Question about a picture → the most probable answers, [{"score": probability, "answer": text}, …]."""

    model_class, text_key = VLEForVQA, "question"

    def __call__(self, image: Any = None, question: str | None = None, *, top_k: int = 1, **options: Any) -> Any:
        """Return the `top_k` answers for one question, or such a list for each of several; see TextPipeline."""
        if top_k < 0:
            raise UserError(f"top_k={top_k} must be 0 or more")
        return super().__call__(image, question, top_k=top_k, **options)

    def describe(self, logits: Tensor, image: Picture, top_k: int = 1) -> list[dict[str, Any]]:
        scores, answers = logits.softmax(dim=-1).topk(min(top_k, len(logits)))
        labels = self.model.config.id2label
        return [
            {"score": score, "answer": labels[answer]}
            for score, answer in zip(scores.tolist(), answers.tolist(), strict=True)
        ]


class VLEForITMPipeline(TextPipeline):
    """Picture and text → {"score": [probability of no match, of a match], "match": "True" or "False"}."""

    model_class = VLEForITM

    def describe(self, logits: Tensor, image: Picture) -> dict[str, Any]:
        scores = logits.softmax(dim=-1)
        return {"score": scores.tolist(), "match": str(bool(scores.argmax()))}


class VLEForPBCPipeline(TextPipeline):
    """Picture and text → {"score": per patch [no, yes], row by row, "image": picture with the other patches darkened}.

    Args:
        grid: "stretch" draws the patches over the whole picture, as published; "crop" over its center, which is what
            the encoder receives of a picture that is not square.
    """

    model_class = VLEForPBC

    def __init__(self, *args: Any, grid: str = "stretch", **options: Any) -> None:
        super().__init__(*args, **options)
        self.grid = check_grid(grid)

    def describe(self, logits: Tensor, image: Picture) -> dict[str, Any]:
        picture = self.vle_processor.open(image)
        part = self.vle_processor.visible_part(*picture.size) if self.grid == "crop" else None
        return {"score": logits.softmax(dim=-1).tolist(), "image": draw_overlay(picture, logits[:, 1], part)}


def check_grid(grid: str) -> str:
    """Return `grid` if it is one of GRIDS, else raise UserError."""
    if grid not in GRIDS:
        raise UserError(f"grid={grid!r} must be one of {', '.join(GRIDS)}")
    return grid
