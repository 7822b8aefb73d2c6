"""GPT-2's blocks with cross-attention in front of them or inside them.

Axes: B images, Q latents or tokens of an image, h heads, d width of a head, D width.
"""

from __future__ import annotations

import math
from collections import UserList
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config
from transformers.pytorch_utils import Conv1D

from model.attention import attend, split_heads
from model.gated_xattn import GatedCrossAttention, KeysValues


class InnerCrossAttention(nn.Module):
    """Cross-attention between a GPT-2 block's self-attention and its MLP, in the layout of transformers.

    As transformers' own (GPT2Attention with is_cross_attention), with keys and values that are computed once per image.
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        dim, self.heads, self.dropout = config.n_embd, config.n_head, config.attn_pdrop
        self.c_attn, self.q_attn, self.c_proj = Conv1D(2 * dim, dim), Conv1D(dim, dim), Conv1D(dim, dim)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)
        nn.init.normal_(self.c_proj.weight, std=config.initializer_range / math.sqrt(2 * config.n_layer))

    def keys_values(self, tokens: Tensor) -> KeysValues:
        """tokens (B, Q, D) → two of (B, h, Q, d)."""
        keys, values = self.c_attn(tokens).chunk(2, dim=-1)
        return split_heads(keys, self.heads), split_heads(values, self.heads)

    def forward(self, hidden_states: Tensor, *, encoder_hidden_states: KeysValues, **_: Any) -> tuple[Tensor, None]:
        """Called by transformers' block, which passes on as `encoder_hidden_states` what it was given."""
        queries = split_heads(self.q_attn(hidden_states), self.heads)
        seen = attend(queries, *encoder_hidden_states, dropout=self.dropout if self.training else 0.0)
        return self.resid_dropout(self.c_proj(seen)), None


class PerBlock(UserList):
    """What each block looks at, with room for all.

    No list: torch takes the tensors in a block's lists for its inputs, and makes a block wait in the backward pass for
    the gradients of all of its inputs.
    """


class ConditionedBlock(nn.Module):
    """A GPT-2 block, with gated cross-attention in front of it or cross-attention inside it where it has one."""

    def __init__(self, lm_block: nn.Module, xattn_block: GatedCrossAttention | None, index: int) -> None:
        super().__init__()
        self.lm_block = lm_block
        self.xattn_block = xattn_block
        self.index = index
        self.recomputed = False  # in the backward pass, instead of being kept from the forward pass

    @property
    def conditioning(self) -> list[nn.Module]:
        """What is not GPT-2's own."""
        if self.xattn_block is not None:
            return [self.xattn_block]
        names = ("crossattention", "ln_cross_attn")
        return [getattr(self.lm_block, name) for name in names if hasattr(self.lm_block, name)]

    @property
    def to_keys_values(self) -> nn.Module | None:
        """The layer of `keys_values`, which runs before the block does."""
        if self.xattn_block is not None:
            return self.xattn_block.attn.to_kv
        inner = self.conditioning
        return inner[0].c_attn if inner else None

    def keys_values(self, latents: Tensor) -> KeysValues | None:
        if self.xattn_block is not None:
            return self.xattn_block.attn.keys_values(latents)
        inner = self.conditioning
        return inner[0].keys_values(latents) if inner else None

    def forward(
        self,
        hidden_states: Tensor,
        past_key_values: None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: None = None,
        *,
        visual: Sequence[KeysValues | None] = (),
        entry: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if entry is not None and self.index == 0:
            hidden_states = entry(hidden_states)
        looked_at = visual[self.index] if visual else None
        if self.recomputed and torch.is_grad_enabled():
            kept = (hidden_states, attention_mask, looked_at)
            return checkpoint(partial(self._block, **kwargs), *kept, use_reentrant=False)
        return self._block(hidden_states, attention_mask, looked_at, **kwargs)

    def compile_inside(self) -> None:
        """torch.compile of all but what is different from block to block, so that one compilation serves all."""
        self._block = torch.compile(self._block, dynamic=True)

    def _block(
        self, hidden_states: Tensor, attention_mask: Tensor | None, looked_at: KeysValues | None, **kwargs: Any
    ) -> Tensor:
        if looked_at is not None and self.xattn_block is not None:
            hidden_states, looked_at = self.xattn_block(hidden_states, looked_at), None
        return self.lm_block(hidden_states, None, attention_mask, looked_at, **kwargs)
