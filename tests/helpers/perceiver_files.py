"""Small random checkpoints in the layout of Perceiver-Resampler-XAttn-Captioning."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from transformers import CLIPVisionConfig, CLIPVisionModel

from tests.helpers.perceiver_reference import GPT2, State

LAYERS, POSITIONS = 3, 70  # of GPT-2
VISION = "vision_encoder.vision.vision_model."
# Widths that could be confused differ.
CONFIG = {
    "name": "captions",
    "mode": "train",
    "model": {
        "enable_mapper": True,
        "enable_resampler_xattn": True,
        "vision": {"pretrained_name": "openai/clip-vit-base-patch32", "trainable": False},
        "mapper": {
            "mapper_type": "mlp", "depth": 2, "heads": 4, "dim_feedforward": 48, "mlp_dim": 24, "trainable": True,
        },
        "resampler": {
            "depth": 2, "dim_head": 16, "heads": 3, "num_latents": 5, "num_time_embeds": 7, "ff_mult": 2,
            "activation": "gelu", "trainable": True,
        },
        "text": {
            "pretrained_name": "gpt2", "trainable": False, "trainable_lm_head": False,
            "xattn": {
                "dim_head": 8, "heads": 5, "num_latents": 5, "ff_mult": 1, "activation": "sqrelu", "freq": 2,
            },
        },
        "optimizer": {"name": "adamw", "lr": 1e-4, "betas": [0.9, 0.98], "scheduler": {"name": "Linear"}},
    },
    "dataset": {"name": "coco", "tokenizer": "gpt2", "train_ds": {"visual_dir": "???"}},
    "trainer": {"exp_name": "${name}"},
}  # fmt: skip


def changed(**changes: Any) -> dict[str, Any]:
    """Return CONFIG with other values in its section `model`, by keys with __ for dots."""
    config = deepcopy(CONFIG)
    for key, value in changes.items():
        section: Any = config["model"]
        *path, last = key.split("__")
        for part in path:
            section = section[part]
        section[last] = value
    return config


def random_tower(*, width: int = 128, seed: int = 0) -> CLIPVisionModel:
    """Return transformers' vision encoder with 5 tokens for an image of 32×32."""
    torch.manual_seed(seed)
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=width // 64,
            image_size=32, patch_size=16, hidden_act="quick_gelu",
        )
    )  # fmt: skip
    for name, parameter in tower.named_parameters():
        noise = 0.1 * torch.randn(parameter.shape)
        parameter.data = 1 + noise if "norm" in name and name.endswith("weight") else noise
    return tower.eval()


def random_state(config: Mapping[str, Any], *, vocabulary: int, tower: CLIPVisionModel, seed: int = 0) -> State:
    """Return all tensors of a small model by their names in a checkpoint, with random values."""
    torch.manual_seed(seed)
    state = {f"{VISION}{name.removeprefix('vision_model.')}": tensor for name, tensor in tower.state_dict().items()}
    for name, shape in _shapes(config["model"], vocabulary, tower.config.hidden_size).items():
        noise = 0.2 * torch.randn(shape)
        state[name] = 1 + noise if name.endswith("weight") and len(shape) == 1 else noise
    state[f"{VISION}embeddings.position_ids"] = torch.arange(5)[None]  # stored by older versions, like the masks
    for name in [name for name in state if name.endswith(".attn.c_attn.weight")]:
        attention = name.removesuffix("c_attn.weight")
        state[f"{attention}bias"] = torch.ones(1, 1, POSITIONS, POSITIONS, dtype=torch.uint8).tril()
        state[f"{attention}masked_bias"] = torch.tensor(-1e4)
    state["text_generator.lm.lm_head.weight"] = state[f"{GPT2}.wte.weight"]
    return state


Shapes = dict[str, tuple[int, ...]]


