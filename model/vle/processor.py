"""Texts and pictures → the inputs of VLE: DeBERTa-v3's token ids, CLIP's pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BatchEncoding, BatchFeature, CLIPImageProcessorPil, PreTrainedTokenizerFast
from transformers.image_transforms import to_pil_image

from common.errors import UserError, shorten
from common.reading import refuse_panics
from model.vle.loading import find_folder
from model.vle.sentencepiece import SPECIAL, build_tokenizer, template_of
from model.weights.plain import read_object

Picture = Image.Image | str | Path | np.ndarray | Tensor
ALPHA = ("drop", "white")


class VLEProcessor:
    """Tokenizer and image processor of VLE, with the results of the published code.

    Args:
        image_processor: of transformers; resizes the short side (bicubic), crops the center, normalises.
        tokenizer: see `sentencepiece.build_tokenizer`.
        alpha: how transparent pictures become RGB: "drop" leaves the alpha channel out, as published; "white" puts
            them on white. None: as stored in preprocessor_config.json, or else "drop".
    """

    def __init__(
        self, image_processor: CLIPImageProcessorPil, tokenizer: PreTrainedTokenizerFast, alpha: str | None = None
    ) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.alpha = alpha or getattr(image_processor, "alpha", "drop")
        if self.alpha not in ALPHA:
            raise UserError(f"alpha={self.alpha!r} must be one of {', '.join(ALPHA)}")
        image_processor.alpha = self.alpha  # so that it is saved in preprocessor_config.json

    @classmethod
    def from_pretrained(cls, name: str | Path, *, alpha: str | None = None) -> VLEProcessor:
        """Load from a folder, or from the hub or its cache by name.

        Raises:
            UserError: a file is missing or damaged.
        """
        folder = find_folder(name)
        path = folder / "preprocessor_config.json"
        try:
            image_processor = CLIPImageProcessorPil.from_dict(read_object(path))
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: wrong settings ({shorten(error)}): copy it from the checkpoint") from error
        return cls(image_processor, _load_tokenizer(folder), alpha)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write preprocessor_config.json, tokenizer.json and tokenizer_config.json."""
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Picture | Sequence[Picture] | None = None,
        return_tensors: str | None = None,
        **tokenizer_options: Any,
    ) -> BatchEncoding | BatchFeature:
        """Return input_ids, token_type_ids, attention_mask (N, L), and pixel_values (B, 3, H, W) of what is given.

        Args:
            tokenizer_options: padding, truncation, max_length, text_pair, ….

        Raises:
            UserError: neither text nor images, or a picture that cannot be read.
        """
        if text is None and images is None:
            raise UserError("VLEProcessor needs text=, images= or both")
        pictures = None
        if images is not None:
            several = images if isinstance(images, list | tuple) else [images]
            opened = [self._to_rgb(self.open(image)) for image in several]
            # its own conversion would put on white what a palette, now gone, had marked as transparent
            pictures = self.image_processor(opened, return_tensors=return_tensors, do_convert_rgb=False)
        if text is None:
            return pictures
        encoding = self.tokenizer(text, return_tensors=return_tensors, **tokenizer_options)
        if pictures is not None:
            encoding["pixel_values"] = pictures["pixel_values"]
        return encoding

    def decode(self, *args: Any, **options: Any) -> str:
        """Return the text of token ids; see the tokenizer's `decode`."""
        return self.tokenizer.decode(*args, **options)

    def batch_decode(self, *args: Any, **options: Any) -> list[str]:
        """Return the texts of several lists of token ids; see the tokenizer's `batch_decode`."""
        return self.tokenizer.batch_decode(*args, **options)

    @property
    def model_input_names(self) -> list[str]:
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]

    def visible_part(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the part of a picture that the encoder receives: left, top, right, bottom, in the picture's pixels."""
        settings = self.image_processor
        if not (settings.do_resize and settings.do_center_crop and settings.size.shortest_edge):
            return 0.0, 0.0, float(width), float(height)
        crop, edges = settings.crop_size, []
        for side, kept in ((width, crop.width), (height, crop.height)):
            resized = int(settings.size.shortest_edge * side / min(width, height))
            start = (resized - kept) // 2
            edges.append((start * side / resized, (start + kept) * side / resized))
        (left, right), (top, bottom) = edges
        return left, top, right, bottom

    def open(self, image: Picture) -> Image.Image:
        """Return a picture as a PIL image, in its own mode; arrays are (height, width, 3) or (3, height, width).

        Raises:
            UserError: it cannot be read, or is something else.
        """
        if isinstance(image, Image.Image):
            return image
        try:
            if isinstance(image, np.ndarray | Tensor):
                return to_pil_image(image)
            if isinstance(image, str | Path):
                with Image.open(image) as picture:
                    picture.load()
                    return picture
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            name = image if isinstance(image, str | Path) else f"of shape {tuple(image.shape)}"
            raise UserError(f"the picture {name} cannot be read ({shorten(error)})") from error
        raise UserError(f"a picture must be a PIL image, a path or an array, not {type(image).__name__}")

    def _to_rgb(self, image: Image.Image) -> Image.Image:
        if self.alpha == "white" and image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


class PictureView:
    """A processor as a data set uses it: one picture at a time."""

    def __init__(self, processor: VLEProcessor) -> None:
        self.processor = processor

    def __call__(self, picture: Image.Image) -> Tensor:
        """Return pixels (3, H, W)."""
        return torch.as_tensor(self.processor(images=picture, return_tensors="pt")["pixel_values"][0])

    def part(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the part of a picture of this size that is seen: left, top, right, bottom, as shares of it."""
        edges = self.processor.visible_part(width, height)
        return tuple(edge / side for edge, side in zip(edges, (width, height) * 2, strict=True))


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of `spm.model`, or of `tokenizer.json`, which save_pretrained writes."""
    spm, saved = folder / "spm.model", folder / "tokenizer.json"
    if spm.is_file():
        tokenizer = build_tokenizer(spm)
    elif saved.is_file():
        try:
            with refuse_panics():
                tokenizer = Tokenizer.from_file(str(saved))
                tokenizer.post_processor = template_of(tokenizer)  # one from the file could multiply every text
        except Exception as error:  # tokenizers raises plain Exception
            raise UserError(f"{saved} is damaged ({shorten(error)}): save it again, or copy it again") from error
    else:
        raise UserError(f"{folder} has no spm.model (and no tokenizer.json): copy it from the checkpoint's repository")
    names = ("pad_token", "cls_token", "sep_token", "unk_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **dict(zip(names, SPECIAL, strict=True)),
    )
