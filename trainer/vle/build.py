"""Build VLE for a stage: network and processor from the section `vle` of the configuration, or from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from common.errors import UserError, shorten
from common.reading import expand_user
from model.vle.heads import (
    VLEForEmotion,
    VLEForITM,
    VLEForPBC,
    VLEForPreTraining,
    VLEForVQA,
    VLEHead,
)
from model.vle.processor import VLEProcessor
from model.vle.towers import from_towers
from model.vle.vcr_heads import VLEForVCRQ2A, VLEForVCRQA2R
from trainer.runs.checkpoint import Checkpoint, find_in_run
from trainer.vle.pretraining import PretrainTask
from trainer.vle.tasks import EmotionTask, MatchTask, RegionTask, VcrTask, VleTask, VqaTask

HEADS: dict[str, type[VLEHead]] = {
    "vle_vqa": VLEForVQA,
    "vle_itm": VLEForITM,
    "vle_pbc": VLEForPBC,
    "vle_vcr": VLEForVCRQ2A,
    "vle_pretrain": VLEForPreTraining,
    "vle_emotion": VLEForEmotion,
}
TASKS: dict[str, Callable[..., VleTask]] = {
    "vle_vqa": VqaTask,
    "vle_itm": MatchTask,
    "vle_pbc": RegionTask,
    "vle_vcr": VcrTask,
    "vle_pretrain": PretrainTask,
    "vle_emotion": EmotionTask,
}
VCR_TYPES = 83  # token types of the published VCR checkpoints: text, picture, 81 objects


def head_of(config: DictConfig) -> type[VLEHead]:
    rationales = config.stage == "vle_vcr" and config.vle.vcr == "qa2r"
    return VLEForVCRQA2R if rationales else HEADS[config.stage]


def build_vle(
    config: DictConfig, *, labels: Sequence[str] | None = None, objects: Sequence[str] = ()
) -> tuple[VLEHead, VLEProcessor]:
    """Return the network to train, and its processor.

    Args:
        labels: answers or emotions.
        objects: classes of hidden objects (stage=vle_pretrain).

    Raises:
        UserError: see VLEPreTrainedModel.from_pretrained and from_towers; keys that contradict each other.
    """
    settings, head = config.vle, head_of(config)
    changes: dict[str, Any] = {"id2label": [*labels]} if labels is not None else {}
    if config.stage == "vle_vcr":
        changes["num_token_types"] = VCR_TYPES
    if config.stage == "vle_pretrain":
        changes["object_names"] = [*objects]
    if settings.pretrained_name is not None:
        folder = pretrained_folder(settings.pretrained_name, Path(config.trainer.exp_dir))
        network = head.from_pretrained(folder, image_size=settings.image_size, **changes)
        processor = VLEProcessor.from_pretrained(folder)
    else:
        network, processor = _from_parts(config, head, changes)
    return network, _resized(processor, network.config.vision_config.image_size)


def _resized(processor: VLEProcessor, side: int) -> VLEProcessor:
    """Return the processor for square pictures of another size, in pixels."""
    old = processor.image_processor
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return VLEProcessor(type(old).from_dict({**old.to_dict(), **sizes}), processor.tokenizer, processor.alpha)


def _from_parts(config: DictConfig, head: type[VLEHead], changes: dict[str, Any]) -> tuple[VLEHead, VLEProcessor]:
    settings = config.vle
    if settings.tokenizer is None:
        raise UserError(
            f"stage={config.stage} needs vle.pretrained_name=FOLDER (hfl/vle-base, or a run of another VLE stage), or "
            "vle.tokenizer=FOLDER with spm.model and preprocessor_config.json for a network of its own"
        )
    processor = VLEProcessor.from_pretrained(settings.tokenizer)
    sizes = OmegaConf.to_container(settings.config) if settings.config is not None else {}
    if settings.text is None:
        sizes["text_config"] = {"vocab_size": len(processor.tokenizer), **sizes.get("text_config", {})}
    try:
        encoder = from_towers(
            settings.vision,
            settings.text,
            architecture=config.model.vision.architecture,
            last_block=settings.last_block,
            image_size=settings.image_size,
            **{**sizes, **changes},
        )
        network = head(encoder.config)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"vle.config: this network cannot be built ({shorten(error)})") from error
    network.vle.load_state_dict(encoder.state_dict())
    return network, processor


def pretrained_folder(name: str, exp_dir: Path) -> str | Path:
    """Return the best checkpoint of a run by folder or name; any other name as it is, for the hub."""
    for path in (expand_user(name), exp_dir / name):
        if (path / "checkpoints").is_dir() and (found := find_in_run(path, prefer="best")):
            return found.folder
    return name


def load_vle(checkpoint: Checkpoint) -> tuple[VLEHead, VLEProcessor]:
    """Return network and processor of a checkpoint, for test and predict."""
    network = head_of(checkpoint.config).from_pretrained(checkpoint.folder)
    return network.requires_grad_(False), VLEProcessor.from_pretrained(checkpoint.folder)


def parameter_groups(network: VLEHead, config: DictConfig) -> list[dict[str, Any]]:
    """Return the parameters by learning rate and weight decay, as published for VQA.

    The head learns with vle.head_lr times the learning rate, the fusion encoder with vle.fusion_lr times. Biases and
    layer norms do not decay, except the norm inside a head.
    """
    settings, rates = config.model.optimizer, (1.0, config.vle.fusion_lr, config.vle.head_lr)
    still = ("bias", "LayerNorm.weight", "norm.weight", "norm1.weight", "norm2.weight")
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {
        (rate, decays): [] for rate in dict.fromkeys(rates) for decays in (True, False)
    }
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            rate = rates[0] if name.startswith("vle.") else rates[2]
            rate = rates[1] if "cross_modal" in name else rate
            groups[rate, not any(part in name for part in still)].append(parameter)
    return [
        {"params": found, "lr": settings.lr * rate, "weight_decay": settings.weight_decay * decays}
        for (rate, decays), found in groups.items()
        if found
    ]
