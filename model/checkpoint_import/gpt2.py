"""GPT-2 as transformers stores it, with its cross-attention inside the blocks or without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from errors import UserError
from model.checkpoint_import.layout import Layout, Tensors, pair
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


def conv1d(theirs: str, ours: str, inputs: int, outputs: int) -> Layout:
    """transformers' Conv1D, whose weight is (in, out)."""
    return pair(theirs, ours, inputs, outputs, bias=outputs)


def gpt2_layout(gpt2: Gpt2, prefix: str, ours: str, block: Callable[[int], str], *, cross_attention: bool) -> Layout:
    """A GPT-2, with transformers' cross-attention inside its blocks or without.

    Args:
        prefix, block: as they are called there.
        ours: what our names begin with; our blocks are `h.{i}.lm_block`.
    """
    dim = gpt2.width
    layout = {
        f"{prefix}wte.weight": (f"{ours}wte.weight", (gpt2.vocabulary, dim)),
        f"{prefix}wpe.weight": (f"{ours}wpe.weight", (gpt2.positions, dim)),
        **pair(f"{prefix}ln_f", f"{ours}ln_f", dim),
    }
    maps = {
        "attn.c_attn": (dim, 3 * dim),
        "attn.c_proj": (dim, dim),
        "mlp.c_fc": (dim, gpt2.inner),
        "mlp.c_proj": (gpt2.inner, dim),
    }
    norms = ["ln_1", "ln_2"]
    if cross_attention:
        norms.append("ln_cross_attn")
        maps |= {
            "crossattention.c_attn": (dim, 2 * dim),
            "crossattention.q_attn": (dim, dim),
            "crossattention.c_proj": (dim, dim),
        }
    for i in range(gpt2.layers):
        theirs, own = block(i), f"{ours}h.{i}.lm_block."
        for name in norms:
            layout |= pair(f"{theirs}{name}", f"{own}{name}", dim)
        for name, (inputs, outputs) in maps.items():
            layout |= conv1d(f"{theirs}{name}", f"{own}{name}", inputs, outputs)
    return layout


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
