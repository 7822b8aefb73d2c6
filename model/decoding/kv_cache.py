"""GPT-2 with a cache of the keys and values of self-attention.

A text may branch: several of its tokens are read at a time, and a mask limits each to its own branch. So beams share
the keys and values of their prompt and image, and reordering beams changes the mask instead of moving the cache.

Axes: N texts, T tokens to read now (of one branch or several), S tokens so far, C capacity in tokens, D width,
h heads of width d.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor
from transformers.activations import NewGELUActivation

from model.attention import attention, split_heads
from model.blocks import ConditionedBlock
from model.gated_xattn import KeysValues
from model.language import LanguageModel


class KeyValueCache:
    """Keys and values of `length` tokens of each of `count` texts; the capacity C starts at `room` and is doubled."""

    def __init__(self, language: LanguageModel, count: int, *, room: int) -> None:
        config, weight = language.lm.config, language.lm.transformer.wpe.weight
        heads = config.n_head
        self.buffer = weight.new_empty(config.n_layer, 2, count, heads, room, config.n_embd // heads)
        self.length = 0

    def reserve(self, count: int) -> None:
        """Make room for `count` more tokens."""
        needed, room = self.length + count, self.buffer.shape[4]
        if needed > room:
            self.buffer = F.pad(self.buffer, (0, 0, 0, max(needed, 2 * room) - room))

    def write(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """Append (N, h, T, d), without changing `length`; return those of all tokens, (N, h, S + T, d)."""
        end = self.length + keys.shape[2]
        own = self.buffer[layer]
        own[0, :, :, self.length : end] = keys
        own[1, :, :, self.length : end] = values
        return own[0, :, :, :end], own[1, :, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Keep only these texts, in this order."""
        self.buffer = self.buffer.index_select(2, rows)


def read_cached(
    language: LanguageModel,
    embeddings: Tensor,
    cache: KeyValueCache,
    *,
    positions: Tensor,
    visual: Sequence[KeysValues | None],
    visible: Tensor | None,
    entry: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return the hidden states (N, T, D) after the final norm of T more tokens, and add these to the cache.

    The states equal those of `LanguageModel.forward`.

    Args:
        embeddings: of the tokens, without position embeddings, in any shape that `entry` maps to (N, T, D).
        positions: of the tokens, in the shape of the embeddings without the last axis.
        visual: return value of LanguageModel.keys_values for the N texts' images; empty for none.
        visible: (N or 1, T, S + T) bool, the tokens that each of the T attends to, at least one; None: all.
        entry: applied to the input of the first block.
    """
    entering = entry(embeddings + language.lm.transformer.wpe(positions))
    cache.reserve(entering.shape[1])
    bias = None
    if visible is not None:
        bias = entering.new_zeros(visible.shape).masked_fill_(~visible, float("-inf"))[:, None]
    hidden = entering
    for block in language.blocks:
        hidden = _block(block, hidden, cache, visual[block.index] if visual else None, bias)
    cache.length += entering.shape[1]
    return language.lm.transformer.ln_f(hidden)


def _block(
    conditioned: ConditionedBlock, hidden: Tensor, cache: KeyValueCache, visual: KeysValues | None, bias: Tensor | None
) -> Tensor:
    block = conditioned.lm_block
    if visual is not None and conditioned.xattn_block is not None:
        hidden = conditioned.xattn_block(hidden, visual)
    own = block.attn
    queries, keys, values = (split_heads(x, own.num_heads) for x in own.c_attn(block.ln_1(hidden)).chunk(3, dim=-1))
    keys, values = cache.write(conditioned.index, keys, values)
    attended = attention(queries, keys, values, mask=bias, scale=own.scaling)
    hidden = hidden + own.c_proj(attended.transpose(1, 2).flatten(2))
    if visual is not None and conditioned.xattn_block is None:
        hidden = hidden + block.crossattention(block.ln_cross_attn(hidden), encoder_hidden_states=visual)[0]
    inner, act = block.mlp.c_fc(block.ln_2(hidden)), block.mlp.act
    # GPT-2's activation takes five operations in transformers and one in torch.
    inner = F.gelu(inner, approximate="tanh") if isinstance(act, NewGELUActivation) else act(inner)
    return hidden + block.mlp.c_proj(inner)
