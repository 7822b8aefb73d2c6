"""Build a vision model of transformers as an image tower, from the hub, a folder, or settings with random weights.

Only config.json, preprocessor_config.json and weights are read; settings that name code or kernels to load are dropped.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError
from PIL.Image import Resampling
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from common.errors import UserError, shorten
from model.weights.plain import quiet_transformers, read_object, read_weights

PROCESSOR = "preprocessor_config.json"
CODE = ("auto_map", "attn_implementation", "experts_implementation", "quantization_config", "use_kernels", "backbone")
# Where a configuration came from, its precision, and names of the classes of an output layer.
ORIGIN = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "id2label", "label2id")
KEY = "model.vision.pretrained_name"
# Their resizing is known to `_settings`.
RESIZING = ("ConvNextImageProcessor", "DINOv3ViTImageProcessor", "BeitImageProcessor")


def load_transformers(name: str | Path) -> tuple[PreTrainedModel, dict[str, object]]:
    """Return an image tower and the settings of its transform, as data.images.build_transform takes them.

    Args:
        name: a folder, or the name of a repository of the hub.

    Raises:
        UserError: files are missing, damaged or not available, or are those of a model without an image tower.
    """
    local, what = isinstance(name, Path), f"{KEY}: {name}"
    folder = name if local else _download(name, "*config.json")
    config = _config(read_object(folder / "config.json"), what)
    kind = _vision_class(config, what)
    preprocess = _preprocess(folder)
    if not local:
        _download(name, "model*.safetensors*")
        if not any(folder.glob("model*.safetensors")):
            _download(name, "pytorch_model*.bin*")
    weights = {"state_dict": read_weights(folder), "dtype": torch.float32, "output_loading_info": True}
    try:
        with quiet_transformers():
            network, info = kind.from_pretrained(None, config=config, **weights)
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{len(missing)} weights are missing, e.g. {missing[0]}")
    except Exception as error:  # transformers raises many kinds
        raise UserError(f"{what}: transformers cannot load {kind.__name__} from it ({shorten(error)})") from error
    return network, preprocess


def random_transformers(settings: Mapping[str, Any]) -> PreTrainedModel:
    """Return a tower with random weights from the settings of its configuration, `model_type` among them.

    Raises:
        UserError: an unknown model_type or setting, or settings that contradict each other.
    """
    what = "model.vision.config"
    config = _config(settings, what)
    require_known(settings, type(config)().to_dict(), f"{what}: {type(config).__name__}")
    try:
        return _vision_class(config, what)._from_config(config, dtype=torch.float32)
    except UserError:
        raise
    except Exception as error:  # transformers raises many kinds
        raise UserError(f"{what}: transformers cannot build this tower ({shorten(error)})") from error


def settings_of(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the plain settings, `model_type` among them, from which transformers builds an equal configuration."""
    known = {*type(config)().to_dict(), *config.attribute_map} - {*ORIGIN}
    found = {key: value for key, value in without_code(config.to_diff_dict()).items() if key in known}
    return {**json.loads(json.dumps(found)), "model_type": config.model_type}


def require_known(settings: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise UserError for the first unknown setting, with the nearest known one."""
    known = [*known]
    for setting in settings:
        if setting not in known:
            nearest = difflib.get_close_matches(str(setting), known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else f" ({', '.join(known)})"
            raise UserError(f"{what} has no setting {setting!r}{hint}")


def _config(stored: Mapping[str, Any], what: str) -> PreTrainedConfig:
    """Return the configuration of the image tower; that of a whole model (CLIP, SigLIP) has it in vision_config."""
    kind = stored.get("model_type")
    if kind not in CONFIG_MAPPING:
        nearest = difflib.get_close_matches(str(kind), CONFIG_MAPPING, n=3)
        raise UserError(f"{what}: transformers has no model_type={kind!r} (nearest: {', '.join(nearest) or 'none'})")
    try:
        config = AutoConfig.for_model(**without_code(stored))
    except Exception as error:  # transformers raises many kinds
        raise UserError(f"{what}: transformers rejects the settings of this {kind} ({shorten(error)})") from error
    return getattr(config, "vision_config", config)


def without_code(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without those that name code, kernels or other repositories, at any depth."""
    kept = {key: value for key, value in stored.items() if not str(key).lstrip("_").startswith(CODE)}
    return {key: without_code(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def _vision_class(config: PreTrainedConfig, what: str) -> type[PreTrainedModel]:
    kind = MODEL_MAPPING.get(type(config), None)
    if getattr(kind, "main_input_name", None) != "pixel_values":
        raise UserError(
            f"{what}: {config.model_type} does not read pictures; model.vision takes an image tower (CLIP, SigLIP, "
            "DINOv2, ViT, …), and model.text.pretrained_name a language model"
        )
    return kind


def _preprocess(folder: Path) -> dict[str, object]:
    path = folder / PROCESSOR
    stored = read_object(path)
    try:
        with quiet_transformers():
            return _settings(AutoImageProcessor.from_pretrained(folder, trust_remote_code=False), path)
    except UserError:
        raise
    except Exception as error:  # transformers raises many kinds
        kind = stored.get("image_processor_type") or stored.get("feature_extractor_type")
        raise UserError(f"{path}: transformers cannot build the image processor {kind} ({shorten(error)})") from error


def _settings(processor: Any, path: Path) -> dict[str, object]:
    """Map an image processor of transformers onto the settings of data.images.build_transform."""
    own, name = vars(type(processor)), type(processor).__name__.removesuffix("Pil").removesuffix("Fast")
    settings = processor.to_dict()
    size, crop = settings.get("size") or {}, settings.get("crop_size") or {}
    edge, fixed = size.get("shortest_edge"), (size.get("height"), size.get("width"))
    view = (crop.get("height"), crop.get("width")) if settings.get("do_center_crop") else fixed
    if name == RESIZING[0] and edge:
        view = (edge, edge)
        edge = None if edge >= 384 else int(edge / settings["crop_pct"])
    known = name in RESIZING or not {"resize", "_preprocess"} & own.keys()
    if not (known and all(view) and settings["do_resize"] and settings["do_rescale"]):
        raise UserError(f"{path}: {name} does not make pictures of one size in a way that EmoScribe has too")
    scale = 255 * settings["rescale_factor"]  # build_transform divides by 255
    mean, std = (settings["image_mean"], settings["image_std"]) if settings["do_normalize"] else ([0] * 3, [1] * 3)
    return {
        "size": view,
        "mean": tuple(value / scale for value in mean),
        "std": tuple(value / scale for value in std),
        "interpolation": Resampling(settings["resample"]).name.lower(),
        "resize_mode": "shortest" if edge else "squash",
        "crop": "floor",
        **({"resize_to": edge or fixed} if (edge or fixed) not in (view, view[0], (None, None)) else {}),
    }


def _download(name: str, pattern: str) -> Path:
    """Return the folder with those files of a repository, downloaded or from the cache."""
    try:
        return Path(snapshot_download(name, allow_patterns=pattern))
    except Exception as error:  # huggingface_hub and httpx raise many kinds
        gated = ", after you accept its terms there (it is gated; HF_TOKEN=… then downloads it too)"
        raise UserError(
            f"{KEY}: {name} is not on this machine and could not be downloaded ({shorten(error, 100)}). Download "
            f"config.json, {PROCESSOR} and model.safetensors of https://huggingface.co/{name} on a machine with a "
            f"network{gated if isinstance(error, GatedRepoError) else ''}, put them into a folder here, and set "
            f"{KEY}=THAT_FOLDER"
        ) from error
