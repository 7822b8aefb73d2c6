"""Emotion in the words: valence, arousal and dominance (VAD) of each word, fused into its embedding and predicted.

After SEVLM (Zhang et al., ECCV 2024), with other choices: values are a word's and not a piece's, nothing to the
right is seen, and "not in the lexicon" is apart from "neutral".
Axes: N texts, L tokens, D width of GPT-2; VAD in −1..1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class VadFusion(nn.Module):
    """Adds tanh(gate)·MLP(vad) to the embeddings of words whose VAD is known; the gate starts at zero."""

    def __init__(self, dim: int, *, hidden_dim: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))
        self.embed = nn.Sequential(nn.Linear(3, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))

    def forward(self, embeddings: Tensor, vad: Tensor, known: Tensor) -> Tensor:
        """embeddings (N, L, D), vad (N, L, 3), known (N, L) bool → (N, L, D)."""
        return embeddings + self.gate.tanh() * self.embed(vad.to(embeddings.dtype)) * known[..., None]


class VadHead(nn.Linear):
    """hidden (N, L, D) → VAD of the next token (N, L, 3)."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3)
