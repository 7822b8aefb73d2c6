"""A causal language model of transformers with cross-attention.

For GPT-2, blocks.py and decoding/kv_cache.py use internals of transformers; any other model is called as transformers
calls it, with its blocks wrapped.

Axes: N texts, S positions (visual prefix, then tokens), D width, V vocabulary.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import Cache, GPT2LMHeadModel, PreTrainedModel
from transformers.activations import NewGELUActivation

from common.errors import UserError
from model.blocks import ConditionedBlock, Conditions, InnerCrossAttention
from model.gated_xattn import GatedCrossAttention, KeysValues
from model.lora import lora_weights
from model.next_word import NextWord
from model.weights.causal_lm import FAMILIES, find_blocks


class LanguageModel(nn.Module):
    """Embeddings → hidden states; cross-attention gets keys and values that are computed once per image.

    Args:
        lm: a causal language model, pretrained or random.
        pretrained: whether the weights can be loaded again from their source.
        xattn: settings of GatedCrossAttention and `freq` (in front of every freq-th block); None = no cross-attention.
        dim_visual: width of the latents.
        inside: cross-attention inside every block of a GPT-2 instead, over visual tokens of its width (`xattn` is
            None).

    Raises:
        UserError: other widths than `inside` needs, or a model that does not work with wrapped blocks.
    """

    def __init__(
        self, lm: PreTrainedModel, *, pretrained: bool, xattn: Mapping | None, dim_visual: int, inside: bool = False
    ) -> None:
        super().__init__()
        self.pretrained = pretrained
        self.is_gpt2 = isinstance(lm, GPT2LMHeadModel)
        self.dim = lm.get_input_embeddings().weight.shape[1]
        self.max_positions = getattr(lm.config.get_text_config(), "max_position_embeddings", sys.maxsize)  # ALiBi: none
        settings = dict(xattn or {})
        freq = settings.pop("freq", 1)
        if inside and dim_visual != self.dim:
            raise UserError(
                f"model.architecture=sevlm attends to the vision encoder's tokens directly, so both must have the same "
                f"width, but the encoder has {dim_visual} and GPT-2 {self.dim}"
            )
        expected = None if self.is_gpt2 else _outputs(lm)
        self._conditions = Conditions()
        blocks = find_blocks(lm)
        self._blocks = (blocks,)  # in a tuple, as the list is registered in the model
        for i, block in enumerate(blocks):
            if self.is_gpt2 and isinstance(block.mlp.act, NewGELUActivation):
                block.mlp.act = nn.GELU(approximate="tanh")  # the same in one operation instead of eight
            if inside:
                block.crossattention = InnerCrossAttention(lm.config)
                block.ln_cross_attn = nn.LayerNorm(self.dim, eps=lm.config.layer_norm_epsilon)
            conditioned = xattn is not None and i % freq == 0
            gated = GatedCrossAttention(self.dim, dim_visual, **settings) if conditioned else None
            blocks[i] = ConditionedBlock(block, gated, i, self._conditions)
        self.lm = lm
        arguments = inspect.signature(self.decoder.forward).parameters
        self._takes_positions = "position_ids" in arguments
        self._cache_argument = "cache" if "cache" in arguments else "past_key_values"  # until transformers renamed it
        if expected is not None:
            self._check(*expected)

    @property
    def decoder(self) -> nn.Module:
        """The language model without its output layer."""
        return self.lm.get_decoder()

    @property
    def blocks(self) -> Sequence[ConditionedBlock]:
        return self._blocks[0]

    @property
    def cross_attention(self) -> list[GatedCrossAttention]:
        """The gated ones."""
        return [block.xattn_block for block in self.blocks if block.xattn_block is not None]

    def keys_values(self, latents: Tensor) -> list[KeysValues | None]:
        """latents (B, Q, Dv) → keys and values of each block's cross-attention, None for a block without it."""
        layers = (block.cross_attention for block in self.blocks)
        return [None if layer is None else layer.keys_values(latents) for layer in layers]

    @property
    def words(self) -> nn.Module:
        """The word embedding."""
        return self.lm.get_input_embeddings()

    @property
    def head(self) -> nn.Module:
        """The output layer."""
        return self.lm.get_output_embeddings()

    @property
    def vocab_size(self) -> int:
        return self.words.weight.shape[0]

    @property
    def is_frozen(self) -> bool:
        """True if the blocks' own weights are not trained, as opposed to cross-attention and low-rank updates."""
        own = self.blocks[0].lm_block
        added = {id(p) for part in (*self.blocks[0].conditioning, *lora_weights(own)) for p in part.parameters()}
        return not any(p.requires_grad for p in own.parameters() if id(p) not in added)

    @property
    def dtype(self) -> torch.dtype:
        return self.words.weight.dtype

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
        return self.words(input_ids)

    def forward(
        self,
        embeddings: Tensor,
        *,
        visual: Sequence[KeysValues | None] = (),
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        entry: Callable[[Tensor], Tensor] | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Hidden states (N, S, D) after the final norm.

        Args:
            embeddings: (N, S, D), without position embeddings.
            visual: return value of `keys_values`, with one row per text; or per several texts next to each other.
            attention_mask: (N, S) with the tokens in the cache, 0 for positions to ignore; None = no padding.
            position_ids: (N, S); None = 0, 1, 2, … A model without this argument takes them from the mask.
            entry: applied to the input of the first block, that is after position embeddings and dropout.
            cache: of earlier tokens, extended in place.
        """
        arguments = {"position_ids": position_ids} if position_ids is not None and self._takes_positions else {}
        if cache is not None:
            arguments[self._cache_argument] = cache
        self._conditions.visual, self._conditions.entry = visual, entry
        try:
            return self.decoder(
                inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=cache is not None, **arguments
            ).last_hidden_state
        finally:
            self._conditions.visual, self._conditions.entry = (), None

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def next_word(self, hidden: Tensor) -> NextWord:
        """Logits and losses of states (M, D), computed on demand."""
        return NextWord(hidden, self.head.weight, getattr(self.head, "bias", None))

    @torch.no_grad()
    def _check(self, embeddings: Tensor, logits: Tensor) -> None:
        """Raise UserError if the wrapped model differs from the plain one, or sees later tokens."""
        widths = []
        training = self.training
        self.lm.eval()

        def entry(hidden: Tensor) -> Tensor:
            widths.append(hidden.shape[-1])
            return hidden

        hidden = self(embeddings, entry=entry)
        earlier = self(embeddings[:, :-1])
        self.lm.train(training)
        name = type(self.lm).__name__
        if widths != [self.dim]:
            raise UserError(f"model.text: {name} has embeddings of width {self.dim}, and {widths} in its first block")
        if not torch.allclose(hidden[:, :-1], earlier, atol=1e-3):
            raise UserError(f"model.text: {name} reads later tokens too; take a causal language model")
        if not torch.allclose(self.logits(hidden), logits, atol=1e-3):
            raise UserError(
                f"model.text: the logits of {name} are not a linear layer of its last state (it scales or caps them); "
                f"take {FAMILIES}"
            )


@torch.no_grad()
def _outputs(lm: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Return embeddings (1, 3, D) of some tokens and the plain model's logits."""
    training = lm.training
    embeddings = lm.eval().get_input_embeddings()(torch.arange(3)[None])
    logits = lm(inputs_embeds=embeddings, use_cache=False).logits
    lm.train(training)
    return embeddings, logits
