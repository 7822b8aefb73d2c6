"""Co-attention of VLE: two streams (text, image) that read each other in every layer, after METER.

Axes: N texts, L tokens of a stream, M tokens of the other stream, B pictures (B = N, or fewer where texts share one).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers.activations import ACT2FN

from model.vle.configuration import VLEConfig


class Projections(nn.Module):
    """Queries of one sequence, keys and values of another; attention with a boolean mask of the keys."""

    def __init__(self, config: VLEConfig) -> None:
        super().__init__()
        width, self.heads, self.dropout = (
            config.hidden_size,
            config.num_attention_heads,
            config.attention_probs_dropout_prob,
        )
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, hidden: Tensor, other: Tensor, mask: Tensor | None, rows: Tensor | None) -> Tensor:
        query, key, value = self.query(hidden), self.key(other), self.value(other)
        if rows is not None:
            key, value = key[rows], value[rows]
        query, key, value = (rearrange(x, "n l (h d) -> n h l d", h=self.heads) for x in (query, key, value))
        mask = None if mask is None else mask[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return rearrange(found, "n h l d -> n l (h d)")


class Residual(nn.Module):
    """Linear layer, dropout, addition and layer norm: the end of every sublayer."""

    def __init__(self, inputs: int, config: VLEConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(residual + self.dropout(self.dense(hidden)))


class Attention(nn.Module):
    def __init__(self, config: VLEConfig) -> None:
        super().__init__()
        self.self = Projections(config)  # the published name of this part
        self.output = Residual(config.hidden_size, config)

    def forward(self, hidden: Tensor, other: Tensor, mask: Tensor | None, rows: Tensor | None = None) -> Tensor:
        return self.output(self.self(hidden, other, mask, rows), hidden)


class Intermediate(nn.Module):
    def __init__(self, config: VLEConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(self.dense(hidden))


class FusionLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; layer norm after each."""

    def __init__(self, config: VLEConfig) -> None:
        super().__init__()
        self.attention, self.crossattention = Attention(config), Attention(config)
        self.intermediate, self.output = Intermediate(config), Residual(config.intermediate_size, config)

    def forward(
        self,
        hidden: Tensor,
        other: Tensor,
        *,
        mask: Tensor | None,
        other_mask: Tensor | None,
        rows: Tensor | None = None,
        other_rows: Tensor | None = None,
        first: bool = False,
    ) -> Tensor:
        """Return (N, L, d), or (N, 1, d) with `first`: the first token alone.

        Args:
            hidden: (N, L, d), or (B, L, d) with `rows`.
            other: the other stream's states before this layer, (N, M, d), or (B, M, d) with `other_rows`.
            mask, other_mask: (N, L) and (N, M) bool, True where there is a token; None: everywhere.
            rows, other_rows: (N,) row of `hidden` or `other` for each text: what a picture's tokens do among
                themselves is computed once per picture.
        """
        hidden = self.attention(hidden[:, :1] if first else hidden, hidden, mask)
        if rows is not None:
            hidden = hidden[rows]
        hidden = self.crossattention(hidden, other, other_mask, other_rows)
        return self.output(self.intermediate(hidden), hidden)


class Pooler(nn.Module):
    """tanh of a linear layer on the first token."""

    def __init__(self, config: VLEConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden[:, 0]))
