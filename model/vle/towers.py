"""Start VLE from two pretrained towers; projections and fusion are new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from transformers import CLIPVisionConfig, DebertaV2Config

from common.errors import UserError
from model.vle.configuration import VLEConfig
from model.vle.encoder import VLEModel
from model.vle.loading import find_folder, plain_tower, resize_positions
from model.weights.clip import architecture_and_tag, create_model
from model.weights.plain import read_object, read_weights

# open_clip's names of a vision transformer's parts, and those of transformers' CLIPVisionModel.
RENAMED = {
    "ln_pre.": "pre_layrnorm.",
    "ln_post.": "post_layernorm.",
    "conv1.": "embeddings.patch_embedding.",
    "transformer.resblocks.": "encoder.layers.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
TABLE = "embeddings.position_embedding.weight"


def clip_tower(name: str, architecture: str | None = None) -> tuple[CLIPVisionConfig, dict[str, Tensor]]:
    """Return the image tower of an open_clip model as configuration and weights of transformers' CLIPVisionModel.

    Args:
        name, architecture: as model.vision.pretrained_name and model.vision.architecture.

    Raises:
        UserError: the model cannot be loaded, or its tower is not a plain CLIP vision transformer.
    """
    try:
        visual = create_model(*architecture_and_tag(name, architecture)).visual
    except UserError as error:  # which names another key
        raise UserError(f"vle.vision={name}: {error}") from error
    plain = isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.class_embedding is not None
    blocks = visual.transformer.resblocks if plain else []
    acts = {type(block.mlp.gelu) for block in blocks if hasattr(block, "mlp")}
    if not plain or acts not in ({nn.GELU}, {open_clip.transformer.QuickGELU}):
        raise UserError(f"vle.vision={name}: VLE needs a plain vision transformer of CLIP (ViT-B-16, ViT-L-14, …)")
    state = {}
    for key, tensor in visual.state_dict().items():
        for old, new in RENAMED.items():
            key = key.replace(old, new)
        if ".attn.in_proj_" in key:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                state[key.replace(".attn.in_proj_", f".self_attn.{part}_proj.")] = rows
        elif key == "positional_embedding":
            state[TABLE] = tensor
        elif key == "class_embedding":
            state["embeddings.class_embedding"] = tensor
        elif key != "proj":
            state[key] = tensor
    config = CLIPVisionConfig(
        hidden_size=visual.class_embedding.shape[0],
        intermediate_size=blocks[0].mlp.c_fc.out_features,
        num_hidden_layers=len(blocks),
        num_attention_heads=blocks[0].attn.num_heads,
        image_size=visual.image_size[0],
        patch_size=visual.patch_size[0],
        hidden_act="gelu" if acts == {nn.GELU} else "quick_gelu",
        layer_norm_eps=visual.ln_post.eps,
    )
    return config, state


def deberta_tower(name: str | Path) -> tuple[DebertaV2Config, dict[str, Tensor]]:
    """Return DeBERTa v2 or v3 from a folder, or from the hub or its cache, without its word prediction.

    Raises:
        UserError: it cannot be found or read, or is another kind of model.
    """
    folder = find_folder(name)
    stored = read_object(folder / "config.json")
    if stored.get("model_type") != "deberta-v2":
        raise UserError(
            f"vle.text={name}: {folder / 'config.json'} is of type {stored.get('model_type')!r}, not deberta-v2"
        )
    config = DebertaV2Config(**plain_tower(stored))
    state = {key.removeprefix("deberta."): tensor.float() for key, tensor in read_weights(folder).items()}
    return config, state


def from_towers(
    vision: str | None,
    text: str | None,
    *,
    architecture: str | None = None,
    last_block: bool = False,
    image_size: int | None = None,
    **sizes: Any,
) -> VLEModel:
    """Return an encoder with the towers' weights.

    Args:
        vision, architecture: see clip_tower; None: random weights, by sizes["vision_config"].
        text: see deberta_tower; None: random weights, by sizes["text_config"].
        last_block: keep CLIP's last block, which VLE and METER leave out: it was trained for the class token only.
        image_size: of the pictures, in pixels; CLIP's position table is resized to it.
        sizes: of VLEConfig.

    Raises:
        UserError: see clip_tower and deberta_tower; a tower lacks weights, or image_size does not fit the patches.
    """
    states: dict[str, dict[str, Tensor]] = {}
    if vision is not None:
        sizes["vision_config"], states["vision"] = clip_tower(vision, architecture)
        sizes["vision_config"].num_hidden_layers -= not last_block
    if text is not None:
        sizes["text_config"], states["text"] = deberta_tower(text)
    config = VLEConfig(**sizes)
    if image_size is not None:
        config.vision_config.image_size, patch = image_size, config.vision_config.patch_size
        if image_size < patch or image_size % patch:
            raise UserError(f"image_size={image_size} must be a multiple of the patches' {patch} pixels")
        if vision is not None:
            states["vision"][TABLE] = resize_positions(states["vision"][TABLE], image_size // patch)
    if config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"vle.config: hidden_size={config.hidden_size} must be a multiple of num_attention_heads="
            f"{config.num_attention_heads}"
        )
    model = VLEModel(config)
    for kind, tower in (("vision", model.vision_model.vision_model), ("text", model.text_model)):
        if kind in states:
            missing = tower.load_state_dict(states[kind], strict=False).missing_keys
            if missing:
                raise UserError(f"vle.{kind}={vision if kind == 'vision' else text}: it has no weights {missing[0]}")
    return model
