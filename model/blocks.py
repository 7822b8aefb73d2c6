"""Blocks of a language model with cross-attention in front of them or inside them.

Axes: B images, Q latents or tokens of an image, h heads, d width of a head, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config
from transformers.pytorch_utils import Conv1D

from model.attention import attend, split_heads
from model.gated_xattn import CrossAttention, GatedCrossAttention, KeysValues


class InnerCrossAttention(nn.Module):
    """Cross-attention between a GPT-2 block's self-attention and its MLP, with the parameter names of transformers.

    Like GPT2Attention(is_cross_attention=True), but keys and values are computed once per image.
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        dim, self.heads, self.dropout = config.n_embd, config.n_head, config.attn_pdrop
        self.c_attn, self.q_attn, self.c_proj = Conv1D(2 * dim, dim), Conv1D(dim, dim), Conv1D(dim, dim)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)
        nn.init.normal_(self.c_proj.weight, std=config.initializer_range / math.sqrt(2 * config.n_layer))

    @property
    def to_kv(self) -> Conv1D:
        return self.c_attn

    keys_values = CrossAttention.keys_values

    def forward(self, hidden_states: Tensor, *, encoder_hidden_states: KeysValues, **_: Any) -> tuple[Tensor, None]:
        """Called by transformers' GPT2Block, which passes `encoder_hidden_states` through unchanged."""
        queries = split_heads(self.q_attn(hidden_states), self.heads)
        attended = attend(queries, *encoder_hidden_states, dropout=self.dropout if self.training else 0.0)
        return self.resid_dropout(self.c_proj(attended)), None


class Conditions:
    """What the blocks of one language model read besides the hidden states, set for the time of one forward pass.

    transformers' models do not all pass further arguments on to their blocks, and FSDP would count all tensors of a
    list as a block's inputs.
    """

    def __init__(self) -> None:
        self.visual: Sequence[KeysValues | None] = ()
        self.entry: Callable[[Tensor], Tensor] | None = None


class ConditionedBlock(nn.Module):
    """A language model's block, optionally with gated cross-attention in front of it, or inside it (GPT-2 only).

    Called with the arguments of transformers' block; other attributes that a model reads are those of the block.
    """

    def __init__(
        self, lm_block: nn.Module, xattn_block: GatedCrossAttention | None, index: int, conditions: Conditions
    ) -> None:
        super().__init__()
        self.lm_block = lm_block
        self.xattn_block = xattn_block
        self.index = index
        self.conditions = conditions
        self.recomputed = False  # in the backward pass, instead of being kept from the forward pass

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("lm_block"), name)

    @property
    def conditioning(self) -> list[nn.Module]:
        """Modules that the language model itself does not have."""
        names = ("crossattention", "ln_cross_attn")
        inner = [getattr(self.lm_block, name) for name in names if hasattr(self.lm_block, name)]
        return inner if self.xattn_block is None else [self.xattn_block]

    @property
    def cross_attention(self) -> CrossAttention | InnerCrossAttention | None:
        """Its `keys_values` are computed before the block runs."""
        return getattr(self.lm_block, "crossattention", None) if self.xattn_block is None else self.xattn_block.attn

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.conditions.entry is not None and self.index == 0:
            hidden_states = self.conditions.entry(hidden_states)
        keys_values = self.conditions.visual[self.index] if self.conditions.visual else None
        if self.recomputed and torch.is_grad_enabled():
            return checkpoint(partial(self.run, **kwargs), hidden_states, keys_values, *args, use_reentrant=False)
        return self.run(hidden_states, keys_values, *args, **kwargs)

    def run(self, hidden_states: Tensor, keys_values: KeysValues | None, *args: Any, **kwargs: Any) -> Any:
        """The computation that is the same in every block, for torch.compile."""
        if keys_values is not None and self.xattn_block is not None:
            # The branches of a text, which are rows next to each other, share the keys and values of its image.
            together = hidden_states.reshape(len(keys_values[0]), -1, hidden_states.shape[-1])
            hidden_states = self.xattn_block(together, keys_values).view_as(hidden_states)
        elif keys_values is not None:
            args = (*args[:2], keys_values, *args[3:])  # GPT2Block's third, encoder_hidden_states
        return self.lm_block(hidden_states, *args, **kwargs)
