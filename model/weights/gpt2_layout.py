"""Names and shapes of GPT-2's tensors in transformers' files, with or without cross-attention inside the blocks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2Model

from common.errors import UserError
from model.weights.layout import Layout, Tensors, layout_of
from model.weights.plain import read_object

Block = Callable[[int], str]
KEPT = ("activation_function", "layer_norm_epsilon", "resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range")
ATTENTION = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False}


def gpt2_of(tensors: Tensors, prefix: str, block: Block | None = None, *, cross_attention: bool) -> GPT2Config:
    """Return the sizes of a GPT-2, except for the number of heads, which does not show in the tensors.

    Args:
        prefix: prefix of the transformer's names.
        block: returns the prefix of the i-th block; None: the transformer's h.{i}.

    Raises:
        UserError: a tensor that determines a size is missing or is not a matrix.
    """
    vocabulary, width = tensors.matrix(f"{prefix}wte.weight")
    return GPT2Config(
        vocab_size=vocabulary,
        n_positions=tensors.matrix(f"{prefix}wpe.weight")[0],
        n_embd=width,
        n_layer=tensors.count(f"{prefix}h."),
        n_inner=tensors.matrix(f"{block(0) if block else prefix + 'h.0.'}mlp.c_fc.weight")[1],
        n_head=1,
        add_cross_attention=cross_attention,
        bos_token_id=None,  # transformers warns if GPT-2's own is out of range, as in a smaller vocabulary
        eos_token_id=None,
    )


def gpt2_settings(gpt2: GPT2Config) -> dict[str, Any]:
    """Return the keys of model.text.config for these sizes, without the number of heads."""
    return {key: getattr(gpt2, key) for key in ("n_layer", "n_embd", "n_positions", "n_inner")}


def read_gpt2_settings(gpt2: GPT2Config, path: Path) -> dict[str, Any]:
    """Return `gpt2_settings` with the number of heads and further settings from the config.json at `path`.

    Raises:
        UserError: it does not match the weights, or selects an attention that is not implemented here.
    """
    config = read_object(path)
    heads = config.get("n_head", 12)
    if type(heads) is not int or heads < 1 or gpt2.n_embd % heads:
        raise UserError(f"{path}: n_head={heads} does not divide the width {gpt2.n_embd}")
    for key, computed in ATTENTION.items():
        if bool(config.get(key, computed)) is not computed:
            raise UserError(f"{path}: {key}={config[key]}, but only {key}={computed} is computed here")
    kept = {key: config[key] for key in KEPT if config.get(key) is not None}
    return {**gpt2_settings(gpt2), "n_head": heads, **kept}


def gpt2_layout(gpt2: GPT2Config, prefix: str, ours: str, block: Block | None = None) -> Layout:
    """Return the layout of a GPT-2 of these sizes, in transformers' order.

    Args:
        prefix, block: as for `gpt2_of`.
        ours: prefix of our names; our blocks are `h.{i}.lm_block`.
    """
    block = block or (lambda i: f"{prefix}h.{i}.")
    with torch.device("meta"):  # allocates nothing
        model = GPT2Model(gpt2)
    layout = {}
    for name, (own, shape) in layout_of(model, prefix, ours).items():
        if found := re.fullmatch(r"(.*)h\.(\d+)\.(.*)", own):
            name, own = f"{block(int(found[2]))}{found[3]}", f"{found[1]}h.{found[2]}.lm_block.{found[3]}"
        if not is_gpt2_buffer(name):
            layout[name] = own, shape
    return layout


def is_gpt2_buffer(name: str) -> bool:
    """Return whether a name is that of a causal mask or its constant, stored by older versions of transformers."""
    parent, last = name.split(".")[-2:] if "." in name else ("", name)
    return last == "masked_bias" or (last == "bias" and parent in ("attn", "crossattention"))  # c_attn has a real bias


def tied_head(tensors: Tensors, head: str, words: str) -> Tensors:
    """Return the tensors without the output layer; raise UserError if it is stored and is not the word embedding."""
    a, b = tensors.state.get(head), tensors.state.get(words)
    if a is None or b is None or (a.shape == b.shape and (a.data_ptr() == b.data_ptr() or bool((a == b).all()))):
        return tensors.without(head)
    raise UserError(
        f"{tensors.source}: {head} differs from {words}, but GPT-2's output layer is its word embedding; "
        "such a model cannot be imported"
    )