def _shapes(config: Mapping[str, Any], vocabulary: int, width: int) -> Shapes:
    """Return name → shape of all weights except for the vision encoder."""
    shapes = {f"{GPT2}.wte.weight": (vocabulary, width), f"{GPT2}.wpe.weight": (POSITIONS, width)}
    shapes |= _mapper(config["mapper"], width) if config["enable_mapper"] else {}
    shapes |= _resampler(config["resampler"], width) if config["enable_resampler_xattn"] else {}
    xattn = config["text"]["xattn"]
    for i in range(LAYERS):
        at = f"{GPT2}.h.{i}"
        if config["enable_resampler_xattn"] and i % xattn["freq"] == 0:
            shapes |= _cross_attention(f"{at}.xattn_block", xattn, width)
            at = f"{at}.lm_block"
        shapes |= _with_bias({f"{at}.ln_1": (width,), f"{at}.ln_2": (width,)})
        outputs = {"attn.c_attn": 3 * width, "attn.c_proj": width, "mlp.c_fc": 4 * width}
        for name, out in outputs.items():  # (in, out)
            shapes |= {f"{at}.{name}.weight": (width, out), f"{at}.{name}.bias": (out,)}
        shapes |= {f"{at}.mlp.c_proj.weight": (4 * width, width), f"{at}.mlp.c_proj.bias": (width,)}
    return shapes | _with_bias({f"{GPT2}.ln_f": (width,)})


def _with_bias(parts: Shapes) -> Shapes:
    weights = {f"{name}.weight": shape for name, shape in parts.items()}
    return weights | {f"{name}.bias": shape[:1] for name, shape in parts.items()}


def _feed_forward(at: str, width: int, mult: int) -> Shapes:
    maps = {f"{at}.1.weight": (width * mult, width), f"{at}.3.weight": (width, width * mult)}
    return _with_bias({f"{at}.0": (width,)}) | maps


def _mapper(mapper: Mapping[str, Any], width: int) -> Shapes:
    if mapper["mapper_type"] == "mlp":
        hidden = mapper["mlp_dim"]
        return _with_bias({"mapper._mapper.0": (hidden, width), "mapper._mapper.2": (width, hidden)})
    shapes: Shapes = {}
    for i in range(mapper["depth"]):
        at, inner = f"mapper._mapper.layers.{i}", mapper["dim_feedforward"]
        shapes |= {f"{at}.self_attn.in_proj_weight": (3 * width, width), f"{at}.self_attn.in_proj_bias": (3 * width,)}
        shapes |= _with_bias(
            {
                f"{at}.self_attn.out_proj": (width, width),
                f"{at}.linear1": (inner, width),
                f"{at}.linear2": (width, inner),
                f"{at}.norm1": (width,),
                f"{at}.norm2": (width,),
            }
        )
    return shapes


def _resampler(resampler: Mapping[str, Any], width: int) -> Shapes:
    inner = resampler["dim_head"] * resampler["heads"]
    shapes: Shapes = {
        "resampler.latents": (resampler["num_latents"], width),
        "resampler.time_pos_emb": (resampler["num_time_embeds"], 1, width),
        **_with_bias({"resampler.norm": (width,)}),
    }
    for i in range(resampler["depth"]):
        at = f"resampler.layers.{i}"
        shapes |= _with_bias({f"{at}.0.norm_media": (width,), f"{at}.0.norm_latents": (width,)})
        shapes |= {f"{at}.0.{name}.weight": (inner, width) for name in ("to_q", "to_k", "to_v")}
        shapes |= {f"{at}.0.to_out.weight": (width, inner)} | _feed_forward(f"{at}.1", width, resampler["ff_mult"])
    return shapes


def _cross_attention(at: str, xattn: Mapping[str, Any], width: int) -> Shapes:
    inner = xattn["dim_head"] * xattn["heads"]
    return {
        f"{at}.alpha_attn": (1,),
        f"{at}.alpha_ffw": (1,),
        **_with_bias({f"{at}.attn.layer_norm": (width,)}),
        f"{at}.attn.to_q.weight": (inner, width),
        f"{at}.attn.to_kv.weight": (2 * inner, width),
        f"{at}.attn.to_out.weight": (width, inner),
        **_feed_forward(f"{at}.ffw", width, xattn["ff_mult"]),
    }


def write_checkpoint(path: Path, config: Mapping[str, Any], state: State, **root: Any) -> Path:
    """Write a file as the original's training does; `root` replaces entries, None removes one."""
    moments = {0: {"step": torch.tensor(9.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}}
    content = {
        "epoch": 4,
        "model_cfg": OmegaConf.create(dict(config)).model,
        "model_state_dict": OrderedDict(state),
        "optimizer_state_dict": {"state": moments, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.98), "params": [0]}]},
        "scheduler_state_dict": {"last_epoch": 9, "_last_lr": [1e-4], "lr_lambdas": [{}]},
        **root,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path
