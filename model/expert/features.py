"""What the head sees of a picture: a few tokens, small enough to be kept for every picture.

Axes: N frames, P tokens of a frame, K of them after condensing, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from common.errors import UserError
from model.attention_maps import patch_grid
from model.captioner import Captioner
from model.vision import VisionEncoder

FEATURES = ("clip", "resampler")


class ClipFeatures(nn.Module):
    """Tokens (N, P, D) of the vision encoder → (N, K, D): one of the whole picture, then patches averaged to a grid.

    The first is the class token, or the mean of all where the encoder has none. Patches that are no larger a grid than
    wanted, or none, stay as they are.

    Args:
        grid: rows and columns.
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
    """The same tokens → the captioner's latents (N, K, D), before them their mean.

    Does the bridge, which was trained to write, tell emotions better than the encoder's own tokens?
    """

    def __init__(self, captioner: Captioner) -> None:
        super().__init__()
        if captioner.resampler is None:
            raise UserError(
                "expert.student.features=resampler: this captioner has none (model.enable_resampler_xattn=false); take "
                "expert.student.features=clip"
            )
        self.resampler, self.dim = captioner.resampler, captioner.vision.dim

    def forward(self, tokens: Tensor) -> Tensor:
        latents = self.resampler(tokens[:, None], tokens.new_ones(len(tokens), 1, dtype=torch.bool))
        return torch.cat([latents.mean(dim=1, keepdim=True), latents], dim=1)


def build_features(captioner: Captioner, *, features: str, grid: int) -> nn.Module:
    """features: one of FEATURES."""
    if features == "resampler":
        return ResamplerFeatures(captioner)
    return ClipFeatures(captioner.vision, grid=grid)
