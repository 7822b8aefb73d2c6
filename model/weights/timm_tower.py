"""Build a timm network as an image tower, with timm's weights, those of a file, or random ones."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from common.errors import UserError, shorten
from model.weights.plain import read_state

TIMM = "timm/"  # prefix of the names in model.vision


def create_timm(name: str, *, pretrained: bool, file: Path | None = None) -> nn.Module:
    """Return a network without its output layer.

    Args:
        name: timm's name of a model, with or without a tag; hf-hub:ORG/NAME or local-dir:FOLDER in timm's layout.
        file: weights to load instead of those that belong to the name.

    Raises:
        UserError: an unknown name, or weights that do not fit or are neither cached nor downloadable.
    """
    if ":" not in name:
        require_timm_name(name, "model.vision")
    options = {"pretrained": pretrained} if file is None else _weights(name, read_state(file))
    try:
        network = timm.create_model(name, **options)
        network.reset_classifier(0)  # after loading: with another number of classes, timm accepts missing weights
    except Exception as error:  # timm, huggingface_hub and urllib raise many kinds
        raise UserError(_explain(name, pretrained, file, error)) from error
    network.pretrained_cfg.pop("state_dict", None)  # a second copy of the weights
    return network


def timm_preprocess(network: nn.Module) -> dict[str, object]:
    """Return the settings of timm's own evaluation transform, as data.images.build_transform takes them."""
    data = resolve_model_data_config(network)
    size = data["input_size"][1:]
    square, mode = size[0] == size[1], {"squash": "squash", "border": "longest"}.get(data["crop_mode"], "shortest")
    settings = {"size": size, "mean": data["mean"], "std": data["std"], "interpolation": data["interpolation"]}
    settings |= {"resize_mode": mode, "fill_color": tuple(round(255 * value) for value in data["mean"])}
    if (resized := tuple(math.floor(side / data["crop_pct"]) for side in size)) != size:
        settings["resize_to"] = resized[0] if square and mode == "shortest" else resized
    return settings


def timm_architecture(network: nn.Module) -> str:
    """Return the name under which timm builds a network of this shape, with its tag if timm knows that."""
    source = network.pretrained_cfg
    tagged = f"{source['architecture']}.{source.get('tag')}"
    return f"{TIMM}{tagged if timm.is_model_pretrained(tagged) else source['architecture']}"


def match_by_order(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` under the names of `wanted` if both hold the same kinds and shapes in the same order.

    Other implementations of a network (efficientnet_lite_pytorch) save the same layers under other names. A kind is the
    last part of a name (weight, bias, running_mean). A state that differs otherwise is returned as it is.
    """
    theirs, ours = ([(k.rpartition(".")[2], v.shape) for k, v in tensors.items()] for tensors in (state, wanted))
    return dict(zip(wanted, state.values(), strict=True)) if theirs == ours else dict(state)


def _weights(name: str, state: Mapping[str, Tensor]) -> dict[str, object]:
    """Return the arguments with which timm.create_model loads a state, of any number of classes, without gaps."""
    with torch.device("meta"):
        network = timm.create_model(name)
    state = match_by_order(state, network.state_dict())
    head = network.pretrained_cfg.get("classifier") or ""
    outputs = state.get(f"{head if isinstance(head, str) else head[0]}.weight")
    classes = 0 if outputs is None else len(outputs)
    overlay = {"state_dict": state, "num_classes": classes}
    return {"pretrained": True, "num_classes": classes, "pretrained_cfg_overlay": overlay}


def require_timm_name(name: str, key: str) -> None:
    """Raise UserError, naming the configuration key, if timm has no such architecture."""
    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise UserError(f"{key}: timm has no {name!r}" + (f"; did you mean {nearest[0]}?" if nearest else ""))


def timm_source(name: str) -> str | None:
    """Return which file to download for the weights of a name; None if timm has none."""
    if ":" in name:
        return f"model.safetensors and config.json of https://huggingface.co/{name.partition(':')[2]}"
    source = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return f"model.safetensors of https://huggingface.co/{source.hf_hub_id}" if source.hf_hub_id else source.url


def _explain(name: str, pretrained: bool, file: Path | None, error: Exception) -> str:
    reason = shorten(error)
    if file is not None:
        return f"model.vision.pretrained_name: timm cannot load {file} into {name} ({reason})"
    where = timm_source(name) if pretrained and not name.startswith("local-dir:") else None
    if where is None or isinstance(error, TypeError):
        return f"model.vision: timm cannot build {name} ({reason})"
    return (
        f"model.vision: the weights of {TIMM}{name} are not on this machine and could not be downloaded ({reason}). "
        f"Download {where} on a machine with a network, copy it here, and set model.vision.architecture={TIMM}"
        f"{name.rpartition('/')[2]} model.vision.pretrained_name=PATH_OF_THE_FILE"
    )
