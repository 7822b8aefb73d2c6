"""Read checkpoints of Perceiver-Resampler-XAttn-Captioning (github.com/shan18), one file of torch.save.

epoch                 number of finished epochs
model_cfg             section `model` of its configuration, an OmegaConf object with the whole as its parent
model_state_dict      vision_encoder.vision.vision_model.  transformers' CLIPVisionModel; version 5 has no
                                                           `vision_model.`
                      mapper.  resampler.                  as here
                      text_generator.lm.                   GPT-2; a block after cross-attention is h.{i}.lm_block,
                                                           the cross-attention h.{i}.xattn_block
scheduler_state_dict  optional; gives the number of steps
optimizer_state_dict  not read
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config

from common.errors import UserError
from model.attention import ACTIVATIONS
from model.checkpoint_import.imported import Imported, whole_number
from model.checkpoint_import.omegaconf_nodes import NAMES, Values, plain, root_of
from model.checkpoint_import.towers import HEAD_WIDTH, transformers_tower
from model.gated_xattn import GatedCrossAttention
from model.mapper import Mapper
from model.resampler import Resampler
from model.weights.gpt2_layout import gpt2_layout, gpt2_of, gpt2_settings, is_gpt2_buffer, tied_head
from model.weights.layout import Layout, Tensors, layout_of
from model.weights.plain import as_dict, as_state, read_torch, stand_ins

VISION, WRAPPED = "vision_encoder.vision.", "vision_model."
LM = "text_generator.lm."
GPT2 = f"{LM}transformer."
MAPPER_SIZES = {"transformer": ("depth", "heads", "dim_feedforward"), "mlp": ("mlp_dim",)}


def read_perceiver(path: Path, *, tokenizer: str) -> Imported:
    """Return the checkpoint in a file.

    Args:
        tokenizer: tokenizer of its training, as in dataset.tokenizer.

    Raises:
        UserError: the file is missing, damaged or refused, or does not hold such a model.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: give the .pt file that its training wrote")
    content = read_torch(path, allowed=stand_ins(NAMES))
    vision_state, text, rest = _split_state(content, path)
    where = f"{path}: model_cfg"
    config = Values(where, plain(content["model_cfg"], where))
    wrapped = WRAPPED if vision_state.has(VISION + WRAPPED) else ""
    tower, weights = transformers_tower(vision_state, VISION + wrapped)
    text = tied_head(text.without(matching=is_gpt2_buffer), f"{LM}lm_head.weight", f"{GPT2}wte.weight")
    gpt2 = gpt2_of(text, GPT2, lambda i: _block(text, i), cross_attention=False)
    because = ", by its model_cfg"
    layout, text_settings = _text(config, text, gpt2, tower["width"])
    weights |= text.match(layout, because=because)
    bridge, bridge_settings = _bridge(config, tower["width"], gpt2.n_embd)
    weights |= rest.match(bridge, because=because)
    dataset = as_dict(as_dict(plain(root_of(content["model_cfg"]), where)).get("dataset"))
    # The project's first version was for sign language, and its data set had no name.
    preset = dataset["name"] if dataset.get("name") in ("coco", "mlslt") else "mlslt" if dataset else "coco"
    return Imported(
        preset=preset,
        settings={**_common_settings(config, tower), **text_settings, **bridge_settings},
        weights=weights,
        vocabulary=gpt2.vocab_size,
        tokenizer=tokenizer,
        files=[path],
        epoch=whole_number(content.get("epoch")),
        step=whole_number(as_dict(content.get("scheduler_state_dict")).get("last_epoch")),
        remarks=_remarks(config, dataset.get("tokenizer"), tokenizer),
    )


