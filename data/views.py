"""Image data sets: the base class, and one of random views (crops and mirror images) for training a classifier."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data.cache.token_files import CachedTokens
from data.collate import Item, TextItem
from data.frames import FrameReader
from data.images import ImageError, open_image
from data.readers.mlslt import is_clip
from data.samples import Samples
from data.schema import Sample, Skipped


class ImageDataset(Dataset):
    """Maps (epoch, index) to an Item, or to Skipped if the image cannot be used.

    Args:
        read: path → frames (T, 3, H, W).
        seed: with epoch and index, it determines the item.
        tokens: cached tokens of every sample; if given, no image file is opened.
    """

    def __init__(
        self, samples: Samples | Sequence[Sample], *, read: FrameReader, seed: int, tokens: CachedTokens | None
    ) -> None:
        self.samples, self.read, self.seed, self.tokens = samples, read, seed, tokens

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Item | Skipped:
        epoch, index = key
        sample = self.samples[index]
        try:
            tokens = None if self.tokens is None else self.tokens[index]
            frames = self.frames(sample, key) if tokens is None else torch.empty(len(tokens), 3, 0, 0)
        except ImageError as error:
            return Skipped(sample.id, sample.path, str(error))
        return Item(sample, frames, self.texts(sample, epoch), tokens)

    def frames(self, sample: Sample, key: tuple[int, int]) -> Tensor:
        """Return (T, 3, H, W). Raises ImageError."""
        return self.read(sample.path)

    def texts(self, sample: Sample, epoch: int) -> list[TextItem]:
        return []


class ViewDataset(ImageDataset):
    """Items without texts; see ImageDataset.

    Args:
        preprocess: settings of the network, see data.images.build_transform.
        smallest_crop: smallest area of a crop, as a share of the image; None: neither crops nor mirror images.
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
        read = FrameReader(preprocess, max_frames=1, max_pixels=max_pixels)
        super().__init__(samples, read=read, seed=seed, tokens=tokens)
        self.labels, self.max_pixels = samples.labels, max_pixels
        self.augment = None if smallest_crop is None else _augmentation(preprocess, smallest_crop)

    def frames(self, sample: Sample, key: tuple[int, int]) -> Tensor:
        if self.augment is None or is_clip(sample.path):
            return super().frames(sample, key)
        picture, (epoch, index) = open_image(sample.path, max_pixels=self.max_pixels), key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.Random(f"{self.seed}/{epoch}/{index}/view").getrandbits(63))
            return self.augment(picture)[None]


def _augmentation(preprocess: Mapping, smallest_crop: float) -> Callable[[Image.Image], Tensor]:
    from torchvision.transforms import v2

    interpolation = v2.InterpolationMode(preprocess.get("interpolation") or "bicubic")
    steps = [
        v2.RandomResizedCrop(preprocess["size"], scale=(smallest_crop, 1.0), interpolation=interpolation),
        v2.RandomHorizontalFlip(),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(preprocess["mean"], preprocess["std"]),
    ]
    return v2.Compose(steps)
