"""GPT-2 with cross-attention. Only this file and blocks.py know transformers' GPT-2 inside.

Axes: N texts, S positions (visual prefix, then tokens), D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from common.errors import UserError
from model.blocks import ConditionedBlock, InnerCrossAttention, PerBlock
from model.gated_xattn import GatedCrossAttention, KeysValues
from model.next_word import NextWord


class LanguageModel(nn.Module):
    """Embeddings in, hidden states out; what the text looks at comes as keys and values computed once per image.

    Args:
        lm: the pretrained or randomly set GPT-2.
        pretrained: whether its weights can be had again from where they came.
        xattn: settings of GatedCrossAttention and `freq` (in front of every freq-th block); None = no cross-attention.
        dim_visual: width of the latents.
        inside: cross-attention inside every block instead, straight to tokens of GPT-2's own width (`xattn` is None).
    """

    def __init__(
        self,
        lm: GPT2LMHeadModel,
        *,
        pretrained: bool,
        xattn: Mapping | None,
        dim_visual: int,
        inside: bool = False,
    ) -> None:
        super().__init__()
        self.pretrained = pretrained
        self.dim = lm.config.n_embd
        self.max_positions = lm.config.n_positions
        settings = dict(xattn or {})
        freq = settings.pop("freq", 1)
        if inside and dim_visual != self.dim:
            raise UserError(
                f"model.architecture=sevlm looks at the vision encoder's tokens as they are, so both must have one "
                f"width, but the encoder has {dim_visual} and GPT-2 {self.dim}"
            )
        for i, block in enumerate(lm.transformer.h):
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
        """latents (B, Q, Dv) → for each block the keys and values of its cross-attention, None where it has none."""
        return [block.keys_values(latents) for block in self.blocks]

    @property
    def dtype(self) -> torch.dtype:
        return self.lm.transformer.wte.weight.dtype

    def recompute(self) -> None:
        """Training keeps one state for each block and computes what is inside once more: slower, in less memory."""
        for block in self.blocks:
            block.recomputed = True

    def compile_blocks(self) -> None:
        """torch.compile, one block for all of its kind, whatever the length of the texts; at the first step."""
        for block in self.blocks:
            block.compile_inside()

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
            visual: as keys_values gives it, for the N texts' images.
            attention_mask: (N, S), 0 where a position must not be seen; None = all are.
            position_ids: (N, S); None = 0, 1, 2, …
            entry: what becomes of the embeddings, positions and dropout in them, before the first block.
        """
        out = self.lm.transformer(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            visual=PerBlock(visual),
            entry=entry,
        )
        return out.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm.lm_head(hidden)

    def next_word(self, hidden: Tensor) -> NextWord:
        """The same for states (M, D), computed when it is asked for."""
        return NextWord.of(hidden, self.lm.lm_head.weight)
