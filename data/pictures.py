"""What the data sets of pictures have in common, whatever is shown with a picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.cache.token_files import CachedTokens
from data.collate import Item, TextItem
from data.frames import FrameReader
from data.images import ImageError
from data.samples import Samples
from data.schema import Sample, Skipped


class PictureDataset(Dataset):
    """(epoch, index) → Item, or Skipped where the picture cannot be used.

    Args:
        read: path → frames (T, 3, H, W).
        seed: what an epoch shows depends on it, on the epoch and on the index alone.
        tokens: what a feature cache has for every sample; then no file is opened.
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
        """(T, 3, H, W). Raises ImageError."""
        return self.read(sample.path)

    def texts(self, sample: Sample, epoch: int) -> list[TextItem]:
        """What is shown beside it."""
        return []
