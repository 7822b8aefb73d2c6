"""Checkpoints of Perceiver-Resampler-XAttn-Captioning (github.com/shan18), one file of torch.save.

    epoch                 epochs behind it, from 1
    model_cfg             the section `model` of its configuration, an OmegaConf object that carries the whole with it
    model_state_dict      vision_encoder.vision.vision_model.  transformers' CLIPVisionModel; since its version 5
                                                               `vision_model.` is gone
                          mapper.  resampler.                  as here
                          text_generator.lm.                   GPT-2; blocks with cross-attention in front of them are
                                                               h.{i}.lm_block and h.{i}.xattn_block
    optimizer_state_dict, scheduler_state_dict (there may be none)

Of the rest of the training's state only the
number of steps is taken; the moments of the optimiser stay in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
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
MAPPER_SIZES = ("depth", "heads", "dim_feedforward", "mlp_dim")  # the last of the MLP, the others of the transformer
DATASETS = ("coco", "mlslt")  # of the original, which have presets here


def read_perceiver(path: Path, *, tokenizer: str) -> Imported:
    """The checkpoint in `path`.

    Args:
        tokenizer: the one that it was trained with, as dataset.tokenizer takes it.

    Raises:
        UserError: the file is missing, damaged or refused, or does not hold such a model; what is wrong is named.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: give the .pt file that its training wrote")
    content = read_torch(path, allowed=stand_ins(NAMES))
    vision_state, text, rest = _parts(content, path)
    where = f"{path}: model_cfg"
    config = Values(where, plain(content["model_cfg"], where))
    wrapped = WRAPPED if vision_state.has(VISION + WRAPPED) else ""
    tower, weights = transformers_tower(vision_state, VISION + wrapped)
    text = tied_head(text.without(ends=is_gpt2_buffer), f"{LM}lm_head.weight", f"{GPT2}wte.weight")
    gpt2 = gpt2_of(text, GPT2, lambda i: _block(text, i), cross_attention=False)
    because = ", by its model_cfg"
    layout, text_settings = _text(config, text, gpt2, tower["width"])
    weights |= text.match(layout, because=because)
    bridge, bridge_settings = _bridge(config, tower["width"], gpt2.n_embd)
    weights |= rest.match(bridge, because=because)
    training = plain(root_of(content["model_cfg"]), where)
    return Imported(
        preset=_preset(training),
        settings={**_constant(config, tower), **text_settings, **bridge_settings},
        weights=weights,
        vocabulary=gpt2.vocab_size,
        tokenizer=tokenizer,
        files=[path],
        epoch=whole_number(content.get("epoch")),
        step=whole_number(as_dict(content.get("scheduler_state_dict")).get("last_epoch")),
        remarks=_remarks(config, training, tokenizer),
    )


