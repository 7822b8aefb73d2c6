"""GPT-2 as transformers stores it, with its cross-attention inside the blocks or without."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2Model

from errors import UserError
from model.checkpoint_import.layout import Layout, Tensors, layout_of
from model.checkpoint_import.plain import read_object

KEPT = ("activation_function", "layer_norm_epsilon", "resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range")
ATTENTION = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False}


@dataclass(frozen=True)
class Gpt2:
    """Dimensions of a GPT-2; `settings` are the fields of transformers' GPT2Config that they are."""

    vocabulary: int
    positions: int
    width: int
    layers: int
    inner: int

    @property
    def settings(self) -> dict[str, Any]:
        return {"n_layer": self.layers, "n_embd": self.width, "n_positions": self.positions, "n_inner": self.inner}

    def configured(self, path: Path) -> dict[str, Any]:
        """The settings, with what the config.json at `path` says beyond them; its unknown keys do not matter.

        Raises:
            UserError: it does not fit the weights, or wants an attention that is not computed here.
        """
        config = read_object(path)
        heads = config.get("n_head", 12)
        if type(heads) is not int or heads < 1 or self.width % heads:
            raise UserError(f"{path}: n_head={heads} does not divide the width {self.width}")
        for key, computed in ATTENTION.items():
            if bool(config.get(key, computed)) is not computed:
                raise UserError(f"{path}: {key}={config[key]}, but only {key}={computed} is computed here")
        return {**self.settings, "n_head": heads, **{key: config[key] for key in KEPT if config.get(key) is not None}}


def gpt2_of(tensors: Tensors, prefix: str, block: Callable[[int], str]) -> Gpt2:
    """Args: prefix: of the transformer; block: of its i-th block.

    Raises:
        UserError: a tensor that tells a dimension is missing or no matrix.
    """
    vocabulary, width = tensors.matrix(f"{prefix}wte.weight")
    positions, _ = tensors.matrix(f"{prefix}wpe.weight")
    layers = tensors.count(f"{prefix}h.")
    _, inner = tensors.matrix(f"{block(0)}mlp.c_fc.weight")
    return Gpt2(vocabulary, positions, width, layers, inner)


def gpt2_layout(gpt2: Gpt2, prefix: str, ours: str, block: Callable[[int], str], *, cross_attention: bool) -> Layout:
    """Return the layout of a GPT-2 of these dimensions, in the order of transformers' own.

    Args:
        prefix, block: as for `gpt2_of`.
        ours: the beginning of our names; our blocks are `h.{i}.lm_block`.
    """
    with torch.device("meta"):  # allocates nothing
        sizes = gpt2.settings | {"vocab_size": gpt2.vocabulary, "n_head": 1}
        model = GPT2Model(GPT2Config(**sizes, add_cross_attention=cross_attention))
    layout = {}
    for name, (own, shape) in layout_of(model, prefix, ours).items():
        if found := re.fullmatch(r"(.*)h\.(\d+)\.(.*)", own):
            name, own = f"{block(int(found[2]))}{found[3]}", f"{found[1]}h.{found[2]}.lm_block.{found[3]}"
        layout[name] = own, shape
    return {name: entry for name, entry in layout.items() if not is_gpt2_buffer(name)}


def is_gpt2_buffer(name: str) -> bool:
    """Causal masks and their constant, which older versions of transformers stored; `c_attn.bias` is a weight."""
    parent, last = name.split(".")[-2:] if "." in name else ("", name)
    return last == "masked_bias" or (last == "bias" and parent in ("attn", "crossattention"))


def tied_head(tensors: Tensors, head: str, words: str) -> Tensors:
    """Without the output layer, which must be the word embedding where it is stored at all.

    Raises:
        UserError: it is another matrix.
    """
    if head not in tensors.state:
        return tensors
    if words in tensors.state and not _equal(tensors.state[head], tensors.state[words]):
        raise UserError(
            f"{tensors.source}: {head} differs from {words}, but GPT-2's output layer is its word embedding; "
            "such a model cannot be imported"
        )
    return tensors.without(head)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a.data_ptr() == b.data_ptr() or bool((a == b).all()))
