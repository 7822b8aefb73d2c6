"""Whether a picture resembles those that a network was trained on.

A picture is described by statistics of its pixels and by the vision encoder's mean token; the first see what an encoder
has learned to ignore. It is unfamiliar if its nearest training picture is farther away than those of 99 % of the
training pictures (Sun et al., Out-of-distribution detection with deep nearest neighbors, 2022).

CHECKPOINT/familiar.safetensors   pictures (N, k), of up to MOST training pictures; mean, spread (k,); limit ()
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError, shorten
from model.contrastive import span_mean
from model.weights.tensor_files import ANOTHER_CHECKPOINT, read_tensors

FILE = "familiar.safetensors"
SCALES = (1, 2, 4)  # pixels
TOKEN_WEIGHT = 0.5  # of the mean token in a distance, against 1 for the pixels
TINY = 1e-3  # below the steps of eight bits


def pixel_statistics(frames: Tensor) -> Tensor:
    """frames (N, 3, H, W) → (N, 24): mean, contrast, and at each scale the size and sparsity of differences.

    Of brightness, red against green, and yellow against blue.
    """
    red, green, blue = frames.float().unbind(dim=1)
    planes = torch.stack([frames.float().mean(dim=1), red - green, (red + green) / 2 - blue], dim=1)
    found = [planes.mean(dim=(2, 3)), planes.std(dim=(2, 3)).clamp(min=TINY).log()]
    for scale in SCALES:
        coarse = F.avg_pool2d(planes, scale)
        steps = torch.cat([coarse.diff(dim=axis).flatten(2) for axis in (2, 3)], dim=2)
        size = steps.abs().mean(dim=2).clamp(min=TINY)
        found += [size.log(), (steps.square().mean(dim=2).sqrt().clamp(min=TINY) / size).log()]
    return torch.cat(found, dim=1)


def describe(frames: Tensor, frame_mask: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return pixel statistics (B, 24) and mean tokens (B, Dv) of a batch, on the CPU; videos by their mean frame."""
    pixels = pixel_statistics(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
    return span_mean(pixels, frame_mask).cpu(), mean.float().cpu()


@dataclass(frozen=True)
class Familiar:
    """Training pictures, standardized; in a distance, the numbers of values of the two kinds do not matter."""

    pictures: Tensor  # (N, k) float16
    mean: Tensor  # (k,)
    spread: Tensor  # (k,)
    limit: Tensor  # () the distance above which a picture is unfamiliar

    @classmethod
    def fit(cls, pixels: Tensor, tokens: Tensor) -> Familiar:
        """Fit to N pictures, see `describe`."""
        both = torch.cat([pixels, tokens], dim=1)
        weights = (1.0, TOKEN_WEIGHT)
        sizes = [torch.full((len(p[0]),), len(p[0]) ** 0.5 / w) for p, w in zip((pixels, tokens), weights, strict=True)]
        spread = both.std(dim=0).clamp(min=1e-6) * torch.cat(sizes)
        pictures = ((both - both.mean(dim=0)) / spread).half()
        distances = torch.cdist(pictures.float(), pictures.float()).fill_diagonal_(torch.inf).amin(dim=1)
        return cls(pictures, both.mean(dim=0), spread, distances.quantile(0.99))

    def unlike(self, pixels: Tensor, tokens: Tensor) -> list[bool]:
        """Return for each picture, see `describe`, whether it is unfamiliar."""
        pictures = (torch.cat([pixels, tokens], dim=1) - self.mean) / self.spread
        return (torch.cdist(pictures, self.pictures.float()).amin(dim=1) > self.limit).tolist()


def read_familiar(folder: Path, *, dim: int) -> Familiar | None:
    """Return the training pictures of a checkpoint, or None if it has none.

    Args:
        dim: Dv, width of the vision encoder.

    Raises:
        UserError: the file cannot be read, or belongs to another network.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    tensors = read_tensors(path, way_out=ANOTHER_CHECKPOINT)
    try:
        found = Familiar(**tensors)
        found.unlike(pixel_statistics(torch.zeros(1, 3, 8, 8)), torch.zeros(1, dim))
    except (TypeError, RuntimeError) as error:
        raise UserError(f"{path} belongs to another network ({shorten(error)}); {ANOTHER_CHECKPOINT}") from error
    return found
