"""GPT-2 with cross-attention in front of its blocks or inside them. Only this file knows transformers' GPT-2 inside.

Axes: N texts, S positions (visual prefix, then tokens), D width, V vocabulary.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Cache, DynamicCache, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from errors import UserError
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


class ConditionedBlock(nn.Module):
    """A GPT-2 block, with gated cross-attention in front of it or cross-attention inside it where it has one."""

    def __init__(self, lm_block: nn.Module, xattn_block: GatedCrossAttention | None, index: int) -> None:
        super().__init__()
        self.lm_block = lm_block
        self.xattn_block = xattn_block
        self.index = index

    @property
    def conditioning(self) -> list[nn.Module]:
        """What is not GPT-2's own."""
        if self.xattn_block is not None:
            return [self.xattn_block]
        names = ("crossattention", "ln_cross_attn")
        return [getattr(self.lm_block, name) for name in names if hasattr(self.lm_block, name)]

    def keys_values(self, latents: Tensor) -> KeysValues | None:
        if self.xattn_block is not None:
            return self.xattn_block.attn.keys_values(latents)
        inner = self.conditioning
        return inner[0].keys_values(latents) if inner else None

    def forward(
        self,
        hidden_states: Tensor,
        past_key_values: Cache | None = None,
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
        if looked_at is not None and self.xattn_block is not None:
            hidden_states, looked_at = self.xattn_block(hidden_states, looked_at), None
        return self.lm_block(hidden_states, past_key_values, attention_mask, looked_at, **kwargs)


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

    def embed(self, input_ids: Tensor) -> Tensor:
        return self.lm.transformer.wte(input_ids)

    def forward(
        self,
        embeddings: Tensor,
        *,
        visual: Sequence[KeysValues | None] = (),
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        entry: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Hidden states (N, S, D) after the final norm.

        Args:
            embeddings: (N, S, D), without position embeddings.
            visual: as keys_values gives it, for the N texts' images.
            attention_mask: (N, cached + S), 0 where a position must not be seen; None = all are.
            position_ids: (N, S); None = 0, 1, 2, … after what the cache holds.
            cache: extended in place.
            entry: what becomes of the embeddings, positions and dropout in them, before the first block.
        """
        out = self.lm.transformer(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
            visual=visual,
            entry=entry,
        )
        return out.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm.lm_head(hidden)

    def new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.lm.config)


def build_gpt2(
    *, pretrained_name: str | None, config: Mapping | None, vocab_size: int, eos_id: int, random_rows: bool = False
) -> GPT2LMHeadModel:
    """GPT-2 from transformers: pretrained by name or folder, or of `config` with random weights.

    A pretrained vocabulary is widened to `vocab_size` where the tokenizer has more tokens: by the mean word, so that a
    frozen GPT-2 need not be stored, or by `random_rows`, which a training can tell apart.

    Raises:
        UserError: an unknown setting, or weights that are neither in the cache nor to be had from the network.
    """
    if pretrained_name is None:
        try:
            return GPT2LMHeadModel(_random_config(dict(config or {}), vocab_size, eos_id))
        except (TypeError, ValueError, KeyError, RuntimeError, ArithmeticError) as error:
            raise UserError(f"model.text.config: transformers cannot build this GPT-2 ({error})") from error
    folder = Path(pretrained_name).expanduser()
    try:
        source = str(folder) if folder.is_dir() else pretrained_name
        model, info = GPT2LMHeadModel.from_pretrained(source, output_loading_info=True)
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{len(missing)} weights are missing, e.g. {missing[0]}")
    except Exception as error:  # huggingface_hub, httpx, safetensors and json raise many kinds
        raise UserError(_how_to_get(pretrained_name, folder, error)) from error
    if vocab_size > model.config.vocab_size:
        known = model.config.vocab_size
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
        words = model.transformer.wte.weight.data
        if random_rows:
            nn.init.normal_(words[known:], std=model.config.initializer_range)
        else:
            words[known:] = words[:known].mean(dim=0)
    return model


def _random_config(settings: dict, vocab_size: int, eos_id: int) -> GPT2Config:
    known = [key for key in GPT2Config().to_dict() if key.startswith(("n_", "activation", "resid", "embd", "attn"))]
    known += ["layer_norm_epsilon", "initializer_range", "scale_attn_weights"]
    for key in settings:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else f" ({', '.join(known)})"
            raise UserError(f"model.text.config: GPT-2 has no setting {key!r}{hint}")
    width, heads = settings.get("n_embd", 768), settings.get("n_head", 12)
    if width % heads:
        raise UserError(f"model.text.config: n_embd={width} is not a multiple of n_head={heads}")
    return GPT2Config(**settings, vocab_size=vocab_size, bos_token_id=eos_id, eos_token_id=eos_id)


def _how_to_get(name: str, folder: Path, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if folder.is_dir():
        return f"model.text.pretrained_name: transformers cannot load GPT-2 from the folder {folder} ({reason})"
    return (
        f"model.text.pretrained_name: the weights of {name!r} are not on this machine and could not be downloaded. "
        f"Fetch config.json and model.safetensors of https://huggingface.co/{name} where there is a network, "
        "put both into a folder here, and set model.text.pretrained_name=THAT_FOLDER"
    )
