"""GPT-2 with cross-attention. Only this file and blocks.py know transformers' GPT-2 inside.

Axes: N texts, S positions (visual prefix, then tokens), D width, V vocabulary.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from errors import UserError, in_short
from foreign import expanded
from model.blocks import ConditionedBlock, InnerCrossAttention, PerBlock
from model.checkpoint_import.plain import read_object, read_weights
from model.gated_xattn import GatedCrossAttention, KeysValues
from model.next_word import NextWord

LONGEST_REASON = 300  # characters of what another library says


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
        except UserError:
            raise
        except Exception as error:  # transformers and huggingface_hub check settings in ways of their own
            reason = in_short(error, LONGEST_REASON)
            raise UserError(f"model.text.config: transformers cannot build this GPT-2 ({reason})") from error
    folder = expanded(pretrained_name)
    try:
        model, info = _of_folder(folder) if folder.is_dir() else _of_hub(pretrained_name)
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


def _settings() -> list[str]:
    """What decides a GPT-2, by transformers' names."""
    known = [key for key in GPT2Config().to_dict() if key.startswith(("n_", "activation", "resid", "embd", "attn"))]
    return [*known, "layer_norm_epsilon", "initializer_range", "scale_attn_weights"]


def _of_folder(folder: Path) -> tuple[GPT2LMHeadModel, dict]:
    """The weights are read here, not by transformers, which would follow what the folder names: adapters, shards."""
    config, state = read_object(folder / "config.json"), read_weights(folder)
    if isinstance(layers := config.get("n_layer"), int) and layers > len(state):
        raise UserError(f"{folder}: n_layer={layers}, but there are {len(state)} tensors")
    return _loaded(None, config, state_dict=state)


def _of_hub(name: str) -> tuple[GPT2LMHeadModel, dict]:
    return _loaded(name, GPT2Config.from_pretrained(name).to_dict())


def _loaded(name: str | None, stored: Mapping, **weights: Any) -> tuple[GPT2LMHeadModel, dict]:
    """Of `stored` only what makes a GPT-2: it may also name kernels to fetch and run, or ask for other libraries."""
    beside = ("vocab_size", "bos_token_id", "eos_token_id", "scale_attn_by_inverse_layer_idx")
    config = GPT2Config(**{key: stored[key] for key in (*_settings(), *beside) if key in stored})
    return GPT2LMHeadModel.from_pretrained(
        name, config=config, attn_implementation="sdpa", dtype=torch.float32, output_loading_info=True, **weights
    )


def _random_config(settings: dict, vocab_size: int, eos_id: int) -> GPT2Config:
    known = _settings()
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
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:LONGEST_REASON]
    if folder.is_dir():
        return f"model.text.pretrained_name: transformers cannot load GPT-2 from the folder {folder} ({reason})"
    return (
        f"model.text.pretrained_name: the weights of {name!r} are not on this machine and could not be downloaded. "
        f"Fetch config.json and model.safetensors of https://huggingface.co/{name} where there is a network, "
        "put both into a folder here, and set model.text.pretrained_name=THAT_FOLDER"
    )