def _split_state(content: Any, path: Path) -> tuple[Tensors, Tensors, Tensors]:
    """Return the tensors of the vision encoder, of the text generator, and of mapper and resampler."""
    state = content.get("model_state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or "model_cfg" not in content:
        raise UserError(f"{path} is no checkpoint of that project: it has no model_cfg with a model_state_dict")
    tensors = Tensors(str(path), as_state(state, path))
    vision, text = tensors.only(VISION), tensors.only(LM)
    return vision, text, tensors.without(*vision.state, *text.state)


def _block(text: Tensors, i: int) -> str:
    """Return the prefix of a block, which is wrapped only if cross-attention precedes it."""
    return f"{GPT2}h.{i}.lm_block." if text.has(f"{GPT2}h.{i}.lm_block.") else f"{GPT2}h.{i}."


def _common_settings(config: Values, tower: dict[str, Any]) -> dict[str, Any]:
    """Return what holds for all checkpoints: texts without emotions, all weights in the run."""
    return {
        "model.vision.pretrained_name": None,
        "model.vision.architecture": None,
        "model.vision.config": tower,
        "model.vision.transform": "clip_transformers",
        "model.vision.trainable": config.switch("vision.trainable"),
        "model.vad.enabled": False,
        "model.contrastive.enabled": False,
        "model.text.segments": False,
        "dataset.emotions": False,
        "dataset.texts_per_image": 1,
    }


def _text(config: Values, text: Tensors, gpt2: GPT2Config, dim_visual: int) -> tuple[Layout, dict[str, Any]]:
    if gpt2.n_embd % HEAD_WIDTH:
        raise UserError(f"{text.source}: GPT-2's width {gpt2.n_embd} is not a multiple of {HEAD_WIDTH}, its head width")
    ours = "language.lm.transformer."
    layout = gpt2_layout(gpt2, GPT2, ours, lambda i: _block(text, i))
    settings = {
        "model.text.pretrained_name": None,
        "model.text.config": {**gpt2_settings(gpt2), "n_head": gpt2.n_embd // HEAD_WIDTH},
        **{f"model.text.{key}": config.switch(f"text.{key}") for key in ("trainable", "trainable_lm_head")},
    }
    if not config.switch("enable_resampler_xattn"):
        return layout, settings
    xattn, freq = _attention(config, "text.xattn"), config.count("text.xattn.freq")
    del xattn["num_latents"]  # the resampler's is used
    with torch.device("meta"):  # allocates nothing
        block = GatedCrossAttention(gpt2.n_embd, dim_visual, **xattn)
    for i in range(0, gpt2.n_layer, freq):
        layout |= layout_of(block, f"{GPT2}h.{i}.xattn_block.", f"{ours}h.{i}.xattn_block.")
    return layout, settings | {f"model.text.xattn.{key}": value for key, value in {**xattn, "freq": freq}.items()}


def _attention(config: Values, section: str) -> dict[str, Any]:
    counts = {key: config.count(f"{section}.{key}") for key in ("dim_head", "heads", "num_latents", "ff_mult")}
    return counts | {"activation": config.text(f"{section}.activation", *ACTIVATIONS)}


def _bridge(config: Values, dim_visual: int, dim: int) -> tuple[Layout, dict[str, Any]]:
    """Return layout and settings of mapper and resampler, if they are enabled; they have our names."""
    layout: Layout = {}
    settings = {f"model.{key}": config.switch(key) for key in ("enable_mapper", "enable_resampler_xattn")}
    parts: dict[str, nn.Module] = {}
    sizes: dict[str, dict[str, Any]] = {}
    with torch.device("meta"):
        if settings["model.enable_mapper"]:
            kind = config.text("mapper.mapper_type", "mlp", "transformer")
            sizes["mapper"] = {key: config.count(f"mapper.{key}") for key in MAPPER_SIZES[kind]} | {"mapper_type": kind}
            unused = dict.fromkeys(chain(*MAPPER_SIZES.values()), 1)
            parts["mapper"] = Mapper(dim_visual, dim, **unused | sizes["mapper"])
        if settings["model.enable_resampler_xattn"]:
            counts = {key: config.count(f"resampler.{key}") for key in ("depth", "num_time_embeds")}
            sizes["resampler"] = _attention(config, "resampler") | counts
            parts["resampler"] = Resampler(dim_visual, **sizes["resampler"])
    for name, module in parts.items():
        layout |= layout_of(module, f"{name}.", f"{name}.")
        settings |= {f"model.{name}.{key}": value for key, value in sizes[name].items()}
        settings[f"model.{name}.trainable"] = config.switch(f"{name}.trainable")
    return layout, settings


def _remarks(config: Values, trained_tokenizer: Any, tokenizer: str) -> list[str]:
    remarks = []
    tower = config.text("vision.pretrained_name")
    if not tower.startswith("openai/"):
        remarks.append(
            f"model_cfg.vision.pretrained_name={tower} is not a model of OpenAI; heads of width {HEAD_WIDTH} and "
            "QuickGELU are assumed, as in OpenAI's"
        )
    if isinstance(trained_tokenizer, str) and trained_tokenizer != tokenizer:
        remarks.append(f"it was trained with the tokenizer {trained_tokenizer!r}, but the run has {tokenizer!r}")
    return remarks
