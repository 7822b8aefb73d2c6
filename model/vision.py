"""Vision encoder: an open_clip image tower that gives the tokens of its last block.

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
from model.weights.digests import add_tensors

# The text tower is not used; open_clip.CLIP wants one, so it gets the smallest.
_NO_TEXT = open_clip.CLIPTextCfg(context_length=1, vocab_size=2, width=8, heads=1, layers=1)
# model.vision.transform: what replaces the settings of the tower's own transform. NLX-GPT and SEVLM show a picture to
# CLIP as ImageNet's classifiers see theirs: the whole of it, squeezed into a square.
TRANSFORMS = {
    "clip": {},
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
        pretrained: whether the weights can be had again from where they came.
        tokens: "all" = class token first, before the final norm; "patches" = without the class token, and after the
            final norm (ln_post), which CLIP itself applies to the class token only.

    Raises:
        UserError: tokens="patches" of a tower that has no class token or no final norm of the tokens.
    """

    def __init__(self, visual: nn.Module, *, preprocess: Mapping, pretrained: bool, tokens: str = "all") -> None:
        super().__init__()
        if tokens == "patches" and not _norms_its_tokens(visual):
            raise UserError(
                f"model.vision.tokens=patches: {type(visual).__name__} has no class token to leave out, or no final "
                "norm for the others; take tokens=all, or one of open_clip's own vision transformers (ViT-…)"
            )
        self.visual = visual.eval()  # or looking at the size below would move a ResNet's running means
        self.preprocess = dict(preprocess)
        self.pretrained = pretrained
        self.tokens = tokens
        # Beginnings of the names of the tower's parameters that have no part in the tokens.
        self.unused = ("attnpool.",) if tokens == "patches" else ("attnpool.", "ln_post.")
        if getattr(visual, "proj", None) is not None:
            visual.proj = None  # maps the pooled output, which is not used, to CLIP's shared space
        self.spatial = isinstance(visual, ModifiedResNet)  # gives a map instead of a sequence of tokens
        with torch.no_grad():
            size = self.preprocess["size"]
            height, width = (size, size) if isinstance(size, int) else size
            self.num_tokens, self.dim = self._tokens(torch.zeros(1, 3, height, width)).shape[1:]

    def _tokens(self, images: Tensor) -> Tensor:
        if self.spatial:
            out = self.visual.forward_intermediates(images, indices=1, intermediates_only=True)
            return rearrange(out["image_intermediates"][-1], "n d h w -> n (h w) d")
        only_patches = self.tokens == "patches"
        out = self.visual.forward_intermediates(
            images,
            indices=1,
            normalize_intermediates=only_patches,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=not only_patches,
        )
        class_token = out.get("image_intermediates_prefix")
        patches = out["image_intermediates"][-1]
        return torch.cat([class_token[-1], patches], dim=1) if class_token else patches

    def fingerprint(self) -> dict[str, object]:
        """All that decides the tokens of a picture, save the precision, as JSON: equal fingerprints give equal tokens.

        weights: a digest of the tower's state; structure: its modules, of which activations, heads and strides change
        the tokens and leave the weights as they are; transform: how a picture becomes a frame; tokens: which of them.
        """
        digest = blake2b(digest_size=16)
        add_tensors(digest, self.visual.state_dict())
        structure = [f"{name}: {_in_words(module)}" for name, module in self.visual.named_modules()]
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


def _norms_its_tokens(visual: nn.Module) -> bool:
    """Whether ln_post is of the tokens themselves, and not of what an attentional pooler makes of them (CoCa)."""
    return isinstance(visual, VisionTransformer) and visual.attn_pool is None


def _in_words(module: nn.Module) -> str:
    """Class and plain settings of one module; its own description leaves many out, such as the number of heads."""
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
    """The tower that the first three keys of `model.vision` name, its tokens, and how it is shown a picture.

    Args:
        config: open_clip's vision_cfg of a tower with random weights, and `quick_gelu` (OpenAI's activation).
        tokens: as VisionEncoder's.
        transform: one of TRANSFORMS; "clip" is the tower's own.

    Raises:
        UserError: an unknown name, a setting or tokens that the tower does not have, or weights that are neither in
            the cache nor to be had from the network.
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
    for key in config:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else f" ({', '.join(known)})"
            raise UserError(f"model.vision.config: open_clip's vision tower has no setting {key!r}{hint}")
    quick_gelu = bool(config.get("quick_gelu", False))
    settings = open_clip.CLIPVisionCfg(**{key: value for key, value in config.items() if key != "quick_gelu"})
    try:
        model = open_clip.CLIP(embed_dim=settings.width, vision_cfg=settings, text_cfg=_NO_TEXT, quick_gelu=quick_gelu)
        preprocess = asdict(open_clip.transform.PreprocessCfg(size=settings.image_size, **TRANSFORMS[transform]))
        return VisionEncoder(model.visual, preprocess=preprocess, pretrained=False, tokens=tokens)
    except (TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"model.vision.config: open_clip cannot build this tower ({error})") from error
