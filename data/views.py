"""Pictures without texts, as a classifier is trained on them: crops and mirror images, drawn anew in every epoch."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import torch
from PIL import Image
from torch import Tensor

from data.cache.token_files import CachedTokens
from data.frames import FrameReader
from data.images import open_image
from data.pictures import PictureDataset
from data.readers.mlslt import is_clip
from data.samples import Samples
from data.schema import Sample

RATIO = (3 / 4, 4 / 3)  # of a crop's width to its height


class ViewDataset(PictureDataset):
    """Items without texts; see PictureDataset.

    Args:
        preprocess: of the network that sees it, see data.images.build_transform.
        smallest_crop: share of a picture that a crop holds at least; None: no crops, no mirror images.
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
        v2.RandomResizedCrop(
            preprocess["size"], scale=(smallest_crop, 1.0), ratio=RATIO, interpolation=interpolation, antialias=True
        ),
        v2.RandomHorizontalFlip(),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(preprocess["mean"], preprocess["std"]),
    ]
    return v2.Compose(steps)
