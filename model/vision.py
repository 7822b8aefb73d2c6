"""Vision encoder: an open_clip image tower that returns the tokens of its last block.

Axes: B images or videos, T frames, P tokens of a frame, Dv width of the tower.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, fields
from hashlib import blake2b
from types import BuiltinFunctionType, FunctionType

import open_clip
import torch
from einops import rearrange
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from common.errors import UserError
from model.weights.clip import architecture_and_tag, create_model
from model.weights.tensor_files import add_tensors

# open_clip.CLIP requires a text tower, which is not used here.
_NO_TEXT = open_clip.CLIPTextCfg(context_length=1, vocab_size=2, width=8, heads=1, layers=1)
# model.vision.transform: settings that override those of the tower. The perceiver captioner crops as transformers does;
# NLX-GPT and SEVLM squeeze the whole picture into a square and normalize it as for ImageNet.
TRANSFORMS = {
    "clip": {},
    "clip_transformers": {"crop": "floor"},
    "imagenet_squash": {
        "mean": open_clip.constants.IMAGENET_MEAN,
        "std": open_clip.constants.IMAGENET_STD,
        "interpolation": "bilinear",
        "resize_mode": "squash",
    },
}


class VisionEncoder(nn.Module):
    """frames (B, T, 3, H, W) → tokens (B, T, P, Dv) of the tower's last block.

    Args:
        visual: image tower of an open_clip model.
        preprocess: the settings of the tower's image transform (open_clip.PreprocessCfg as a mapping).
        pretrained: whether the weights can be loaded again from their source.
        tokens: "all" = class token first, before the final norm; "patches" = without the class token, and after the
            final norm (ln_post), which CLIP itself applies to the class token only.

    Raises:
        UserError: tokens="patches" for a tower without a class token or without a final norm of the tokens.
    """

    def __init__(self, visual: nn.Module, *, preprocess: Mapping, pretrained: bool, tokens: str = "all") -> None:
        super().__init__()
        # In CoCa's towers (attn_pool), ln_post does not apply to the tokens themselves.
        if tokens == "patches" and not (isinstance(visual, VisionTransformer) and visual.attn_pool is None):
            raise UserError(
                f"model.vision.tokens=patches: {type(visual).__name__} has no class token, or no final norm of the "
                "other tokens; use tokens=all, or one of open_clip's vision transformers (ViT-…)"
            )
        self.visual = visual.eval()  # else the pass below would change a ResNet's running means
        self.preprocess = dict(preprocess)
        self.pretrained = pretrained
        self.tokens = tokens
        # Prefixes of the names of parameters that do not affect the tokens.
        self.unused = ("attnpool.",) if tokens == "patches" else ("attnpool.", "ln_post.")
        if getattr(visual, "proj", None) is not None:
            visual.proj = None  # maps the pooled output, which is not used, to CLIP's shared space
        # These return feature maps: CLIP's ResNets, and timm's convolutional towers (ConvNeXt, MobileCLIP, Swin).
        trunk = getattr(visual, "trunk", None)
        self.spatial = isinstance(visual, ModifiedResNet) or (
            trunk is not None and not hasattr(trunk, "num_prefix_tokens")
        )
        with torch.no_grad():
            size = self.preprocess["size"]
            height, width = (size, size) if isinstance(size, int) else size
            self.num_tokens, self.dim = self._tokens(torch.zeros(1, 3, height, width)).shape[1:]

    def _tokens(self, images: Tensor) -> Tensor:
        if self.spatial:
            out = self.visual.forward_intermediates(images, indices=1, intermediates_only=True)
            return rearrange(out["image_intermediates"][-1], "n d h w -> n (h w) d")
        only_patches = self.tokens == "patches"
        options = {"normalize_intermediates": only_patches, "output_extra_tokens": not only_patches}
        out = self.visual.forward_intermediates(images, indices=1, intermediates_only=True, output_fmt="NLC", **options)
        class_token = out.get("image_intermediates_prefix")
        patches = out["image_intermediates"][-1]
        return torch.cat([class_token[-1], patches], dim=1) if class_token else patches

    def fingerprint(self) -> dict[str, object]:
        """Return everything that determines the tokens of a picture except the precision, as JSON.

        weights: digest of the tower's state; structure: its modules, since activations, heads and strides are not part
        of the state; transform, tokens: as in the constructor.
        """
        digest = blake2b(digest_size=16)
        add_tensors(digest, self.visual.state_dict())
        structure = [f"{name}: {_describe(module)}" for name, module in self.visual.named_modules()]
        return {
            "weights": digest.hexdigest(),
            "structure": structure,
            "transform": self.preprocess,
            "tokens": self.tokens,
        }

    def forward(self, frames: Tensor) -> Tensor:
        batch = frames.shape[0]
        frames = frames.to(next(self.visual.parameters()).dtype)
        tokens = self._tokens(rearrange(frames, "b t c h w -> (b t) c h w"))
        return rearrange(tokens, "(b t) p d -> b t p d", b=batch)


def _describe(module: nn.Module) -> str:
    """Return class and plain settings of one module; its repr omits many, such as the number of heads."""
    settings = {
        key: value.__qualname__ if isinstance(value, FunctionType | BuiltinFunctionType | type) else value
        for key, value in sorted(vars(module).items())
        if not key.startswith("_") and key != "training" and _is_plain(value)
    }
    return f"{type(module).__qualname__}({module.extra_repr()}) {settings}"


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | FunctionType | BuiltinFunctionType | type)


def build_vision(
    *,
    pretrained_name: str | None,
    architecture: str | None = None,
    config: Mapping | None = None,
    tokens: str = "all",
    transform: str = "clip",
) -> VisionEncoder:
    """Build the vision encoder from the keys of `model.vision`.

    Args:
        config: open_clip's vision_cfg of a tower with random weights, and `quick_gelu` (OpenAI's activation).
        tokens: see VisionEncoder.
        transform: one of TRANSFORMS; "clip" is the tower's own.

    Raises:
        UserError: unknown name, setting or tokens, or weights that are neither cached nor available for download.
    """
    if pretrained_name is None and config is not None:
        return _random_tower(config, tokens=tokens, transform=transform)
    if pretrained_name is None and architecture is None:
        raise UserError(
            "model.vision: with pretrained_name=null give either architecture=NAME (open_clip's) or config={…}"
        )
    model = create_model(*architecture_and_tag(pretrained_name, architecture))
    preprocess = {**open_clip.get_model_preprocess_cfg(model), **TRANSFORMS[transform]}
    return VisionEncoder(model.visual, preprocess=preprocess, pretrained=pretrained_name is not None, tokens=tokens)


def _random_tower(config: Mapping, *, tokens: str, transform: str) -> VisionEncoder:
    known = [*(f.name for f in fields(open_clip.CLIPVisionCfg)), "quick_gelu"]
    if unknown := [key for key in config if key not in known]:
        nearest = difflib.get_close_matches(str(unknown[0]), known, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else f" ({', '.join(known)})"
        raise UserError(f"model.vision.config: open_clip's vision tower has no setting {unknown[0]!r}{hint}")
    quick_gelu = bool(config.get("quick_gelu", False))
    settings = open_clip.CLIPVisionCfg(**{key: value for key, value in config.items() if key != "quick_gelu"})
    try:
        model = open_clip.CLIP(embed_dim=settings.width, vision_cfg=settings, text_cfg=_NO_TEXT, quick_gelu=quick_gelu)
        preprocess = {**asdict(open_clip.transform.PreprocessCfg(size=settings.image_size)), **TRANSFORMS[transform]}
        return VisionEncoder(model.visual, preprocess=preprocess, pretrained=False, tokens=tokens)
    except (TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"model.vision.config: open_clip cannot build this tower ({error})") from error
