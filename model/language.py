"""GPT-2 with cross-attention. Only this file, blocks.py and decoding/kv_cache.py use internals of transformers' GPT-2.

Axes: N texts, S positions (visual prefix, then tokens), D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel
from transformers.activations import NewGELUActivation

from common.errors import UserError
from model.blocks import ConditionedBlock, InnerCrossAttention
from model.gated_xattn import GatedCrossAttention, KeysValues
from model.next_word import NextWord


class LanguageModel(nn.Module):
    """Embeddings → hidden states; cross-attention gets keys and values that are computed once per image.

    Args:
        lm: GPT-2, pretrained or random.
        pretrained: whether the weights can be loaded again from their source.
        xattn: settings of GatedCrossAttention and `freq` (in front of every freq-th block); None = no cross-attention.
        dim_visual: width of the latents.
        inside: cross-attention inside every block instead, over visual tokens of GPT-2's width (`xattn` is None).
    """

    def __init__(
        self, lm: GPT2LMHeadModel, *, pretrained: bool, xattn: Mapping | None, dim_visual: int, inside: bool = False
    ) -> None:
        super().__init__()
        self.pretrained = pretrained
        self.dim = lm.config.n_embd
        self.max_positions = lm.config.n_positions
        settings = dict(xattn or {})
        freq = settings.pop("freq", 1)
        if inside and dim_visual != self.dim:
            raise UserError(
                f"model.architecture=sevlm attends to the vision encoder's tokens directly, so both must have the same "
                f"width, but the encoder has {dim_visual} and GPT-2 {self.dim}"
            )
        for i, block in enumerate(lm.transformer.h):
            if isinstance(block.mlp.act, NewGELUActivation):
                block.mlp.act = nn.GELU(approximate="tanh")  # the same in one operation instead of eight
            if inside:
                block.crossattention = InnerCrossAttention(lm.config)
                block.ln_cross_attn = nn.LayerNorm(self.dim, eps=lm.config.layer_norm_epsilon)
            conditioned = xattn is not None and i % freq == 0
            gated = GatedCrossAttention(self.dim, dim_visual, **settings) if conditioned else None
            lm.transformer.h[i] = ConditionedBlock(block, gated, i)
        self.lm = lm

    @property
    def blocks(self) -> Sequence[ConditionedBlock]:
        return self.lm.transformer.h

    @property
    def cross_attention(self) -> list[GatedCrossAttention]:
        """The gated ones."""
        return [block.xattn_block for block in self.blocks if block.xattn_block is not None]

    def keys_values(self, latents: Tensor) -> list[KeysValues | None]:
        """latents (B, Q, Dv) → keys and values of each block's cross-attention, None for a block without it."""
        layers = (block.cross_attention for block in self.blocks)
        return [None if layer is None else layer.keys_values(latents) for layer in layers]

    @property
    def dtype(self) -> torch.dtype:
        return self.lm.transformer.wte.weight.dtype

    def recompute(self) -> None:
        """Enable activation checkpointing: training is slower and keeps one hidden state per block."""
        for block in self.blocks:
            block.recomputed = True

    def compile_blocks(self) -> None:
        """Apply torch.compile to the blocks; one compilation, at the first step, serves all blocks and lengths."""
        for block in self.blocks:
            block.run = torch.compile(block.run, dynamic=True)
        torch._functorch.config.donated_buffer = False  # the losses' gradients are also measured one by one

    def embed(self, input_ids: Tensor) -> Tensor:
        return self.lm.transformer.wte(input_ids)

    def forward(
        self,
        embeddings: Tensor,
        *,
        visual: Sequence[KeysValues | None] = (),
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        entry: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Hidden states (N, S, D) after the final norm.

        Args:
            embeddings: (N, S, D), without position embeddings.
            visual: return value of `keys_values`, with one row per text.
            attention_mask: (N, S), 0 for positions to ignore; None = no padding.
            position_ids: (N, S); None = 0, 1, 2, …
            entry: applied to the input of the first block, that is after position embeddings and dropout.
        """
        out = self.lm.transformer(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            visual=lambda index: visual[index] if visual else None,
            entry=entry,
        )
        return out.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm.lm_head(hidden)

    def next_word(self, hidden: Tensor) -> NextWord:
        """Logits and losses of states (M, D), computed on demand."""
        return NextWord(hidden, self.lm.lm_head.weight)
