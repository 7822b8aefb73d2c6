"""Layers shared by the resampler and the gated cross-attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers.activations import ReLUSquaredActivation

from common.errors import UserError

FEW = 8  # queries: one token, or one token of each beam
ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "sqrelu": ReLUSquaredActivation}


def feed_forward(dim: int, *, mult: int, activation: str) -> nn.Sequential:
    """LayerNorm → Linear → activation → Linear; the linear layers have no bias."""
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


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Scaled dot-product attention over heads: three (N, h, L, d) → (N, h, Lq, d).

    mask: bool, True where a query may attend to a key, or a bias of the logits; broadcast to (N, h, Lq, Lk).
    """
    few = queries.shape[2] <= FEW and queries.dtype == torch.bfloat16 and queries.device.type == "cpu"
    if not few or dropout:
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout, scale=scale)
    scale = queries.shape[-1] ** -0.5 if scale is None else scale  # torch's function takes three times as long here
    logits = (queries @ keys.transpose(-1, -2)).float() * scale
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(dim=-1).to(values.dtype) @ values


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """`attention` with its heads concatenated: three (N, h, L, d) → (N, Lq, h·d); mask (N, 1, 1, Lk) bool."""
    return rearrange(attention(queries, keys, values, mask=mask, dropout=dropout), "n h l d -> n l (h d)")
