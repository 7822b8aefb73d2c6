"""Make a network independent of the files of its pretrained parts: all weights become its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from model.captioner import Captioner
from model.lora import merge_lora
from model.vision import VisionEncoder
from model.weights.causal_lm import language_settings
from model.weights.clip import tower_settings
from model.weights.timm_tower import timm_architecture
from model.weights.transformers_tower import settings_of


def make_standalone(captioner: Captioner, section: Mapping[str, Any]) -> dict[str, Any]:
    """Merge low-rank updates in place and make `own_state` return every weight.

    Args:
        section: the section `model` of the captioner's configuration, as plain mappings.

    Returns:
        The section with which build_captioner builds a network of these shapes without pretrained weights.
    """
    merge_lora(captioner.language)
    vision, text = dict(section["vision"]), dict(section["text"])
    text["lora"] = {**text["lora"], "r": None}
    if text["pretrained_name"] is not None:
        text |= {"pretrained_name": None, "config": language_settings(captioner.language.lm)}
    if vision["pretrained_name"] is not None:
        preprocess = {key: _plain(value) for key, value in captioner.vision.preprocess.items()}
        vision |= {**_tower(captioner.vision, vision), "pretrained_name": None, "preprocess": preprocess}
    captioner.vision.pretrained = captioner.language.pretrained = False
    return {**section, "vision": vision, "text": text}


def _tower(vision: VisionEncoder, section: Mapping[str, Any]) -> dict[str, Any]:
    """Return `architecture` and `config` of a tower with random weights."""
    visual = vision.visual
    if isinstance(visual, PreTrainedModel):
        return {"architecture": None, "config": settings_of(visual.config)}
    if vision.clip:
        return {"architecture": None, "config": tower_settings(section["pretrained_name"], section["architecture"])}
    return {"architecture": timm_architecture(visual), "config": None}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
