"""Pictures with the texts that a fusion encoder reads beside them: data set, batch and loader.

Axes: B pictures, N texts (of all pictures), L tokens of the longest text, P patches of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from common.errors import UserError
from data.images import MAX_PIXELS, ImageError, open_image
from data.samples import Samples
from data.schema import Movable, Sample, Skipped

IGNORED = -100  # label of a token or patch without a target
PAD = 0  # of DeBERTa
Part = tuple[float, float, float, float]  # left, top, right, bottom, as shares of a picture


@dataclass(slots=True)
class PairText:
    """One text, its targets by name, and the boxes that it refers to."""

    input_ids: list[int]
    targets: dict[str, Tensor | float | int] = field(default_factory=dict)  # alike in shape for all texts
    words: list[int] | None = None  # label of each token, or IGNORED
    boxes: list[list[int]] | None = None  # patches of each box
    box_types: list[int] | None = None  # token type of each box
    token_types: list[int] | None = None  # of each token
    about: dict[str, Any] = field(default_factory=dict)  # passed on to the results


class View(Protocol):
    """How a picture is given to the encoder."""

    def __call__(self, picture: Image.Image) -> Tensor:
        """Return pixels (3, H, W)."""

    def part(self, width: int, height: int) -> Part:
        """Return the part of a picture of this size that is seen, as shares of it."""


@dataclass(slots=True)
class PairItem:
    sample: Sample
    pixels: Tensor  # (3, H, W)
    texts: list[PairText]


@dataclass(slots=True)
class PairBatch(Movable):
    """B pictures with N texts; a picture is encoded once for all of its texts."""

    ids: list[str]  # B
    pixels: Tensor  # (B, 3, H, W) float32
    input_ids: Tensor  # (N, L) int64, right-padded
    attention_mask: Tensor  # (N, L) int64
    text_image: Tensor  # (N,) int64: picture of each text, ascending
    targets: dict[str, Tensor]  # each (N, …)
    texts: list[PairText]  # N; for the boxes
    skipped: list[Skipped] = field(default_factory=list)

    def inputs(self, rows: Tensor | None = None) -> dict[str, Any]:
        """Return the arguments of VLEModel.forward.

        Args:
            rows: (n,) bool or indices: these texts only; None: all.
        """
        chosen = torch.arange(len(self.input_ids), device=self.input_ids.device)
        chosen = chosen if rows is None else chosen[rows]
        found = {
            "input_ids": self.input_ids[chosen],
            "attention_mask": self.attention_mask[chosen],
            "pixel_values": self.pixels,
            "image_index": self.text_image[chosen],
        }
        texts = [self.texts[row] for row in chosen.tolist()]
        if any(text.boxes for text in texts):
            found["patch_ids"] = [text.boxes or [] for text in texts]
            found["extend_token_type_ids"] = (
                [text.box_types or [1] * len(text.boxes or ()) for text in texts],
                [text.token_types or [] for text in texts],
            )
        return found


class PairDataset(Dataset):
    """Maps (epoch, index) to a PairItem, or to Skipped if the picture cannot be used.

    Args:
        view: how a picture becomes pixels.
        texts: (index, epoch, part of the picture that is seen) → the texts of a picture.
        seed: of the order of the pictures.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        view: View,
        texts: Callable[[int, int, Part], list[PairText]],
        seed: int,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.samples, self.view, self.texts, self.seed, self.max_pixels = samples, view, texts, seed, max_pixels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> PairItem | Skipped:
        epoch, index = key
        sample = self.samples[index]
        try:
            picture = open_image(sample.path, max_pixels=self.max_pixels)
            texts = self.texts(index, epoch, self.view.part(*picture.size))
        except (ImageError, UserError) as error:  # UserError: a fault in what belongs to this picture alone
            return Skipped(sample.id, sample.path, str(error))
        return PairItem(sample, self.view(picture), texts)


def collate_pairs(items: Sequence[PairItem | Skipped]) -> PairBatch:
    """Return a batch of the readable pictures that have a text, the others in `batch.skipped` or left out."""
    good = [item for item in items if isinstance(item, PairItem) and item.texts]
    texts = [text for item in good for text in item.texts]
    ids = [torch.tensor(text.input_ids) for text in texts]
    targets = {
        name: torch.stack([torch.as_tensor(text.targets[name]) for text in texts])
        for name in (texts[0].targets if texts else ())
    }
    if any(text.words is not None for text in texts):
        words = [torch.tensor(text.words or [IGNORED] * len(text.input_ids)) for text in texts]
        targets["words"] = pad_sequence(words, batch_first=True, padding_value=IGNORED)
    padded = pad_sequence(ids, batch_first=True, padding_value=PAD) if ids else torch.empty(0, 0, dtype=torch.long)
    lengths = torch.tensor([len(some) for some in ids], dtype=torch.long)
    return PairBatch(
        ids=[item.sample.id for item in good],
        pixels=torch.stack([item.pixels for item in good]) if good else torch.empty(0, 3, 0, 0),
        input_ids=padded,
        attention_mask=(torch.arange(padded.shape[1])[None] < lengths[:, None]).long(),
        text_image=torch.tensor([i for i, item in enumerate(good) for _ in item.texts], dtype=torch.long),
        targets=targets,
        texts=texts,
        skipped=[item for item in items if isinstance(item, Skipped)],
    )
