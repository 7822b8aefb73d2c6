"""Load and save VLE in the published layout: config.json, pytorch_model.bin or model.safetensors, vocabulary."""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import PreTrainedModel

from common.errors import UserError
from common.reading import expand_user
from model.vle.configuration import TEXT_BASE, VISION_BASE, VLEConfig
from model.weights.plain import quiet_transformers, read_object, read_weights

NEEDED = "config.json, preprocessor_config.json, pytorch_model.bin (or model.safetensors) and spm.model"
PATTERNS = ["*config.json", "*.safetensors", "*.bin", "*.index.json", "spm.model", "*token*.json"]
TOWER_KEYS = {  # settings that define a tower; others in a stored file could name code to download
    *("hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "layer_norm_eps"),
    *("initializer_range", "initializer_factor", "hidden_size", "num_attention_heads", "intermediate_size"),
    *("max_relative_positions", "pad_token_id", "conv_kernel_size", "conv_act", "num_channels"),
    *TEXT_BASE,
    *VISION_BASE,
}
HEAD = re.compile(
    r"(itm_score|vqa_classifier|pbc_classifier|mpc_classifier|mlm_score|emotion_classifier|vcr_\w+_logit)\."
)
# Buffers that older versions stored, with whole or real numbers, and a copy of the word table that is tied to it.
NOT_LOADED = re.compile(r"position_ids$|^mlm_score\.1\.predictions\.decoder\.")
LABELS = {"id2label": ("vqa_classifier.3.", "emotion_classifier.3."), "object_names": ("mpc_classifier.3.",)}  # outputs
POSITIONS = "vision_model.vision_model.embeddings.position_embedding.weight"
TYPES = "token_type_embeddings.weight"


class VLEPreTrainedModel(PreTrainedModel):
    """Base of all VLE classes: `from_pretrained` and `save_pretrained` in the published layout."""

    config_class = VLEConfig
    base_model_prefix = "vle"
    main_input_name = "pixel_values"
    _supports_sdpa = True
    encoder_prefix = "vle."  # of the encoder's weights; heads have none

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        image_size: int | None = None,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        **changes: Any,
    ) -> VLEPreTrainedModel:
        """Load a folder, or a model of the hub or its cache; the model is in evaluation mode.

        Weights of other heads are left out; a head that the files lack is random, with a warning, and so is the output
        layer of one that `changes` gives other labels.

        Args:
            image_size: side of the pictures in pixels, if the position table is to be resized (bicubic).
            dtype, torch_dtype: of the weights (two names of one argument); None: float32.
            changes: of the configuration, such as id2label, or num_token_types (more than stored: new random rows).

        Raises:
            UserError: a file is missing or damaged, an encoder's weight is missing, sizes contradict each other, or
                `changes` has an unknown name.
        """
        if unknown := sorted(changes.keys() - inspect.signature(VLEConfig).parameters.keys()):
            raise UserError(f"{cls.__name__}.from_pretrained has no argument {unknown[0]!r}, nor has VLEConfig")
        folder = find_folder(name)
        before = VLEConfig(**stored_config(folder))
        config = VLEConfig(**{**stored_config(folder), **changes})
        other = tuple(
            o for key, outputs in LABELS.items() if getattr(before, key) != getattr(config, key) for o in outputs
        )
        stored = {key.removeprefix("vle."): tensor for key, tensor in read_weights(folder).items()}
        stored = {key: tensor.float() for key, tensor in stored.items() if not NOT_LOADED.search(key)}
        stored = {key: tensor for key, tensor in stored.items() if not key.startswith(other)}
        _fit_positions(stored, config, image_size, folder)
        if (
            TYPES in stored
            and (new := config.num_token_types - len(stored[TYPES])) > 0
            and "num_token_types" in changes
        ):
            rows = torch.randn(new, config.hidden_size) * config.initializer_range
            stored[TYPES] = torch.cat([stored[TYPES], rows])
        state = {key if HEAD.match(key) else cls.encoder_prefix + key: tensor for key, tensor in stored.items()}
        with torch.device("meta"):
            expected = cls(config).state_dict()
        state = _fitting(state, expected, folder)
        with quiet_transformers():
            model = super().from_pretrained(
                None, config=config, state_dict=state, dtype=dtype or torch_dtype or torch.float32
            )
        return model

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write config.json and model.safetensors, with the published names of the weights."""
        with quiet_transformers():
            super().save_pretrained(folder, **options)


def find_folder(name: str | Path) -> Path:
    """Return the folder, or the snapshot of a repository of the hub; raise UserError if it can be found nowhere."""
    folder = expand_user(str(name))
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(str(name), allow_patterns=PATTERNS))
    except Exception as error:  # huggingface_hub and httpx raise many kinds
        raise UserError(
            f"VLE: {name} is not a folder, and could not be downloaded from the hub ({type(error).__name__}). Download "
            f"{NEEDED} of https://huggingface.co/{name} on a machine with a network, put them into a folder here, and "
            "give that folder"
        ) from error


def stored_config(folder: Path) -> dict[str, Any]:
    """Return the settings of config.json that define a VLE; a folder of another model raises UserError."""
    path = folder / "config.json"
    stored = read_object(path)
    if stored.get("model_type") != "vle":
        raise UserError(f"{path} is of a model of type {stored.get('model_type')!r}, not 'vle'")
    found = {key: value for key, value in stored.items() if key in inspect.signature(VLEConfig).parameters}
    for tower in ("text_config", "vision_config"):
        if not isinstance(found.get(tower), Mapping):
            raise UserError(f"{path} has no {tower}")
        found[tower] = plain_tower(found[tower])
    return found


def plain_tower(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return those settings of a stored configuration that define a tower."""
    return {key: value for key, value in stored.items() if key in TOWER_KEYS}


