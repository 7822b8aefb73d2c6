"""Emotion in the words: valence, arousal and dominance (VAD) of each word, fused into the text and predicted.

After SEVLM (Zhang et al., ECCV 2024), whose own way is VadEncoder(causal=False) into ConcatFusion. Otherwise nothing to
the right is seen; and where no encoder is used, "not in the lexicon" is apart from "neutral".
Axes: N texts, L or S tokens, D width of GPT-2; VAD in −1..1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GatedFusion(nn.Module):
    """Adds tanh(gate)·MLP(features) at the positions named; the gate starts at zero."""

    def __init__(self, dim: int, *, hidden_dim: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))
        self.embed = nn.Sequential(nn.Linear(3, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))

    def forward(self, hidden: Tensor, features: Tensor, where: Tensor) -> Tensor:
        """hidden (N, L, D), features (N, L, 3), where (N, L) bool → (N, L, D)."""
        return hidden + self.gate.tanh() * self.embed(features.to(hidden.dtype)) * where[..., None]


class ConcatFusion(nn.Module):
    """Replaces hidden by W·[hidden, features] + b at the positions named, as SEVLM does; starts as the identity."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim + 3, dim)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(dim, dim + 3))
            self.linear.bias.zero_()

    def forward(self, hidden: Tensor, features: Tensor, where: Tensor) -> Tensor:
        """hidden (N, L, D), features (N, L, 3), where (N, L) bool → (N, L, D)."""
        fused = self.linear(torch.cat([hidden, features.to(hidden.dtype)], dim=-1))
        return torch.where(where[..., None], fused, hidden)


class VadEncoder(nn.Module):
    """SEVLM's transformer of width 3 over the VAD of the words: one head, post-norm layers inside a second residual.

    Formula and parameter names are the published ones, with a linear map to one number that nothing reads and nothing
    trains. Weights begin as torch draws them, those of positions from N(0, 1): at the start, what comes out for a word
    without VAD is arbitrary, and as large as for any other.

    Args:
        layers: number of layers.
        hidden_dim: width inside the feed-forward parts.
        dropout: on attention weights and on the output of attention and feed-forward part, in training only.
        max_positions: longest text, in tokens.
        causal: a token sees earlier ones and itself, so that what is learnt in training holds while a text grows.
            SEVLM's sees all (False): in training its features tell of words that are still to be predicted.
    """

    def __init__(
        self,
        *,
        layers: int = 3,
        hidden_dim: int = 128,
        dropout: float = 0.1,
        max_positions: int = 5000,
        causal: bool,
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
        """Features of the words (N, S, 3) from their VAD (N, S, 3).

        Args:
            mask: (N, S) bool, False where there is padding, which no other token sees and no position counts; None:
                every token is seen and counts.
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
        if mask is not None:  # padding sees itself: attention to nothing at all is not a number
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
        """x (N, S, 3), visible (S, S) or (N, S, S) bool, True where a row's token sees a column's; None: all do."""
        query, key, value = (self.self_attention[name](x) for name in ("query", "key", "value"))
        dropout = self.dropout.p if self.training else 0.0
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
        y = self.norm1(x + self.dropout(seen))
        y = self.norm2(y + self.dropout(self.fc(y)))
        return x + y


class VadHead(nn.Linear):
    """hidden (…, D) → VAD (…, 3): of the next token, or of the sentence that follows."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3)
