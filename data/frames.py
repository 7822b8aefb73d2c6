"""Read an image or clip as frames for the vision encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from data.images import MAX_PIXELS, build_transform, open_image
from data.readers.mlslt import is_clip, read_frames


class FrameReader:
    """Maps a path to transformed frames (T, 3, H, W) float32: T = 1 for an image, up to `max_frames` for a clip.

    Args:
        preprocess: the vision encoder's settings, see `build_transform`.
        max_frames: a longer clip is sampled evenly.
        max_pixels: size limit of an image, or of a frame.
    """

    def __init__(self, preprocess: Mapping, *, max_frames: int, max_pixels: int = MAX_PIXELS) -> None:
        self.transform = build_transform(preprocess)
        self.max_frames, self.max_pixels = max_frames, max_pixels

    def __call__(self, path: Path) -> Tensor:
        """Raises ImageError: the file cannot be used."""
        if is_clip(path):
            limits = {"max_frames": self.max_frames, "max_pixels": self.max_pixels}
            return torch.stack(read_frames(path, **limits, transform=self.transform))
        return self.transform(open_image(path, max_pixels=self.max_pixels))[None]
