"""CLIP's vision transformer as OpenAI's code and transformers store it, under the names of open_clip.

OpenAI: `visual.` of its CLIP, which open_clip's tower is named after. transformers: CLIPVisionModel's `vision_model.`,
whose three attention maps are one there. Both are taken for OpenAI's own towers: heads of width 64, and QuickGELU,
which no tensor tells.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from errors import UserError
from model.checkpoint_import.layout import Layout, Tensors, in_words, pair

HEAD_WIDTH = 64
OURS = "vision.visual."
ATTENTION = "self_attn.{}_proj"


def openai_tower(tensors: Tensors, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings for model.vision.config, and the weights by our names, of the tensors that begin with `prefix`.

    Raises:
        UserError: see Tensors.match.
    """
    tensors = tensors.without(f"{prefix}proj")  # maps the pooled output, which is not used
    block = f"{prefix}transformer.resblocks."
    config = _config(
        tensors,
        patches=f"{prefix}conv1.weight",
        positions=f"{prefix}positional_embedding",
        inner=f"{block}0.mlp.c_fc.weight",
        layers=tensors.count(block),
    )
    width, inner = config["width"], _inner(config)
    layout = _ends(config, prefix, "conv1", "class_embedding", "positional_embedding", "ln_pre", "ln_post")
    for i in range(config["layers"]):
        theirs, ours = f"{block}{i}.", f"{OURS}transformer.resblocks.{i}."
        layout |= _block(theirs, ours, width, inner, "ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
        layout |= {
            f"{theirs}attn.in_proj_weight": (f"{ours}attn.in_proj_weight", (3 * width, width)),
            f"{theirs}attn.in_proj_bias": (f"{ours}attn.in_proj_bias", (3 * width,)),
        }
    return config, tensors.match(layout)


def transformers_tower(tensors: Tensors, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings for model.vision.config, and the weights by our names, of the tensors that begin with `prefix`.

    Raises:
        UserError: see Tensors.match.
    """
    tensors = tensors.without(f"{prefix}embeddings.position_ids")  # 0, 1, 2, …, which older versions stored
    block = f"{prefix}encoder.layers."
    config = _config(
        tensors,
        patches=f"{prefix}embeddings.patch_embedding.weight",
        positions=f"{prefix}embeddings.position_embedding.weight",
        inner=f"{block}0.mlp.fc1.weight",
        layers=tensors.count(block),
    )
    width, inner = config["width"], _inner(config)
    layout = _ends(
        config, prefix, "embeddings.patch_embedding", "embeddings.class_embedding",
        "embeddings.position_embedding.weight", "pre_layrnorm", "post_layernorm",
    )  # fmt: skip
    for i in range(config["layers"]):
        theirs, ours = f"{block}{i}.", f"{OURS}transformer.resblocks.{i}."
        layout |= _block(
            theirs, ours, width, inner, "layer_norm1", "layer_norm2", ATTENTION.format("out"), "mlp.fc1", "mlp.fc2"
        )
        for part in "qkv":
            layout |= pair(f"{theirs}{ATTENTION.format(part)}", f"{ours}attn.{part}", width, width)
    weights = tensors.match(layout)
    for i in range(config["layers"]):
        attention = f"{OURS}transformer.resblocks.{i}.attn."
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"{attention}{part}.{kind}") for part in "qkv"]
            weights[f"{attention}in_proj_{kind}"] = torch.cat(parts)
    return config, weights


def _config(tensors: Tensors, *, patches: str, positions: str, inner: str, layers: int) -> dict[str, Any]:
    number, width = tensors.matrix(positions)
    side = math.isqrt(number - 1)
    shape = tuple(tensors.state[patches].shape) if patches in tensors.state else ()
    if len(shape) != 4 or shape[2] != shape[3]:
        raise UserError(f"{tensors.source}: {patches} is {in_words(shape) if shape else 'missing'}, not square patches")
    if side * side != number - 1 or width % HEAD_WIDTH:
        raise UserError(
            f"{tensors.source}: {positions} is {in_words((number, width))}, not that of a square picture, a class "
            f"token and heads of {HEAD_WIDTH}"
        )
    return {
        "image_size": side * shape[2],
        "patch_size": shape[2],
        "width": width,
        "layers": layers,
        "head_width": HEAD_WIDTH,
        "mlp_ratio": tensors.matrix(inner)[0] / width,
        "quick_gelu": True,
    }


def _inner(config: dict[str, Any]) -> int:
    return round(config["mlp_ratio"] * config["width"])


def _ends(config: dict[str, Any], prefix: str, patches: str, first: str, positions: str, pre: str, post: str) -> Layout:
    """What comes before and after the blocks, by their names in open_clip's order."""
    width, patch = config["width"], config["patch_size"]
    number = (config["image_size"] // patch) ** 2 + 1
    return {
        f"{prefix}{patches}.weight": (f"{OURS}conv1.weight", (width, 3, patch, patch)),
        f"{prefix}{first}": (f"{OURS}class_embedding", (width,)),
        f"{prefix}{positions}": (f"{OURS}positional_embedding", (number, width)),
        **pair(f"{prefix}{pre}", f"{OURS}ln_pre", width),
        **pair(f"{prefix}{post}", f"{OURS}ln_post", width),
    }


def _block(
    theirs: str, ours: str, width: int, inner: int, ln_1: str, ln_2: str, out: str, fc: str, proj: str
) -> Layout:
    """A block without its three attention maps."""
    return {
        **pair(theirs + ln_1, f"{ours}ln_1", width),
        **pair(theirs + ln_2, f"{ours}ln_2", width),
        **pair(theirs + out, f"{ours}attn.out_proj", width, width),
        **pair(theirs + fc, f"{ours}mlp.c_fc", inner, width),
        **pair(theirs + proj, f"{ours}mlp.c_proj", width, inner),
    }
