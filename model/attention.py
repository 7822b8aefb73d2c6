"""The pieces that the resampler and the gated cross-attention share."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from errors import UserError


class SquaredReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "sqrelu": SquaredReLU}


def feed_forward(dim: int, *, mult: int, activation: str) -> nn.Sequential:
    """LayerNorm → Linear → activation → Linear, without biases in the linear maps."""
    if activation not in ACTIVATIONS:
        raise UserError(f"activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
    inner = dim * mult
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, inner, bias=False),
        ACTIVATIONS[activation](),
        nn.Linear(inner, dim, bias=False),
    )


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, L, h·d) → (N, h, L, d)."""
    return rearrange(x, "n l (h d) -> n h l d", h=heads)


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Scaled dot-product attention over heads: three (N, h, L, d) → (N, Lq, h·d); mask (N, 1, 1, Lk) bool."""
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
    return rearrange(out, "n h l d -> n l (h d)")
