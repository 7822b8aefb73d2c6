"""The teacher: an image classifier from timm with an output for every emotion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_model_data_config
from torch import nn

from common.errors import UserError, shorten
from common.reading import expand_user
from model.weights.plain import read_state
from model.weights.timm_tower import require_timm_name, timm_source

RESERVED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "num_classes")


def build_teacher(
    *,
    name: str,
    classes: int,
    pretrained: bool,
    weights: str | None = None,
    config: Mapping[str, Any] | None = None,
    image_size: int | None = None,
) -> tuple[nn.Module, dict[str, object]]:
    """Build a network, pictures (B, 3, H, W) → logits (B, classes), with a new output layer.

    Args:
        name: of a timm model, with or without a tag; no repository of the hub.
        pretrained, weights: see expert.teacher in config.yaml; a file takes precedence over timm's download.
        config: further arguments for timm.
        image_size: pixels; None: the model's default.

    Returns:
        the network, and the settings of its transform as for open_clip.PreprocessCfg.

    Raises:
        UserError: unknown name, unsupported settings or weights, or weights that are not available.
    """
    require_timm_name(name, "expert.teacher.name")
    settings = dict(config or {})
    if wrong := [key for key in settings if key in RESERVED]:
        raise UserError(f"expert.teacher.config: {wrong[0]} cannot be set here; see expert.teacher in config.yaml")
    if image_size is not None and timm.get_pretrained_cfg(name, allow_unregistered=True).fixed_input_size:
        settings.setdefault("img_size", image_size)
    if weights is not None:
        settings["pretrained_cfg_overlay"] = {"file": str(_checked_file(weights))}
    try:
        model = timm.create_model(name, pretrained=pretrained or weights is not None, num_classes=classes, **settings)
    except Exception as error:  # timm, huggingface_hub and urllib raise many kinds
        raise UserError(_explain(name, pretrained, weights, error)) from error
    data = resolve_model_data_config(model)
    interpolation = data["interpolation"] if data["interpolation"] in ("bicubic", "bilinear") else None
    size = image_size or max(data["input_size"][1:])
    return model, {"size": size, "mean": data["mean"], "std": data["std"], "interpolation": interpolation}


def _checked_file(weights: str) -> Path:
    """Return the path of a file that holds nothing but tensors; timm reads it again."""
    path = expand_user(weights).absolute()
    if not path.is_file():
        raise UserError(f"expert.teacher.weights: there is no file {path}")
    read_state(path)
    return path


def _explain(name: str, pretrained: bool, weights: str | None, error: Exception) -> str:
    reason = shorten(error)
    if weights is not None:
        return f"expert.teacher.weights: timm cannot load {weights} into {name} ({reason})"
    if not pretrained or isinstance(error, TypeError):
        return f"expert.teacher: timm cannot build {name} with these settings ({reason})"
    if not (where := timm_source(name)):
        return f"expert.teacher: timm has no weights for {name}; set expert.teacher.pretrained=false"
    return (
        f"expert.teacher: the weights of {name} are not on this machine and could not be downloaded ({reason}). Fetch "
        f"{where} where there is a network, copy it here, and set expert.teacher.weights=PATH_OF_THE_FILE; or train "
        "from random weights with expert.teacher.pretrained=false"
    )
