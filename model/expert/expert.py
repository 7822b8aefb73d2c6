"""Classification heads on the vision tokens of the captioner.

Axes: B pictures, T frames, P tokens of a frame, D width, C emotions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.expert.student import StudentHead

STUDENT, PROBE = "student", "probe"  # the distilled head, and the one trained on the annotators' labels alone


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
