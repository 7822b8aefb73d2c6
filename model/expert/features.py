"""Inputs of the heads: a few tokens per picture, small enough to cache for every picture.

Axes: N frames, P tokens of a frame, K tokens after reduction, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from common.errors import UserError
from model.captioner import Captioner
from model.vision import VisionEncoder, patch_grid


class ClipFeatures(nn.Module):
    """Tokens (N, P, D) of the vision encoder → (N, K, D): class token or mean of all, then patches pooled to a grid.

    grid: number of rows and of columns; patches in a smaller grid, or in none, are unchanged.
    """

    def __init__(self, vision: VisionEncoder, *, grid: int) -> None:
        super().__init__()
        self.layout, self.grid = patch_grid(vision), grid
        self.dim = vision.dim

    def forward(self, tokens: Tensor) -> Tensor:
        before, rows, columns = self.layout or (0, 0, 0)
        whole = tokens[:, :1] if before else tokens.mean(dim=1, keepdim=True)
        patches = tokens[:, before:]
        if rows > self.grid or columns > self.grid:
            patches = rearrange(patches, "n (h w) d -> n d h w", h=rows)
            patches = F.adaptive_avg_pool2d(patches, (min(rows, self.grid), min(columns, self.grid)))
            patches = rearrange(patches, "n d h w -> n (h w) d")
        return torch.cat([whole, patches], dim=1)


class ResamplerFeatures(nn.Module):
    """Tokens (N, P, D) of the vision encoder → the captioner's latents (N, K, D), preceded by their mean."""

    def __init__(self, captioner: Captioner) -> None:
        super().__init__()
        if captioner.resampler is None:
            raise UserError(
                "expert.student.features=resampler: this captioner has none (model.enable_resampler_xattn=false); use "
                "expert.student.features=clip"
            )
        self.resampler, self.dim = captioner.resampler, captioner.vision.dim

    def forward(self, tokens: Tensor) -> Tensor:
        latents = self.resampler(tokens[:, None], tokens.new_ones(len(tokens), 1, dtype=torch.bool))
        return torch.cat([latents.mean(dim=1, keepdim=True), latents], dim=1)


def build_features(captioner: nn.Module, *, features: str, grid: int) -> nn.Module:
    """features: "clip", "resampler", or "vlm", whose tokens are as few already."""
    if features == "vlm":
        return nn.Identity()
    return ResamplerFeatures(captioner) if features == "resampler" else ClipFeatures(captioner.vision, grid=grid)
