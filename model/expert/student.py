"""Classification heads on the vision tokens of the captioner: the student of EmoVLM-KD, and the plain probe.

Axes: B pictures, T frames, K tokens of a frame, D width, C emotions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

STUDENT, PROBE = "student", "probe"  # the distilled head, and the one trained on the annotators' labels alone

POOLS = ("attention", "mean", "class")
WIDTHS = (512, 256, 128)  # of the hidden layers
HEADS = 8  # of the attention, or the largest common divisor with the width


class StudentHead(nn.Module):
    """Tokens (B, T, K, D), of which a frame's first describes the whole picture → logits (B, C).

    Padding frames are masked, and the logits of a picture do not depend on its batch.

    Args:
        pool: "attention": the first token, concatenated with the attention of a learned query over the others;
            "mean": the mean of all but the first; "class": the first alone.
        depth: hidden layers, each linear, GELU, dropout; 0 = a linear probe.
    """

    def __init__(self, dim: int, classes: int, *, pool: str, depth: int, dropout: float) -> None:
        super().__init__()
        self.pool = pool
        self.norm = nn.LayerNorm(dim)
        if pool == "attention":
            self.query = nn.Parameter(torch.randn(1, 1, dim) / math.sqrt(dim))
            self.attention = nn.MultiheadAttention(dim, math.gcd(dim, HEADS), batch_first=True)
        widths = [2 * dim if pool == "attention" else dim, *WIDTHS[:depth]]
        hidden = [
            nn.Sequential(nn.Linear(before, width), nn.GELU(), nn.Dropout(dropout))
            for before, width in itertools.pairwise(widths)
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(widths[-1], classes))

    def forward(self, tokens: Tensor, frame_mask: Tensor) -> Tensor:
        """frame_mask: (B, T) bool, True for a real frame."""
        tokens = self.norm(tokens)
        real = frame_mask[..., None, None]
        first = (tokens[:, :, :1] * real).sum(dim=1).squeeze(1) / frame_mask.sum(dim=1, keepdim=True)
        if self.pool == "class":
            return self.layers(first)
        others = rearrange(tokens[:, :, 1:], "b t k d -> b (t k) d")
        mask = frame_mask.repeat_interleave(tokens.shape[2] - 1, dim=1)
        if self.pool == "mean":
            return self.layers((others * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True))
        query = self.query.expand(len(tokens), -1, -1)
        pooled, _ = self.attention(query, others, others, key_padding_mask=~mask, need_weights=False)
        return self.layers(torch.cat([first, pooled[:, 0]], dim=1))


def label_losses(logits: Tensor, shares: Tensor) -> Tensor:
    """(B,) cross-entropy in nats of softmax(logits) with the annotators' shares (B, C); 0 without annotators."""
    return -(shares * logits.float().log_softmax(dim=-1)).sum(dim=-1)


def teacher_losses(logits: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """(B,) T² · KL(teacher at T ‖ student at T) in nats (Hinton et al., 2015)."""
    student, target = ((x.float() / temperature).log_softmax(dim=-1) for x in (logits, teacher))
    return temperature**2 * F.kl_div(student, target, log_target=True, reduction="none").sum(dim=-1)


class Heads(nn.Module):
    """Tokens of the vision encoder → log-probabilities of each head.

    Args:
        features: reduces the number of tokens, see model.expert.features.
        heads: STUDENT, and optionally PROBE.
    """

    def __init__(self, features: nn.Module, heads: Mapping[str, StudentHead]) -> None:
        super().__init__()
        self.features, self.heads = features, nn.ModuleDict(heads)

    @torch.no_grad()
    def forward(self, tokens: Tensor, frame_mask: Tensor) -> dict[str, Tensor]:
        """tokens: (B, T, P, D); frame_mask: (B, T) bool → (B, C) by head."""
        tokens = tokens.half().float()  # precision of the feature cache on which the heads were trained
        features = self.features(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2]).half().float()
        return {name: head(features, frame_mask).log_softmax(dim=-1) for name, head in self.heads.items()}