def _parts(content: Any, path: Path) -> tuple[Tensors, Tensors, Tensors]:
    """Return the tensors of vision and text, and those between them."""
    state = content.get("model_state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or "model_cfg" not in content:
        raise UserError(f"{path} is no checkpoint of that project: it has no model_cfg beside a model_state_dict")
    tensors = Tensors(str(path), as_state(state, path))
    vision, text = tensors.only(VISION), tensors.only(LM)
    return vision, text, tensors.without(*vision.state, *text.state)


def _block(text: Tensors, i: int) -> str:
    """A block without cross-attention in front of it is not wrapped."""
    return f"{GPT2}h.{i}.lm_block." if text.has(f"{GPT2}h.{i}.lm_block.") else f"{GPT2}h.{i}."


def _constant(config: Values, tower: dict[str, Any]) -> dict[str, Any]:
    """What holds for all of them: texts without emotions, weights that the run holds itself."""
    return {
        "model.vision.pretrained_name": None,
        "model.vision.architecture": None,
        "model.vision.config": tower,
        "model.vision.trainable": config.switch("vision.trainable"),
        "model.vad.enabled": False,
        "model.contrastive.enabled": False,
        "model.text.segments": False,
        "dataset.emotions": False,
        "dataset.texts_per_image": 1,
    }


def _text(config: Values, text: Tensors, gpt2: GPT2Config, dim_visual: int) -> tuple[Layout, dict[str, Any]]:
    if gpt2.n_embd % HEAD_WIDTH:
        raise UserError(
            f"{text.source}: GPT-2's width {gpt2.n_embd} is not a multiple of {HEAD_WIDTH}, as its heads are"
        )
    ours = "language.lm.transformer."
    layout = gpt2_layout(gpt2, GPT2, ours, lambda i: _block(text, i))
    settings = {
        "model.text.pretrained_name": None,
        "model.text.config": {**gpt2_settings(gpt2), "n_head": gpt2.n_embd // HEAD_WIDTH},
        **{f"model.text.{key}": config.switch(f"text.{key}") for key in ("trainable", "trainable_lm_head")},
    }
    if not config.switch("enable_resampler_xattn"):
        return layout, settings
    xattn = _attention(config, "text.xattn") | {"freq": config.count("text.xattn.freq")}
    del xattn["num_latents"]  # only the resampler's counts
    sizes = {key: value for key, value in xattn.items() if key != "freq"}
    with torch.device("meta"):  # allocates nothing
        block = GatedCrossAttention(gpt2.n_embd, dim_visual, **sizes)
    for i in range(0, gpt2.n_layer, xattn["freq"]):
        layout |= layout_of(block, f"{GPT2}h.{i}.xattn_block.", f"{ours}h.{i}.xattn_block.")
    return layout, settings | {f"model.text.xattn.{key}": value for key, value in xattn.items()}


def _attention(config: Values, section: str) -> dict[str, Any]:
    counts = {key: config.count(f"{section}.{key}") for key in ("dim_head", "heads", "num_latents", "ff_mult")}
    return counts | {"activation": config.text(f"{section}.activation", *ACTIVATIONS)}


# --- between picture and text ---------------------------------------------------------------------------------------


def _bridge(config: Values, dim_visual: int, dim: int) -> tuple[Layout, dict[str, Any]]:
    """Mapper and resampler, as far as they are enabled; their names inside are ours."""
    layout: Layout = {}
    settings = {f"model.{key}": config.switch(key) for key in ("enable_mapper", "enable_resampler_xattn")}
    if settings["model.enable_mapper"]:
        keys = _mapper(config)
        with torch.device("meta"):
            mapper = Mapper(dim_visual, dim, **dict.fromkeys(MAPPER_SIZES, 1) | keys)
        layout |= layout_of(mapper, "mapper.", "mapper.")
        settings |= {f"model.mapper.{key}": value for key, value in keys.items()}
        settings["model.mapper.trainable"] = config.switch("mapper.trainable")
    if settings["model.enable_resampler_xattn"]:
        keys = _attention(config, "resampler")
        keys |= {key: config.count(f"resampler.{key}") for key in ("depth", "num_time_embeds")}
        with torch.device("meta"):
            resampler = Resampler(dim_visual, **keys)
        layout |= layout_of(resampler, "resampler.", "resampler.")
        settings |= {f"model.resampler.{key}": value for key, value in keys.items()}
        settings["model.resampler.trainable"] = config.switch("resampler.trainable")
    return layout, settings


def _mapper(config: Values) -> dict[str, Any]:
    kind = config.text("mapper.mapper_type", "mlp", "transformer")
    sizes = MAPPER_SIZES[3:] if kind == "mlp" else MAPPER_SIZES[:3]
    return {"mapper_type": kind, **{key: config.count(f"mapper.{key}") for key in sizes}}


# --- what it was trained on -----------------------------------------------------------------------------------------


def _preset(training: Any) -> str:
    """Before it knew COCO, the original knew sign language only."""
    dataset = training.get("dataset") if isinstance(training, Mapping) else None
    if not isinstance(dataset, Mapping):
        return DATASETS[0]
    return dataset.get("name") if dataset.get("name") in DATASETS else DATASETS[1]


def _remarks(config: Values, training: Any, tokenizer: str) -> list[str]:
    remarks = []
    tower = config.text("vision.pretrained_name")
    if not tower.startswith("openai/"):
        remarks.append(
            f"model_cfg.vision.pretrained_name={tower} is no name of OpenAI's; it is taken for one of its towers, "
            f"which have heads of {HEAD_WIDTH} and QuickGELU"
        )
    dataset = training.get("dataset") if isinstance(training, Mapping) else None
    trained = dataset.get("tokenizer") if isinstance(dataset, Mapping) else None
    if isinstance(trained, str) and trained != tokenizer:
        remarks.append(f"it was trained with the tokenizer {trained!r} and is given {tokenizer!r}")
    return remarks
