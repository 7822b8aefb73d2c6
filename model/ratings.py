"""Valence, arousal and dominance of a picture by a linear layer on a frozen vision encoder.

Axes: B pictures, T frames, P tokens of a frame, D width, F features, R rated dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.contrastive import span_mean
from model.expert.features import ClipFeatures
from model.vision import VisionEncoder

STRENGTHS = tuple(10 ** (exponent / 4) for exponent in range(-16, 17))  # of the ridge, 0.0001 to 10000


class RatingNetwork(nn.Module):
    """frames (B, T, 3, H, W) → ratings (B, R) in −1..1.

    The features of a picture are the encoder's class token (without one, the mean of all tokens) and the mean of its
    patches.
    """

    def __init__(self, vision: VisionEncoder, dimensions: int) -> None:
        super().__init__()
        self.vision, self.features = vision, ClipFeatures(vision, grid=1)
        self.head = nn.Linear(2 * vision.dim, dimensions)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, frames: Tensor, frame_mask: Tensor) -> Tensor:
        """frame_mask: (B, T) bool, True for a real frame."""
        tokens = self.vision(frames).half().float()  # precision of the feature cache, in which the head was fitted
        condensed = self.features(tokens.flatten(0, 1)).half().unflatten(0, tokens.shape[:2])
        with torch.autocast(frames.device.type, enabled=False):
            return self.rate(features_of(condensed, frame_mask))

    def rate(self, features: Tensor) -> Tensor:
        """(B, F) → (B, R)."""
        return self.head(features).clamp(-1, 1)

    def own_state(self, *, with_vision: bool) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint; the encoder's only if they cannot be loaded again from their source."""
        return {key: value for key, value in self.state_dict().items() if with_vision or not key.startswith("vision.")}


def features_of(tokens: Tensor, frame_mask: Tensor) -> Tensor:
    """tokens (B, T, K, D), a frame's first describes the whole picture; frame_mask (B, T) → (B, F = 2D) float32."""
    tokens = tokens.float()
    return span_mean(torch.cat([tokens[:, :, 0], tokens[:, :, 1:].mean(dim=2)], dim=-1), frame_mask)


class Ridge(NamedTuple):
    """A fitted linear map, x @ weight + bias, and the strength with which it was fitted."""

    weight: Tensor  # (F,) float32
    bias: Tensor  # () float32
    strength: float


def fit_ridge(x: Tensor, y: Tensor, x_validation: Tensor, y_validation: Tensor) -> Ridge:
    """Return the ridge regression from x (N, F) to y (N,) with the strength of the smallest validation error.

    The squared error is the mean over the N pictures, and the features are standardized, so that a strength means the
    same for any number of pictures and any encoder. Solved in float64 by the eigenvectors of the correlations.

    Args:
        x_validation, y_validation: (M, F) and (M,); decide between STRENGTHS, and of equal errors for the largest.
    """
    x, y, x_validation, y_validation = (values.double() for values in (x, y, x_validation, y_validation))
    center, spread = x.mean(dim=0), x.std(dim=0, correction=0).clamp(min=1e-6)
    standard, mean = (x - center) / spread, y.mean()
    values, vectors = torch.linalg.eigh(standard.T @ standard / len(x))
    rotated = vectors.T @ (standard.T @ (y - mean)) / len(x)
    strengths = torch.tensor(sorted(STRENGTHS, reverse=True), dtype=torch.float64)
    weights = vectors @ (rotated[:, None] / (values.clamp(min=0)[:, None] + strengths)) / spread[:, None]  # (F, S)
    errors = ((x_validation - center) @ weights + mean - y_validation[:, None]).square().mean(dim=0)
    best = int(errors.argmin())
    weight = weights[:, best]
    return Ridge(weight.float(), (mean - center @ weight).float(), float(strengths[best]))
