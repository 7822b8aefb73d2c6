"""Vision encoder: an image tower of open_clip, timm or transformers that returns the tokens of its last block.

Axes: B images or videos, T frames, P tokens of a frame, Dv width of the tower.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cached_property
from hashlib import blake2b
from types import BuiltinFunctionType, FunctionType

import open_clip
import torch
from einops import rearrange
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from timm.layers.format import get_channel_dim
from torch import Tensor, nn
from transformers import CLIPVisionModel, PreTrainedModel

from common.errors import UserError, shorten
from common.reading import expand_user
from model.weights.clip import CLIP_CONFIG, architecture_and_tag, create_model, is_hub_name
from model.weights.plain import read_object
from model.weights.tensor_files import add_tensors
from model.weights.timm_tower import TIMM, create_timm, timm_preprocess
from model.weights.transformers_tower import load_transformers, random_transformers, require_known

# open_clip.CLIP requires a text tower, which is not used here.
_NO_TEXT = open_clip.CLIPTextCfg(context_length=1, vocab_size=2, width=8, heads=1, layers=1)
NOT_OF_THE_TOWER = ("quick_gelu", "embed_dim")  # settings of the whole model in model.vision.config
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

PREPROCESS = (*(field.name for field in fields(open_clip.transform.PreprocessCfg)), "resize_to", "crop")
ORIGIN = ("_name_or_path", "transformers_version", "architectures")  # settings that do not affect the tokens


class VisionEncoder(nn.Module):
    """frames (B, T, 3, H, W) → tokens (B, T, P, Dv) of the tower's last block.

    Args:
        visual: image tower of an open_clip model, a network of timm, or a vision model of transformers.
        preprocess: the settings of the tower's image transform, see data.images.build_transform.
        pretrained: whether the weights can be loaded again from their source.
        tokens: "all" = class token first, before the final norm in open_clip's towers, and as timm's forward_features
            and transformers' last_hidden_state give them in the others; "patches" = without the tokens in front of the
            patches, and after the final norm (ln_post), which CLIP itself applies to the class token only.

    Raises:
        UserError: the tower has no tokens, or tokens="patches" for one without a final norm of its tokens.
    """

    def __init__(self, visual: nn.Module, *, preprocess: Mapping, pretrained: bool, tokens: str = "all") -> None:
        super().__init__()
        self.clip = clip = type(visual).__module__.startswith("open_clip.")
        # In CoCa's towers (attn_pool), ln_post does not apply to the tokens themselves.
        normed = isinstance(visual, VisionTransformer) and visual.attn_pool is None
        if tokens == "patches" and not normed and (clip or isinstance(visual, CLIPVisionModel)):
            raise UserError(
                f"model.vision.tokens=patches: {type(visual).__name__} has no class token, or no final norm of the "
                "other tokens; use tokens=all, or one of open_clip's vision transformers (ViT-…)"
            )
        self.visual = visual.eval()  # else the pass below would change a ResNet's running means
        self.preprocess = dict(preprocess)
        self.pretrained = pretrained
        self.tokens = tokens
        if clip and getattr(visual, "proj", None) is not None:
            visual.proj = None  # maps the pooled output, which is not used, to CLIP's shared space
        # These return feature maps: CLIP's ResNets, and timm's convolutional towers (ConvNeXt, MobileCLIP, Swin).
        trunk = getattr(visual, "trunk", None)
        self.spatial = isinstance(visual, ModifiedResNet) or (
            trunk is not None and not hasattr(trunk, "num_prefix_tokens")
        )
        self.before = 0  # tokens that are left out
        with torch.no_grad():
            self.num_tokens, self.dim = self._tokens(self._blank()).shape[1:]
        if tokens == "patches" and not clip:
            self.before = (patch_grid(self) or (0,))[0]
            self.num_tokens -= self.before

    def _blank(self) -> Tensor:
        size = self.preprocess["size"]
        return torch.zeros(1, 3, *((size, size) if isinstance(size, int) else size))

    def _tokens(self, images: Tensor) -> Tensor:
        return self._open_clip_tokens(images) if self.clip else self._own_tokens(images)

    def _own_tokens(self, images: Tensor) -> Tensor:
        """Return the tokens of timm's and transformers' towers: the rows of a feature map one after the other."""
        if isinstance(self.visual, PreTrainedModel):
            found = getattr(self.visual(pixel_values=images), "last_hidden_state", None)
        else:
            found = self.visual.forward_features(images)
        if isinstance(found, Tensor) and found.ndim == 4:
            last = get_channel_dim(getattr(self.visual, "output_fmt", "NCHW")) == 3
            found = rearrange(found, "n h w d -> n (h w) d" if last else "n d h w -> n (h w) d")
        if not isinstance(found, Tensor) or found.ndim != 3:
            raise UserError(
                f"model.vision: {type(self.visual).__name__} gives no tokens of a picture, only a summary of it; take "
                "a tower with tokens or feature maps (ViT, DINOv2, ConvNeXt, …)"
            )
        return found[:, self.before :]

    def _open_clip_tokens(self, images: Tensor) -> Tensor:
        if self.spatial:
            out = self.visual.forward_intermediates(images, indices=1, intermediates_only=True)
            return rearrange(out["image_intermediates"][-1], "n d h w -> n (h w) d")
        only_patches = self.tokens == "patches"
        extra = not only_patches and getattr(getattr(self.visual, "trunk", None), "num_prefix_tokens", 1) > 0
        options = {"normalize_intermediates": only_patches, "output_extra_tokens": extra}
        out = self.visual.forward_intermediates(images, indices=1, intermediates_only=True, output_fmt="NLC", **options)
        class_token = out.get("image_intermediates_prefix")
        patches = out["image_intermediates"][-1]
        return torch.cat([class_token[-1], patches], dim=1) if class_token else patches

    @cached_property
    def unused(self) -> tuple[str, ...]:
        """Names of the parameters that do not affect the tokens, found by a backward pass."""
        names, parameters = zip(*self.visual.named_parameters(), strict=True)
        trained = [parameter.requires_grad for parameter in parameters]
        self.visual.requires_grad_(True)
        with torch.enable_grad():
            found = torch.autograd.grad(self._tokens(self._blank()).sum(), parameters, allow_unused=True)
        for parameter, before in zip(parameters, trained, strict=True):
            parameter.requires_grad_(before)
        return tuple(name for name, gradient in zip(names, found, strict=True) if gradient is None)

    def fingerprint(self) -> dict[str, object]:
        """Return everything that determines the tokens of a picture except the precision, as JSON.

        weights: digest of the tower's state; structure: its modules, since activations, heads and strides are not part
        of the state; transform, tokens: as in the constructor.
        """
        digest = blake2b(digest_size=16)
        add_tensors(digest, self.visual.state_dict())
        structure = [f"{name}: {_describe(module)}" for name, module in self.visual.named_modules()]
        if isinstance(self.visual, PreTrainedModel):
            settings = self.visual.config.to_dict().items()
            structure.append(f"config: {sorted((key, str(value)) for key, value in settings if key not in ORIGIN)}")
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
    preprocess: Mapping | None = None,
) -> VisionEncoder:
    """Build the vision encoder from the keys of `model.vision`.

    Args:
        pretrained_name, architecture: names of towers of open_clip, timm and transformers; see docs/model.md.
        config: settings of a tower with random weights: open_clip's vision_cfg, `quick_gelu` (OpenAI's activation) and
            `embed_dim` (width of the summary), or with `model_type`, those of transformers' configuration class.
        tokens: see VisionEncoder.
        transform: one of TRANSFORMS; "clip" is the tower's own.
        preprocess: settings that replace those of the tower's own transform; `size` is the tower's if it is missing.

    Raises:
        UserError: unknown name, setting or tokens, or weights that are neither cached nor available for download.
    """
    if pretrained_name is None and architecture is None and config is None:
        raise UserError(
            "model.vision: with pretrained_name=null give either architecture=NAME (open_clip's, or timm/NAME) or "
            "config={…}"
        )
    random = pretrained_name is None and config is not None
    visual, own = _random_tower(config) if random else _named_tower(pretrained_name, architecture)
    if preprocess is not None:
        require_known(preprocess, PREPROCESS, "model.vision.preprocess: the image transform")
        lists = {key: tuple(value) if isinstance(value, list) else value for key, value in preprocess.items()}
        own = {"size": own["size"], **lists}
    changes = TRANSFORMS[transform]
    kept = {key: value for key, value in own.items() if key != "resize_to" or "resize_mode" not in changes}
    settings, pretrained = {**kept, **changes}, pretrained_name is not None
    try:
        return VisionEncoder(visual, preprocess=settings, pretrained=pretrained, tokens=tokens)
    except (TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError) as error:
        key, size = "model.vision.config" if random else "model.vision", settings["size"]
        raise UserError(
            f"{key}: {type(visual).__name__} cannot read a picture of {size} pixels ({shorten(error)}); choose another "
            "tower, or one of a fixed size of pictures"
        ) from error


def _named_tower(name: str | None, architecture: str | None) -> tuple[nn.Module, Mapping]:
    """Return a tower of open_clip, timm or transformers, and the settings of its transform."""
    path = expand_user(name or "")
    if name is not None and path.is_dir() and not (path / CLIP_CONFIG).is_file() and (path / "config.json").is_file():
        if "architecture" not in read_object(path / "config.json"):  # which timm writes
            return load_transformers(path)
        network = create_timm(f"local-dir:{path.absolute()}", pretrained=True)
    elif name is not None and name.startswith(TIMM):
        network = create_timm(name.removeprefix(TIMM), pretrained=True)
    elif architecture is not None and architecture.startswith(TIMM):
        if name is not None and not path.is_file():
            raise UserError(f"model.vision.pretrained_name: there is no file {path} of weights for {architecture}")
        network = create_timm(architecture.removeprefix(TIMM), pretrained=False, file=path if name else None)
    elif name is not None and architecture is None and is_hub_name(name):
        return load_transformers(name)
    else:
        model = create_model(*architecture_and_tag(name, architecture))
        return model.visual, open_clip.get_model_preprocess_cfg(model)
    return network, timm_preprocess(network)


def _random_tower(config: Mapping) -> tuple[nn.Module, Mapping]:
    if "model_type" in config:
        visual = random_transformers(config)
        return visual, asdict(open_clip.transform.PreprocessCfg(size=getattr(visual.config, "image_size", 224)))
    require_known(
        config,
        [*(f.name for f in fields(open_clip.CLIPVisionCfg)), *NOT_OF_THE_TOWER],
        "model.vision.config: open_clip's vision tower",
    )
    quick_gelu = bool(config.get("quick_gelu", False))
    settings = open_clip.CLIPVisionCfg(**{key: value for key, value in config.items() if key not in NOT_OF_THE_TOWER})
    width = config.get("embed_dim", settings.width)
    try:
        model = open_clip.CLIP(embed_dim=width, vision_cfg=settings, text_cfg=_NO_TEXT, quick_gelu=quick_gelu)
        return model.visual, asdict(open_clip.transform.PreprocessCfg(size=settings.image_size))
    except (TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"model.vision.config: open_clip cannot build this tower ({error})") from error


def patch_grid(vision: VisionEncoder) -> tuple[int, int, int] | None:
    """Return (tokens before the patches, rows, columns), in the aspect ratio of the picture; None without a grid."""
    size = vision.preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    for before in range(vision.num_tokens):
        rows = round(math.sqrt((vision.num_tokens - before) * height / width))
        columns = round(rows * width / height)
        if rows and rows * columns == vision.num_tokens - before:
            return before, rows, columns
    return None
