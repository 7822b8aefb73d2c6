"""Configuration → Captioner. Here the configuration stops: the modules take plain arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from errors import UserError
from model.captioner import Captioner, is_trained
from model.contrastive import ContrastiveHead
from model.language import LanguageModel, build_gpt2
from model.mapper import Mapper
from model.resampler import Resampler
from model.vad import VadFusion, VadHead
from model.vision import build_vision


def build_captioner(config: Mapping, *, vocab_size: int, eos_id: int) -> Captioner:
    """The network that the section `model` describes, with `auto` already resolved, frozen where it says so.

    Args:
        config: the section as plain mappings.
        vocab_size: tokens of the tokenizer.

    Raises:
        UserError: settings that do not go together, unknown backbones, weights that cannot be had.
    """
    text, vision_config = config["text"], config["vision"]
    vision = build_vision(**_without(vision_config, "trainable"))
    lm = build_gpt2(
        pretrained_name=text["pretrained_name"], config=text["config"], vocab_size=vocab_size, eos_id=eos_id
    )
    bridged = config["enable_resampler_xattn"]
    language = LanguageModel(
        lm,
        pretrained=text["pretrained_name"] is not None,
        xattn=_without(text["xattn"], "num_latents") if bridged else None,
        dim_visual=vision.dim,
    )
    if not config["enable_mapper"] and vision.dim != language.dim:
        raise UserError(
            f"model.enable_mapper=false puts the vision encoder's mean token itself in front of the text, so both must "
            f"have one width, but they have {vision.dim} and {language.dim}"
        )
    vad, contrastive = config["vad"], config["contrastive"]
    captioner = Captioner(
        vision=vision,
        language=language,
        mapper=Mapper(vision.dim, language.dim, **_without(config["mapper"], "trainable"))
        if config["enable_mapper"]
        else None,
        resampler=Resampler(vision.dim, **_without(config["resampler"], "trainable")) if bridged else None,
        fusion=VadFusion(language.dim, hidden_dim=vad["fusion_dim"]) if vad["enabled"] else None,
        vad_head=VadHead(language.dim) if vad["enabled"] else None,
        contrastive=ContrastiveHead(
            language.dim, vision.dim, hidden_dim=contrastive["hidden_dim"], depth=contrastive["depth"]
        )
        if contrastive["enabled"]
        else None,
        segments=bool(text["segments"]),
    )
    _freeze(captioner, config)
    return captioner


def _without(section: Mapping, *keys: str) -> dict:
    return {key: value for key, value in section.items() if key not in keys}


def _freeze(captioner: Captioner, config: Mapping) -> None:
    """Freeze everything, then open by name what trains."""
    captioner.requires_grad_(False)
    text = config["text"]
    parts: list[tuple[nn.Module | None, bool]] = [
        (captioner.vision, config["vision"]["trainable"]),
        (captioner.mapper, config["mapper"]["trainable"]),
        (captioner.resampler, config["resampler"]["trainable"]),
        (captioner.language.lm, text["trainable"]),
        (captioner.language.lm.lm_head, text["trainable"] or text["trainable_lm_head"]),
        *((gated, True) for gated in captioner.language.cross_attention),
        (captioner.fusion, True),
        (captioner.vad_head, True),
        (captioner.contrastive, True),
        (captioner.segments, True),
    ]
    for part, trained in parts:
        if part is not None:
            part.requires_grad_(trained)
    for name, parameter in captioner.vision.visual.named_parameters():
        if name.startswith(("ln_post.", "attnpool.")):
            parameter.requires_grad_(False)  # they make the pooled output, which is not used


def own_state(captioner: Captioner) -> dict[str, Tensor]:
    """What a checkpoint must hold: the trained weights, and those of frozen parts that no download brings back."""
    trained = {name for name, p in captioner.named_parameters() if p.requires_grad}
    if is_trained(captioner.vision):
        trained |= {f"vision.{name}" for name, _ in captioner.vision.named_buffers()}  # running means of a ResNet
    random_parts = [
        prefix
        for prefix, part in (("vision.", captioner.vision), ("language.lm.", captioner.language))
        if not part.pretrained
    ]
    seen: set[int] = set()
    state = {}
    for name, tensor in captioner.state_dict().items():
        if name in trained or name.startswith(tuple(random_parts)):
            if tensor.data_ptr() in seen and tensor.numel():
                continue  # tied: GPT-2's output layer is its word embedding
            seen.add(tensor.data_ptr())
            state[name] = tensor
    return state


@dataclass(frozen=True, slots=True)
class ParameterCount:
    part: str
    trained: int
    frozen: int


def count_parameters(captioner: Captioner) -> list[ParameterCount]:
    """Weights by part; each counted once, cross-attention apart from GPT-2."""
    xattn = {id(p) for gated in captioner.language.cross_attention for p in gated.parameters()}
    rows: dict[str, list[int]] = {}
    for name, parameter in captioner.named_parameters():
        part = "cross-attention" if id(parameter) in xattn else name.split(".")[0]
        counts = rows.setdefault(part, [0, 0])
        counts[0 if parameter.requires_grad else 1] += parameter.numel()
    return [ParameterCount(part, trained, frozen) for part, (trained, frozen) in rows.items()]