def _fit_positions(stored: dict[str, Tensor], config: VLEConfig, image_size: int | None, folder: Path) -> None:
    """Check that the position table fits the configured size, or resize it to `image_size`; in place."""
    vision = config.vision_config
    if POSITIONS not in stored:
        return  # reported with the other missing weights
    side = math.isqrt(len(stored[POSITIONS]) - 1) * vision.patch_size
    if side != vision.image_size:
        raise UserError(
            f"{folder}: its position table is for pictures of {side} pixels, and vision_config.image_size in its "
            f"config.json is {vision.image_size}: set that to {side}"
        )
    if image_size is not None and (image_size < vision.patch_size or image_size % vision.patch_size):
        raise UserError(f"image_size={image_size} must be a multiple of the patches' {vision.patch_size} pixels")
    if image_size is not None and image_size != side:
        stored[POSITIONS] = resize_positions(stored[POSITIONS], image_size // vision.patch_size)
        vision.image_size = image_size


def resize_positions(table: Tensor, side: int) -> Tensor:
    """Resize a position table (1 + P, D) to a grid of side × side patches, bicubic; the class token's row stays."""
    old = math.isqrt(len(table) - 1)
    grid = table[1:].T.reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], grid.flatten(2)[0].T])


def _fitting(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return the weights that the model has, after a check of names and shapes; warn of a head without weights."""
    kept = {key: tensor for key, tensor in state.items() if key in expected}
    if wrong := sorted(key for key, tensor in kept.items() if tensor.shape != expected[key].shape):
        key = wrong[0]
        raise UserError(
            f"{folder}: {key} is {tuple(kept[key].shape)} in its weights and {tuple(expected[key].shape)} by its "
            "config.json: the two files do not belong together"
        )
    if broken := [key for key, tensor in kept.items() if not tensor.isfinite().all()]:
        raise UserError(f"{folder}: {broken[0]} holds NaN or infinity; take another checkpoint")
    missing = [key for key in expected if key not in kept]
    if encoder := [key for key in missing if not HEAD.match(key)]:
        raise UserError(f"{folder}: {len(encoder)} weights of the encoder are missing, the first: {encoder[0]}")
    unknown = [key for key in state if key not in expected and not HEAD.match(key)]
    if unknown:
        raise UserError(
            f"{folder}: its weights have {len(unknown)} more than its config.json describes, the first: {unknown[0]}"
        )
    if heads := sorted({key.split(".")[0] for key in missing}):
        warnings.warn(f"{folder} has no weights of {', '.join(heads)}: random, to be trained first", stacklevel=3)
    return kept
