"""Build a Captioner from the configuration; the modules themselves take plain arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from common.errors import UserError
from model.captioner import Captioner, is_trained
from model.contrastive import ContrastiveHead
from model.language import LanguageModel
from model.lora import add_lora, lora_weights
from model.mapper import Mapper
from model.resampler import Resampler
from model.sevlm import SevlmCaptioner
from model.vad import ConcatFusion, GatedFusion, VadEncoder, VadHead
from model.vision import build_vision
from model.weights.causal_lm import build_causal_lm
from model.weights.gpt2 import build_gpt2
from model.weights.nlxgpt import is_nlxgpt, nlxgpt_error, nlxgpt_settings, nlxgpt_state


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Tokens that SEVLM adds to GPT-2's: padding, and the segments of emotion and explanation."""

    pad: int
    segments: tuple[int, int]


def build_captioner(
    config: Mapping, *, vocab_size: int, eos_id: int, special: SpecialTokens | None = None, length: int = 30
) -> Captioner:
    """Return the network that the section `model` describes, its frozen parts without gradients.

    Args:
        config: the section as plain mappings, `auto` resolved.
        vocab_size: tokens of the tokenizer.
        special, length: for architecture=sevlm, whose texts are padded to `length`.

    Raises:
        UserError: incompatible settings, unknown backbones, unavailable weights.
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
            raise nlxgpt_error(name)
        lm = build_gpt2(pretrained_name=None, config=nlxgpt_settings(name), vocab_size=vocab_size, eos_id=eos_id)
        language = LanguageModel(lm, pretrained=True, xattn=None, dim_visual=dim_visual, inside=True)
        language.load_state_dict(nlxgpt_state(name, vocab_size=vocab_size), strict=False)  # its output layer is tied
        return language
    lm = build_causal_lm(
        pretrained_name=name,
        config=text["config"],
        vocab_size=vocab_size,
        eos_id=eos_id,
        random_rows=sevlm,
        new_vocabulary=bool(text["new_vocabulary"]),
    )
    if sevlm and not isinstance(lm, GPT2LMHeadModel):
        raise UserError(f"model.architecture=sevlm has cross-attention inside GPT-2, not inside {type(lm).__name__}")
    if text["lora"]["r"]:
        add_lora(lm, text["lora"])
    xattn = text["xattn"] if config["enable_resampler_xattn"] and not sevlm else None
    return LanguageModel(lm, pretrained=name is not None, xattn=xattn, dim_visual=dim_visual, inside=sevlm)


def _bridge(config: Mapping, dim_visual: int, dim: int) -> dict[str, nn.Module | None]:
    """Build mapper and resampler; None if disabled."""
    if not config["enable_mapper"] and dim_visual != dim:
        raise UserError(
            "model.enable_mapper=false puts the vision encoder's mean token in front of the text as it is, so encoder "
            f"and language model must have the same width, but they have {dim_visual} and {dim}"
        )
    mapper, resampler = (_without(config[part], "trainable") for part in ("mapper", "resampler"))
    return {
        "mapper": Mapper(dim_visual, dim, **mapper) if config["enable_mapper"] else None,
        "resampler": Resampler(dim_visual, **resampler) if config["enable_resampler_xattn"] else None,
    }


def _emotional_parts(config: Mapping, dim_visual: int, dim: int) -> dict[str, nn.Module | None]:
    """Build the parts for VAD and the contrastive head that are enabled."""
    vad, contrastive = config["vad"], config["contrastive"]
    parts: dict[str, nn.Module | None] = {}
    if vad["enabled"] and vad["fusion"] != "off":
        gated = vad["fusion"] == "gated"
        parts["fusion"] = GatedFusion(dim, hidden_dim=vad["fusion_dim"]) if gated else ConcatFusion(dim)
        if vad["encoder"] != "none":
            parts["vad_encoder"] = VadEncoder(layers=vad["encoder_layers"], causal=vad["encoder"] == "causal")
    if vad["enabled"]:
        parts["vad_head"] = VadHead(dim)
        parts["vad_sentence_head"] = VadHead(dim) if vad["sentence"] else None
    if contrastive["enabled"]:
        parts["contrastive"] = ContrastiveHead(dim, dim_visual, **_without(contrastive, "enabled", "negatives"))
    return parts


def _without(section: Mapping, *keys: str) -> dict:
    return {key: value for key, value in section.items() if key not in keys}


def _freeze(captioner: Captioner, config: Mapping) -> None:
    """Freeze everything, then enable gradients part by part."""
    captioner.requires_grad_(False)
    text = config["text"]
    parts: list[tuple[nn.Module | None, bool]] = [
        (captioner.vision, config["vision"]["trainable"]),
        (captioner.mapper, config["mapper"]["trainable"]),
        (captioner.resampler, config["resampler"]["trainable"]),
        (captioner.language.lm, text["trainable"]),
        (captioner.language.words, text["trainable"] or text["new_vocabulary"]),  # may be tied to the head
        (captioner.language.head, text["trainable"] or text["trainable_lm_head"] or text["new_vocabulary"]),
        *((layer, True) for layer in lora_weights(captioner.language)),
        *((part, True) for block in captioner.language.blocks for part in block.conditioning),
        *((part, True) for part in (captioner.vad_encoder, captioner.fusion, captioner.contrastive)),
        *((part, True) for part in (captioner.vad_head, captioner.vad_sentence_head, captioner.segments)),
    ]
    for part, trained in parts:
        if part is not None:
            part.requires_grad_(trained)
    if captioner.vad_encoder is not None:
        captioner.vad_encoder.decoder.requires_grad_(False)  # never used
    if config["vision"]["trainable"]:
        for name in captioner.vision.unused:
            captioner.vision.visual.get_parameter(name).requires_grad_(False)


def own_state(captioner: Captioner) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint: trained weights, and frozen ones that cannot be downloaded again."""
    trained = {name for name, p in captioner.named_parameters() if p.requires_grad}
    if is_trained(captioner.vision):
        trained |= {f"vision.{name}" for name, _ in captioner.vision.named_buffers()}  # running means of a ResNet
    backbones = {"vision.": captioner.vision, "language.lm.": captioner.language}
    random_parts = tuple(prefix for prefix, part in backbones.items() if not part.pretrained)
    names: dict[int, str] = {}  # by tensor: the output layer may be the word embedding
    state = captioner.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if name in trained or name.startswith(random_parts):
            names.setdefault(id(tensor), name)
    return {name: state[name].detach() for name in names.values()}


@dataclass(frozen=True, slots=True)
class ParameterCount:
    part: str
    trained: int
    frozen: int


def count_parameters(captioner: Captioner) -> list[ParameterCount]:
    """Count the weights of each part; shared ones once, and cross-attention as a part of its own."""
    conditioning = (part for block in captioner.language.blocks for part in block.conditioning)
    xattn = {id(p) for part in conditioning for p in part.parameters()}
    rows: dict[str, list[int]] = {}
    for name, parameter in captioner.named_parameters():
        part = "cross-attention" if id(parameter) in xattn else name.split(".")[0]
        counts = rows.setdefault(part, [0, 0])
        counts[0 if parameter.requires_grad else 1] += parameter.numel()
    return [ParameterCount(part, trained, frozen) for part, (trained, frozen) in rows.items()]
