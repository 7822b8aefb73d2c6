"""Small image towers of timm and transformers, pictures for them, and folders of their weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from model.vision import VisionEncoder, build_vision

SIZES = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {**SIZES, "image_size": 32, "patch_size": 8}
DINO = {key: value for key, value in VIT.items() if key != "intermediate_size"}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": 64}
SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": 64, "patch_size": 4}
# model_type: settings, tokens, tokens in front of the patches
TRANSFORMERS = {
    "clip_vision_model": (VIT, 17, 1),
    "siglip_vision_model": (VIT, 16, 0),
    "dinov2": (DINO, 17, 1),
    "dinov2_with_registers": (DINO, 21, 5),
    "dinov3_vit": ({**VIT, "num_register_tokens": 4}, 21, 5),
    "dinov3_convnext": (STAGES, 5, 1),
    "vit": (VIT, 17, 1),
    "swin": (SWIN, 64, 0),
    "convnext": (STAGES, 4, 0),
}
# architecture: tokens, tokens in front of the patches
TIMM = {
    "test_vit": (101, 1),
    "test_vit2": (101, 1),
    "swin_tiny_patch4_window7_224": (49, 0),
    "test_convnext": (25, 0),
    "efficientvit_b0": (49, 0),  # cannot be built with global_pool=""
    "tf_efficientnet_lite0": (49, 0),
    "levit_128s": (16, 0),
}


def transformers_tower(kind: str, **options) -> VisionEncoder:
    torch.manual_seed(0)
    return build_vision(pretrained_name=None, config={"model_type": kind, **TRANSFORMERS[kind][0]}, **options)


def timm_tower(name: str, **options) -> VisionEncoder:
    torch.manual_seed(0)
    return build_vision(pretrained_name=None, architecture=f"timm/{name}", **options)


def pictures(tower: VisionEncoder, count: int = 2) -> torch.Tensor:
    size = tower.preprocess["size"]
    size = (size, size) if isinstance(size, int) else size
    return torch.randn(count, 1, 3, *size, generator=torch.Generator().manual_seed(1))


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def rows(features: torch.Tensor, width: int) -> torch.Tensor:
    """Return a feature map as tokens, row by row, whichever axis holds its channels."""
    if features.ndim == 4:
        features = features if features.shape[-1] == width else features.permute(0, 2, 3, 1)
        features = features.reshape(len(features), -1, width)
    return features


def write_folder(folder: Path, kind: str = "vit", *, model=None, processor=None, safe: bool = True) -> Path:
    (model or transformers_tower(kind).visual).save_pretrained(folder)
    (processor or transformers.ViTImageProcessor(size={"height": 32, "width": 32})).save_pretrained(folder)
    if not safe:
        state = (model or transformers_tower(kind).visual).state_dict()
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "pytorch_model.bin")
    return folder
