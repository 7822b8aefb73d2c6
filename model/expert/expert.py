"""What stands beside the language model: heads on the tokens that the captioner sees, and how all are weighed.

Axes: B pictures, T frames, P tokens of a frame, D width, C emotions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.expert.student import StudentHead

STUDENT, PROBE = "student", "probe"  # the distilled head, and the one that learned from the annotators alone


class Heads(nn.Module):
    """Tokens of the vision encoder → log-probabilities of each head.

    Args:
        features: condenses tokens, see model.expert.features.
        heads: by name; of STUDENT and PROBE, the first is there.
    """

    def __init__(self, features: nn.Module, heads: Mapping[str, StudentHead]) -> None:
        super().__init__()
        self.features, self.heads = features, nn.ModuleDict(heads)

    @torch.no_grad()
    def forward(self, tokens: Tensor, frame_mask: Tensor) -> dict[str, Tensor]:
        """tokens: (B, T, P, D); frame_mask: (B, T) bool → (B, C) by head."""
        tokens = tokens.half().float()  # as they are in a feature cache, on which the heads were trained
        condensed = self.features(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        condensed = condensed.half().float()
        return {name: head(condensed, frame_mask).log_softmax(dim=-1) for name, head in self.heads.items()}
