"""GPT-2 read token by token: keys and values of self-attention in buffers that stay where they are.

A text may branch: several tokens of one text are read at a time, each of which sees what its own branch has said and
nothing of the others, as a mask tells. So beams share the keys and values of their prompt and of the image, and a beam
that goes on from another changes a row of the mask instead of moving what was read.

Axes: N texts, T tokens to read now (of one branch or of several), S places so far, C places there is room for,
D width, h heads of width d.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import NewGELUActivation

from model.attention import attention, split_heads
from model.blocks import ConditionedBlock
from model.gated_xattn import KeysValues
from model.language import LanguageModel


class KeyValueCache:
    """Places are taken from the left, by all texts alike; `length` of them are in use.

    Args:
        room: C at first; doubled when it is not enough.
    """

    def __init__(self, layers: int, count: int, heads: int, width: int, *, room: int, like: Tensor) -> None:
        self.buffer = like.new_empty(layers, 2, count, heads, room, width)
        self.length = 0

    def reserve(self, count: int) -> None:
        """Room for `count` more places."""
        needed, room = self.length + count, self.buffer.shape[4]
        if needed <= room:
            return
        grown = self.buffer.new_empty(*self.buffer.shape[:4], max(needed, 2 * room), self.buffer.shape[5])
        grown[:, :, :, :, : self.length] = self.buffer[:, :, :, :, : self.length]
        self.buffer = grown

    def write(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """New ones (N, h, T, d) behind the others, which `advance` makes lasting; all of them, (N, h, S + T, d)."""
        end = self.length + keys.shape[2]
        kept = self.buffer[layer]
        kept[0, :, :, self.length : end] = keys
        kept[1, :, :, self.length : end] = values
        return kept[0, :, :, :end], kept[1, :, :, :end]

    def advance(self, count: int) -> None:
        self.length += count

    def keep(self, rows: Tensor) -> None:
        """These texts go on, in this order."""
        kept = self.buffer.new_empty(*self.buffer.shape[:2], len(rows), *self.buffer.shape[3:])
        kept[:, :, :, :, : self.length] = self.buffer[:, :, :, :, : self.length].index_select(2, rows)
        self.buffer = kept


def new_cache(language: LanguageModel, count: int, *, room: int) -> KeyValueCache:
    config, weight = language.lm.config, language.lm.transformer.wpe.weight
    return KeyValueCache(config.n_layer, count, config.n_head, config.n_embd // config.n_head, room=room, like=weight)


def read_on(
    language: LanguageModel,
    embeddings: Tensor,
    cache: KeyValueCache,
    *,
    positions: Tensor,
    visual: Sequence[KeysValues | None],
    visible: Tensor | None,
    entry: Callable[[Tensor], Tensor],
) -> Tensor:
    """Hidden states (N, T, D) after the final norm of T more tokens, which are added to the cache.

    As `LanguageModel.forward` computes them, without its path through transformers.

    Args:
        embeddings: of the tokens, (N, T, D) or any shape that `entry` makes that of, without position embeddings.
        positions: of the tokens, all axes but the last.
        visual: keys and values of the N texts' images, as LanguageModel.keys_values gives them; empty for none.
        visible: (N or 1, T, S + T) bool, the places that each of the T sees, one at least; None: all.
        entry: what becomes of the embeddings, positions in them, before the first block.
    """
    entering = entry(embeddings + language.lm.transformer.wpe(positions))
    cache.reserve(entering.shape[1])
    bias = None
    if visible is not None:
        bias = entering.new_zeros(visible.shape).masked_fill_(~visible, float("-inf"))[:, None]
    hidden = entering
    for block in language.blocks:
        hidden = _block(block, hidden, cache, visual[block.index] if visual else None, bias)
    cache.advance(entering.shape[1])
    return language.lm.transformer.ln_f(hidden)


def _block(
    conditioned: ConditionedBlock, hidden: Tensor, cache: KeyValueCache, seen: KeysValues | None, bias: Tensor | None
) -> Tensor:
    block = conditioned.lm_block
    if seen is not None and conditioned.xattn_block is not None:
        hidden = conditioned.xattn_block(hidden, seen)
    own = block.attn
    queries, keys, values = (split_heads(x, own.num_heads) for x in own.c_attn(block.ln_1(hidden)).chunk(3, dim=-1))
    keys, values = cache.write(conditioned.index, keys, values)
    looked = attention(queries, keys, values, mask=bias, scale=own.scaling)
    hidden = hidden + own.c_proj(looked.transpose(1, 2).flatten(2))
    if seen is not None and conditioned.xattn_block is None:
        hidden = hidden + block.crossattention(block.ln_cross_attn(hidden), encoder_hidden_states=seen)[0]
    return hidden + _mlp(block.mlp, block.ln_2(hidden))


def _mlp(mlp: nn.Module, x: Tensor) -> Tensor:
    """GPT-2's own activation is a formula of five steps in transformers, and one in torch."""
    x = mlp.c_fc(x)
    x = F.gelu(x, approximate="tanh") if isinstance(mlp.act, NewGELUActivation) else mlp.act(x)
    return mlp.c_proj(x)
