"""Read CLIP's vision transformer in OpenAI's or transformers' layout, by the names of open_clip.

OpenAI's `visual.` has the same names as open_clip's. transformers' CLIPVisionModel has three attention maps that are
one in open_clip. Heads of width 64 and QuickGELU, which the tensors do not show, are assumed as in OpenAI's models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from model.vision import build_vision
from model.weights.layout import Layout, Tensors, format_shape, layout_of

HEAD_WIDTH = 64
OURS = "vision.visual."
BLOCKS = "transformer.resblocks."
# open_clip's names → transformers'.
TRANSFORMERS = {
    BLOCKS: "encoder.layers.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.": ".self_attn.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    "conv1": "embeddings.patch_embedding",
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
}


def openai_tower(tensors: Tensors, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return model.vision.config and the tensors with this prefix by our names, from OpenAI's layout; see `match`."""
    tensors = tensors.without(f"{prefix}proj")  # maps the pooled output, which is not used
    config = _config(tensors, prefix, str)
    return config, tensors.match(_layout(config, prefix))


def transformers_tower(tensors: Tensors, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the same from transformers' layout."""
    tensors = tensors.without(f"{prefix}embeddings.position_ids")  # 0, 1, 2, …, stored by older versions
    config = _config(tensors, prefix, _in_transformers)
    layout: Layout = {}
    for name, (ours, shape) in _layout(config, "").items():
        name = _in_transformers(name)
        if "in_proj_" not in name:
            layout[prefix + name] = ours, shape
            continue
        for part in "qkv":  # three maps there, one in open_clip
            theirs = name.replace("in_proj_", f"{part}_proj.")
            layout[prefix + theirs] = f"{ours}.{part}", (config["width"], *shape[1:])
    weights = tensors.match(layout)
    for query in [name for name in weights if name.endswith(".q")]:
        whole = query.removesuffix(".q")
        weights[whole] = torch.cat([weights.pop(f"{whole}.{part}") for part in "qkv"])
    return config, weights


def _layout(config: dict[str, Any], prefix: str) -> Layout:
    with torch.device("meta"):  # allocates nothing
        return layout_of(build_vision(pretrained_name=None, config=config).visual, prefix, OURS)


def _in_transformers(name: str) -> str:
    for ours, theirs in TRANSFORMERS.items():
        name = name.replace(ours, theirs)
    return name


def _config(tensors: Tensors, prefix: str, rename: Callable[[str], str]) -> dict[str, Any]:
    """Return model.vision.config; `rename` maps open_clip's names to those in the file."""
    names = ("conv1.weight", "positional_embedding", f"{BLOCKS}0.mlp.c_fc.weight")
    patches, positions, inner = (prefix + rename(name) for name in names)
    number, width = tensors.matrix(positions)
    side = math.isqrt(number - 1)
    shape = tuple(tensors.state[patches].shape) if patches in tensors.state else ()
    if len(shape) != 4 or shape[2] != shape[3]:
        found = format_shape(shape) if shape else "missing"
        raise UserError(f"{tensors.source}: {patches} is {found}, not square patches")
    if side * side != number - 1 or width % HEAD_WIDTH:
        raise UserError(
            f"{tensors.source}: {positions} is {format_shape((number, width))}, not that of a square image, a class "
            f"token and heads of {HEAD_WIDTH}"
        )
    return {
        "image_size": side * shape[2],
        "patch_size": shape[2],
        "width": width,
        "layers": tensors.count(prefix + rename(BLOCKS)),
        "head_width": HEAD_WIDTH,
        "mlp_ratio": tensors.matrix(inner)[0] / width,
        "quick_gelu": True,
    }
