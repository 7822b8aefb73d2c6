"""Configuration → Captioner. Here the configuration stops: the modules take plain arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from common.errors import UserError
from model.captioner import Captioner, is_trained
from model.contrastive import ContrastiveHead
from model.language import LanguageModel
from model.mapper import Mapper
from model.resampler import Resampler
from model.sevlm import SevlmCaptioner
from model.vad import ConcatFusion, GatedFusion, VadEncoder, VadHead
from model.vision import build_vision
from model.weights.gpt2 import build_gpt2
from model.weights.nlxgpt import is_nlxgpt, nlxgpt_settings, nlxgpt_state, refused


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Tokens beyond GPT-2's own that SEVLM's texts need: padding, and the segments of emotion and explanation."""

    pad: int
    segments: tuple[int, int]


def build_captioner(
    config: Mapping, *, vocab_size: int, eos_id: int, special: SpecialTokens | None = None, length: int = 30
) -> Captioner:
    """The network that the section `model` describes, with `auto` already resolved, frozen where it says so.

    Args:
        config: the section as plain mappings.
        vocab_size: tokens of the tokenizer.
        special, length: for architecture=sevlm, whose texts are padded to `length`.

    Raises:
        UserError: settings that do not go together, unknown backbones, weights that cannot be had.
    """
    vision = build_vision(**_without(config["vision"], "trainable"))
    sevlm = config["architecture"] == "sevlm"
    language = _build_language(config, vision.dim, vocab_size=vocab_size, eos_id=eos_id, sevlm=sevlm)
    parts = {"vision": vision, "language": language, **_emotional_parts(config, vision.dim, language.dim)}
    if sevlm:
        captioner = SevlmCaptioner(**parts, pad_id=special.pad, segment_ids=special.segments, length=length)
    else:
        captioner = Captioner(
            **parts,
            **_bridge(config, vision.dim, language.dim),
            read_negatives=config["contrastive"]["negatives"] == "read",
            segments=bool(config["text"]["segments"]),
        )
    _freeze(captioner, config)
    return captioner


def _build_language(config: Mapping, dim_visual: int, *, vocab_size: int, eos_id: int, sevlm: bool) -> LanguageModel:
    text = config["text"]
    name = text["pretrained_name"]
    if name is not None and is_nlxgpt(name):
        if not sevlm:
            raise refused(name)
        lm = build_gpt2(pretrained_name=None, config=nlxgpt_settings(name), vocab_size=vocab_size, eos_id=eos_id)
        language = LanguageModel(lm, pretrained=True, xattn=None, dim_visual=dim_visual, inside=True)
        language.load_state_dict(nlxgpt_state(name, vocab_size=vocab_size), strict=False)  # its output layer is tied
        return language
    lm = build_gpt2(
        pretrained_name=text["pretrained_name"],
        config=text["config"],
        vocab_size=vocab_size,
        eos_id=eos_id,
        random_rows=sevlm,
    )
    bridged = config["enable_resampler_xattn"] and not sevlm
    return LanguageModel(
        lm,
        pretrained=text["pretrained_name"] is not None,
        xattn=text["xattn"] if bridged else None,
        dim_visual=dim_visual,
        inside=sevlm,
    )


def _bridge(config: Mapping, dim_visual: int, dim: int) -> dict[str, nn.Module | None]:
    """Mapper and resampler, as far as they are enabled."""
    if not config["enable_mapper"] and dim_visual != dim:
        raise UserError(
            f"model.enable_mapper=false puts the vision encoder's mean token itself in front of the text, so both must "
            f"have one width, but they have {dim_visual} and {dim}"
        )
    mapper, resampler = (_without(config[part], "trainable") for part in ("mapper", "resampler"))
    return {
        "mapper": Mapper(dim_visual, dim, **mapper) if config["enable_mapper"] else None,
        "resampler": Resampler(dim_visual, **resampler) if config["enable_resampler_xattn"] else None,
    }


def _emotional_parts(config: Mapping, dim_visual: int, dim: int) -> dict[str, nn.Module | None]:
    """What VAD and the contrastive head consist of, as far as they are enabled."""
    vad, contrastive = config["vad"], config["contrastive"]
    fused = vad["enabled"] and vad["fusion"] != "off"
    fusion = None
    if fused:
        fusion = GatedFusion(dim, hidden_dim=vad["fusion_dim"]) if vad["fusion"] == "gated" else ConcatFusion(dim)
    return {
        "vad_encoder": VadEncoder(layers=vad["encoder_layers"], causal=vad["encoder"] == "causal")
        if fused and vad["encoder"] != "none"
        else None,
        "fusion": fusion,
        "vad_head": VadHead(dim) if vad["enabled"] else None,
        "vad_sentence_head": VadHead(dim) if vad["enabled"] and vad["sentence"] else None,
        "contrastive": ContrastiveHead(dim, dim_visual, **_without(contrastive, "enabled", "negatives"))
        if contrastive["enabled"]
        else None,
    }


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
        *((part, True) for block in captioner.language.blocks for part in block.conditioning),
        (captioner.vad_encoder, True),
        (captioner.fusion, True),
        (captioner.vad_head, True),
        (captioner.vad_sentence_head, True),
        (captioner.contrastive, True),
        (captioner.segments, True),
    ]
    for part, trained in parts:
        if part is not None:
            part.requires_grad_(trained)
    if captioner.vad_encoder is not None:
        captioner.vad_encoder.decoder.requires_grad_(False)  # its output is not used, there as here
    for name, parameter in captioner.vision.visual.named_parameters():
        if name.startswith(captioner.vision.unused):
            parameter.requires_grad_(False)


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
    for name, tensor in captioner.state_dict(keep_vars=True).items():
        if name in trained or name.startswith(tuple(random_parts)):
            if id(tensor) in seen:
                continue  # tied: GPT-2's output layer is its word embedding
            seen.add(id(tensor))
            state[name] = tensor.detach()
    return state


@dataclass(frozen=True, slots=True)
class ParameterCount:
    part: str
    trained: int
    frozen: int


def count_parameters(captioner: Captioner) -> list[ParameterCount]:
    """Weights by part; each counted once, cross-attention apart from GPT-2."""
    conditioning = (part for block in captioner.language.blocks for part in block.conditioning)
    xattn = {id(p) for part in conditioning for p in part.parameters()}
    rows: dict[str, list[int]] = {}
    for name, parameter in captioner.named_parameters():
        part = "cross-attention" if id(parameter) in xattn else name.split(".")[0]
        counts = rows.setdefault(part, [0, 0])
        counts[0 if parameter.requires_grad else 1] += parameter.numel()
    return [ParameterCount(part, trained, frozen) for part, (trained, frozen) in rows.items()]
