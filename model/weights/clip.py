"""Find the open_clip model that a user's setting names, and build it with its weights."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import open_clip
import timm
from torch import Tensor, nn

from common.errors import UserError
from common.reading import Refused, expand_user, read_json, refuse_panics, require_plain_clip

# Hugging Face's names of OpenAI's models, and open_clip's for the same weights.
HUGGING_FACE_NAMES = {
    "openai/clip-vit-base-patch32": ("ViT-B-32-quickgelu", "openai"),
    "openai/clip-vit-base-patch16": ("ViT-B-16-quickgelu", "openai"),
    "openai/clip-vit-large-patch14": ("ViT-L-14-quickgelu", "openai"),
    "openai/clip-vit-large-patch14-336": ("ViT-L-14-336-quickgelu", "openai"),
}
CLIP_CONFIG = "open_clip_config.json"  # next to the weights
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
LOCAL = "local-dir:"  # open_clip's prefix for a folder with both
LONGEST_REASON = 200  # characters of another library's message


def architecture_and_tag(pretrained_name: str | None, architecture: str | None) -> tuple[str, str | None]:
    """Return open_clip's (model_name, pretrained) for the values of model.vision.

    Raises:
        UserError: an unknown name, or a weight file without its architecture.
    """
    if pretrained_name is None:
        return _known_architecture(architecture), None
    if pretrained_name in HUGGING_FACE_NAMES:
        return HUGGING_FACE_NAMES[pretrained_name]
    if pretrained_name.startswith(("hf-hub:", LOCAL)):
        return pretrained_name, None
    path = expand_user(pretrained_name)
    if path.is_dir():
        if not (path / CLIP_CONFIG).is_file():
            raise UserError(
                f"model.vision.pretrained_name: {path} has no {CLIP_CONFIG}; give a folder as open_clip's "
                "push_to_hf_hub writes it, or the weight file itself with model.vision.architecture=NAME"
            )
        return f"{LOCAL}{path}", None
    if path.is_file():
        if architecture is None:
            raise UserError(f"model.vision.pretrained_name is the file {path}: set model.vision.architecture=NAME too")
        return _known_architecture(architecture), str(path)
    name, _, tag = pretrained_name.rpartition("/")
    name = _known_architecture(name or architecture or pretrained_name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise UserError(
            f"model.vision.pretrained_name: open_clip has no weights {tag!r} for {name} (it has {', '.join(tags)}), "
            f"and there is no file {path}"
        )
    return name, tag


def is_hub_name(name: str) -> bool:
    """Return whether a name can only be a repository ORG/NAME of the hub, and not open_clip's MODEL/TAG or a file."""
    owner, _, model = name.partition("/")
    ours = owner in open_clip.list_models() or model in {tag for _, tag in open_clip.list_pretrained()}
    parts = HUB_NAME.fullmatch(name) and not model.endswith((".safetensors", ".bin", ".pt", ".pth"))
    return bool(parts) and not ours and name not in HUGGING_FACE_NAMES and not expand_user(name).exists()


def _known_architecture(name: str) -> str:
    models = open_clip.list_models()
    if name in models:
        return name
    names = [*models, *HUGGING_FACE_NAMES, *(f"timm/{model}" for model in timm.list_models())]
    nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
    raise UserError(
        f"model.vision: {name!r} is neither a file, a folder nor an architecture of open_clip; "
        f"nearest: {', '.join(nearest) or 'none'}"
    )


def create_model(name: str, tag: str | None) -> nn.Module:
    """Return the CLIP model that `architecture_and_tag` names, with the activation that its weights were trained with.

    Raises:
        UserError: the weights are damaged, refused, or neither cached nor downloadable; the message names the file.
    """
    try:
        if ":" in name:
            require_plain_clip(clip_config(name))
    except Refused as error:
        raise UserError(f"model.vision: {name} is refused, and nothing in it was run: {error}") from error
    quick_gelu = bool(tag) and bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
    needed = tag is not None or ":" in name
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)  # open_clip logs errors that it also raises
    try:
        return open_clip.create_model(name, pretrained=tag, force_quick_gelu=quick_gelu, require_pretrained=needed)
    except Exception as error:  # open_clip, huggingface_hub and urllib raise many kinds
        raise UserError(_download_hint(name, tag, error)) from error
    finally:
        logging.disable(level)


def tower_settings(pretrained_name: str, architecture: str | None) -> dict[str, Any]:
    """Return the value of model.vision.config with which a tower of the same shape is built."""
    name, tag = architecture_and_tag(pretrained_name, architecture)
    config = clip_config(name)
    quick = config.get("quick_gelu", False) or (bool(tag) and open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    settings = {**config["vision_cfg"], "quick_gelu": bool(quick), "embed_dim": config["embed_dim"]}
    return {**settings, "timm_model_pretrained": False} if "timm_model_name" in settings else settings


def create_tokenizer(name: str) -> Callable[[list[str]], Tensor]:
    """Return the tokenizer of a model that `create_model` builds.

    Raises:
        UserError: it is neither cached nor downloadable, or the model names another repository for it.
    """
    try:
        repository = (clip_config(name).get("text_cfg") or {}).get("hf_tokenizer_name")
        configs = map(open_clip.get_model_config, open_clip.list_models())
        listed = (config["text_cfg"].get("hf_tokenizer_name", "") for config in configs)
        if name.startswith("hf-hub:") and repository not in chain((None, "", name.removeprefix("hf-hub:")), listed):
            raise Refused(f"it is in another repository, {repository!r}")
        # An argument overrides the configuration next to the weights.
        options = {"trust_remote_code": False} if repository else {}
        with refuse_panics():
            return open_clip.get_tokenizer(name, **options)
    except Exception as error:  # open_clip and transformers raise many kinds
        raise UserError(f"model.vision: the tokenizer of {name} cannot be loaded ({_first_sentence(error)})") from error


def clip_config(name: str) -> Any:
    """Return open_clip's model_cfg of a model; {} if there is none, which open_clip itself reports when it loads it."""
    path = Path(name.removeprefix(LOCAL), CLIP_CONFIG) if name.startswith(LOCAL) else None
    try:
        return read_json(path)["model_cfg"] if path else open_clip.get_model_config(name) or {}
    except Exception as error:  # huggingface_hub raises many kinds
        if path and path.exists() and isinstance(error, ValueError | OSError):
            raise UserError(f"model.vision: open_clip cannot load {name} ({CLIP_CONFIG}: {error})") from None
        return {}


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if text.startswith("Weights only load failed"):  # torch's text goes on with how to load the file unsafely
        return "it holds more than weights, and nothing in it was run"
    return text.split(". ")[0].rstrip(".")[:LONGEST_REASON]


def _download_hint(name: str, tag: str | None, error: Exception) -> str:
    reason = _first_sentence(error)
    if tag is None or Path(tag).is_file():
        return f"model.vision: open_clip cannot load {tag or name} ({reason})"
    source = open_clip.get_pretrained_cfg(name, tag)
    where = source.get("hf_hub", "").strip("/")
    file = f"open_clip_model.safetensors of https://huggingface.co/{where}" if where else str(source.get("url"))
    if source.get("quick_gelu") and f"{name}-quickgelu" in open_clip.list_models():
        name = f"{name}-quickgelu"  # a file does not hold the activation that its weights were trained with
    return (
        f"model.vision: the weights {name}/{tag} are not on this machine and could not be downloaded ({reason}). "
        f"Download {file} on a machine with a network, copy it here, and set "
        f"model.vision.architecture={name} model.vision.pretrained_name=PATH_OF_THE_FILE"
    )
