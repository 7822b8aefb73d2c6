"""Pictures without texts, as a classifier is trained on them: crops and mirror images, drawn anew in every epoch."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data.collate import Item
from data.frames import FrameReader, is_clip
from data.images import ImageError, open_image
from data.samples import Samples
from data.schema import Skipped
from data.token_files import CachedTokens

RATIO = (3 / 4, 4 / 3)  # of a crop's width to its height


class ViewDataset(Dataset):
    """(epoch, index) → Item without texts, or Skipped.

    Args:
        preprocess: of the network that sees it, see data.images.build_transform.
        smallest_crop: share of a picture that a crop holds at least; None: no crops, no mirror images.
        tokens: what a feature cache has for every sample; then no file is opened.

    What is drawn depends on the seed, the epoch and the index alone.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        preprocess: Mapping,
        seed: int,
        max_pixels: int,
        smallest_crop: float | None = None,
        tokens: CachedTokens | None = None,
    ) -> None:
        self.samples, self.seed, self.max_pixels, self.tokens = samples, seed, max_pixels, tokens
        self.labels = samples.labels
        self.read = FrameReader(preprocess, max_frames=1, max_pixels=max_pixels)
        self.augment = None if smallest_crop is None else _augmentation(preprocess, smallest_crop)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Item | Skipped:
        epoch, index = key
        sample = self.samples[index]
        try:
            if self.tokens is not None:
                tokens = self.tokens[index]
                return Item(sample, torch.empty(len(tokens), 3, 0, 0), [], tokens)
            if self.augment is None or is_clip(sample.path):
                frames = self.read(sample.path)
            else:
                frames = self._drawn(open_image(sample.path, max_pixels=self.max_pixels), epoch, index)[None]
        except ImageError as error:
            return Skipped(sample.id, sample.path, str(error))
        return Item(sample, frames, [])

    def _drawn(self, picture: Image.Image, epoch: int, index: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.Random(f"{self.seed}/{epoch}/{index}/view").getrandbits(63))
            return self.augment(picture)


def _augmentation(preprocess: Mapping, smallest_crop: float) -> Callable[[Image.Image], Tensor]:
    from torchvision.transforms import v2

    interpolation = v2.InterpolationMode(preprocess.get("interpolation") or "bicubic")
    steps = [
        v2.RandomResizedCrop(
            preprocess["size"], scale=(smallest_crop, 1.0), ratio=RATIO, interpolation=interpolation, antialias=True
        ),
        v2.RandomHorizontalFlip(),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(preprocess["mean"], preprocess["std"]),
    ]
    return v2.Compose(steps)
