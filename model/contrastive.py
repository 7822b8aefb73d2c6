"""Contrastive head: how well an explanation fits an image and an emotion.

After SEVLM's ternary head (Zhang et al., ECCV 2024), with the real spans instead of a fixed one, and without padding.
Axes: B images, N texts, L tokens, D width of GPT-2, Dv width of the vision encoder.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class ContrastiveHead(nn.Module):
    """(image (N, Dv), emotion (N, D), explanation (N, D)) → score (N,).

    Args:
        hidden_dim: width of the hidden layers; None: that of GPT-2.
        depth: number of hidden layers.
        temperature: divisor of `scores`; below 1, hard negatives get more weight.
    """

    def __init__(
        self, dim: int, dim_visual: int, *, hidden_dim: int | None, depth: int, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.temperature = temperature
        widths = [dim_visual + 2 * dim, *[hidden_dim or dim] * depth]
        hidden = (layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU()))
        self.pred = nn.Sequential(*hidden, nn.Linear(widths[-1], 1))

    def forward(self, image: Tensor, emotion: Tensor, explanation: Tensor) -> Tensor:
        return self.pred(torch.cat([image, emotion, explanation], dim=-1)).squeeze(-1)

    def scores(self, image: Tensor, emotion: Tensor, explanation: Tensor, negatives: Tensor) -> Tensor:
        """Return scores over the temperature, (N, 3) float32: of the true explanation, then of `negatives` (N, 2).

        −inf for a negative of index −1.
        """
        candidates = [self(image, emotion, explanation)]
        for column in negatives.unbind(dim=1):
            score = self(image, emotion, explanation[column.clamp(min=0)])
            candidates.append(score.masked_fill(column < 0, float("-inf")))
        return torch.stack(candidates, dim=1).float() / self.temperature


def span_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """hidden (N, L, D), mask (N, L) bool → mean over the masked positions (N, D); zero if there are none."""
    weights = mask.to(hidden.dtype)[..., None]
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def find_negatives(text_image: Tensor, emotion: Tensor, num_images: int) -> Tensor:
    """Return indices (N, 2) of texts with a false explanation for each text, −1 if there is none.

    Column 0: another text of the same image, of another emotion. Column 1: a text of the next image of the batch, the
    one with the same rank among its image's texts or else the last; a batch of one image has none.

    Args:
        text_image: (N,) image of each text, ascending from 0.
        emotion: (N,) label of each text, −1 if unknown.
        num_images: B; every image has at least one text.
    """
    rows = torch.arange(len(text_image), device=text_image.device)
    same_image = text_image[:, None] == text_image[None, :]
    candidates = same_image & (emotion[:, None] != emotion[None, :])
    same = torch.where(candidates.any(1), candidates.int().argmax(1), -1)

    first = torch.searchsorted(text_image, torch.arange(num_images, device=text_image.device))
    count = torch.bincount(text_image, minlength=num_images)
    following = (text_image + 1) % num_images
    rank = torch.minimum(rows - first[text_image], count[following] - 1)
    other = torch.where(following != text_image, first[following] + rank, -1)
    return torch.stack([same, other], dim=1)
