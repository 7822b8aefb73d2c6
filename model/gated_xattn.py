"""Gated cross-attention (Alayrac et al., Flamingo, 2022): text attends to latents, through gates.

Axes: N texts, L tokens, Q latents, D width of GPT-2, Dv width of the latents, h heads of width d.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.attention import attend, feed_forward, split_heads

KeysValues = tuple[Tensor, Tensor]  # each (B, h, Q, d), once per image


class CrossAttention(nn.Module):
    def __init__(self, dim: int, dim_visual: int, *, dim_head: int, heads: int) -> None:
        super().__init__()
        inner = dim_head * heads
        self.heads = heads
        self.layer_norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim_visual, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def keys_values(self, latents: Tensor) -> KeysValues:
        keys, values = self.to_kv(latents).chunk(2, dim=-1)
        return split_heads(keys, self.heads), split_heads(values, self.heads)

    def forward(self, y: Tensor, keys_values: KeysValues) -> Tensor:
        queries = split_heads(self.to_q(self.layer_norm(y)), self.heads)
        return self.to_out(attend(queries, *keys_values))


class GatedCrossAttention(nn.Module):
    """y ← y + tanh(a₁)·CrossAttention(y; latents), then y ← y + tanh(a₂)·FeedForward(y).

    A pretrained GPT-2 starts unchanged: at gate_init=0, as published, since the gates are shut, and otherwise since the
    output projections start at zero. Shut gates scale every gradient behind them and open slowly; behind open gates the
    projections learn from the first step.
    """

    def __init__(
        self,
        dim: int,
        dim_visual: int,
        *,
        dim_head: int,
        heads: int,
        ff_mult: int,
        activation: str,
        gate_init: float = 1.0,
    ) -> None:
        super().__init__()
        self.alpha_attn = nn.Parameter(torch.full((1,), float(gate_init)))
        self.alpha_ffw = nn.Parameter(torch.full((1,), float(gate_init)))
        self.attn = CrossAttention(dim, dim_visual, dim_head=dim_head, heads=heads)
        self.ffw = feed_forward(dim, mult=ff_mult, activation=activation)
        if gate_init:
            nn.init.zeros_(self.attn.to_out.weight)
            nn.init.zeros_(self.ffw[-1].weight)

    def forward(self, y: Tensor, keys_values: KeysValues) -> Tensor:
        """y (N, L, D); keys_values of the N texts' images, each (N, h, Q, d)."""
        y = y + self.alpha_attn.tanh() * self.attn(y, keys_values)
        return y + self.alpha_ffw.tanh() * self.ffw(y)
