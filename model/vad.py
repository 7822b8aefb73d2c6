"""Valence, arousal and dominance (VAD) of words: fused into the text, and predicted.

After SEVLM (Zhang et al., ECCV 2024), which has VadEncoder(causal=False) and ConcatFusion. The other variants use no
later words; without an encoder, words that are not in the lexicon differ from neutral ones.
Axes: N texts, L or S tokens, D width of GPT-2; VAD in −1..1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GatedFusion(nn.Module):
    """Add tanh(gate)·MLP(features) at the masked positions; the gate starts at zero."""

    def __init__(self, dim: int, *, hidden_dim: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))
        self.embed = nn.Sequential(nn.Linear(3, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))

    def forward(self, hidden: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        """hidden (N, L, D), features (N, L, 3), mask (N, L) bool → (N, L, D)."""
        return hidden + self.gate.tanh() * self.embed(features.to(hidden.dtype)) * mask[..., None]


class ConcatFusion(nn.Module):
    """Replace hidden by W·[hidden, features] + b at the masked positions, as in SEVLM; starts as the identity."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim + 3, dim)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(dim, dim + 3))
            self.linear.bias.zero_()

    def forward(self, hidden: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        """hidden (N, L, D), features (N, L, 3), mask (N, L) bool → (N, L, D)."""
        fused = self.linear(torch.cat([hidden, features.to(hidden.dtype)], dim=-1))
        return torch.where(mask[..., None], fused, hidden)


class VadEncoder(nn.Module):
    """SEVLM's transformer of width 3 over the VAD of the words: one head, post-norm layers inside a second residual.

    Formula and parameter names are the published ones, including a linear layer that is neither used nor trained.
    Positions are initialized from N(0, 1), so untrained features of a word without VAD are as large as any others.

    Args:
        layers: number of layers.
        hidden_dim: width inside the feed-forward layers.
        dropout: of attention weights and of the output of attention and feed-forward layers.
        max_positions: longest text, in tokens.
        causal: a token attends to itself and earlier ones, so that training matches generation. In SEVLM (False) it
            attends to all: the features of training contain words that are still to be predicted.
    """

    def __init__(
        self, *, layers: int = 3, hidden_dim: int = 128, dropout: float = 0.1, max_positions: int = 5000, causal: bool
    ) -> None:
        super().__init__()
        self.causal = causal
        self.pos_encoder = nn.Embedding(max_positions, 3)
        self.norm = nn.LayerNorm(3)
        self.encoder = nn.ModuleDict(
            {"layers": nn.ModuleList(_EncoderLayer(hidden_dim, dropout) for _ in range(layers))}
        )
        self.decoder = nn.Linear(3, 1).requires_grad_(False)

    def forward(self, vad: Tensor, mask: Tensor | None) -> Tensor:
        """Return features of the words (N, S, 3) from their VAD (N, S, 3).

        mask: (N, S) bool, False for padding, which is not attended to and gets no position; None: no padding.
        """
        visible = None
        if mask is None:
            positions = torch.arange(vad.shape[1], device=vad.device)
        else:
            positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
            visible = mask[:, None, :].expand(-1, vad.shape[1], -1)
        if self.causal:
            earlier = torch.ones(vad.shape[1], vad.shape[1], dtype=torch.bool, device=vad.device).tril()
            visible = earlier if visible is None else visible & earlier
        if mask is not None:  # padding attends to itself: attention to nothing is NaN
            visible = visible | torch.eye(vad.shape[1], dtype=torch.bool, device=vad.device)
        x = self.norm(vad.to(self.pos_encoder.weight.dtype) + self.pos_encoder(positions))
        for layer in self.encoder["layers"]:
            x = layer(x, visible)
        return x


class _EncoderLayer(nn.Module):
    def __init__(self, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = nn.ModuleDict({name: nn.Linear(3, 3) for name in ("query", "key", "value")})
        self.fc = nn.Sequential(nn.Linear(3, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 3))
        self.norm1, self.norm2 = nn.LayerNorm(3), nn.LayerNorm(3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """x (N, S, 3); visible (S, S) or (N, S, S) bool, True where row attends to column; None: everywhere."""
        query, key, value = (self.self_attention[name](x) for name in ("query", "key", "value"))
        dropout = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
        y = self.norm1(x + self.dropout(attended))
        y = self.norm2(y + self.dropout(self.fc(y)))
        return x + y


class VadHead(nn.Linear):
    """hidden (…, D) → VAD (…, 3): of the next token, or of the sentence that follows."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3)
