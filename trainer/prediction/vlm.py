"""A vision-language model of a run of stage=vlm: load it, read pictures, score the emotions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data.loaders import EpochSampler, make_loader
from data.prepare.instructions.conversations import CATEGORICAL, PROMPTS, REASONING, asking, listed
from data.samples import Samples
from data.talks import TalkBatch, TalkCollate, TalkDataset
from model.vlm.answers import Answerer
from model.vlm.chat import Chat
from model.vlm.loading import load_model, load_processor, trained_state, with_lora
from trainer.runs.checkpoint import Checkpoint, load_network


def load_vlm(config: DictConfig, checkpoint: Checkpoint, device: torch.device) -> Answerer:
    """Return the model of a run on the device; with vlm.tuned=false as it was before tuning.

    Raises:
        UserError: see model.vlm.loading; weights that do not fit the model.
    """
    processor = load_processor(str(checkpoint.folder), key="pretrained_name")
    base = load_model(config.vlm.pretrained_name, quantized=config.vlm.quantized, device=device)
    network: nn.Module = with_lora(base, OmegaConf.to_container(config.vlm.lora))
    load_network(network, trained_state(network), checkpoint.folder / "model.safetensors")
    if not config.vlm.tuned:
        network = untuned(network)
    network.requires_grad_(False).eval()
    return Answerer(network if config.vlm.quantized else network.to(device), Chat(processor, str(checkpoint.folder)))


def untuned(network: PeftModel) -> nn.Module:
    """Return the model without what was trained."""
    network.base_model.disable_adapter_layers()
    return network


def picture_loader(
    config: DictConfig, samples: Samples, *, processes: int = 1
) -> tuple[DataLoader[TalkBatch], EpochSampler]:
    """Return a loader of the pictures, in order, without conversations."""
    files = config.dataset.test_ds
    dataset = TalkDataset(samples, seed=config.seed, max_side=config.vlm.max_side, max_pixels=config.dataset.max_pixels)
    return make_loader(
        dataset,
        batch_size=files.batch_size,
        num_workers=files.num_workers,
        shuffle=False,
        processes=processes,
        collate_fn=TalkCollate(_no_talks, len(samples.labels)),
    )


def _no_talks(*_: Any) -> tuple[dict, Tensor]:
    raise AssertionError("pictures without conversations")


class EmotionScorer:
    """Scores the emotions and asks for reasons, by questions in a fixed wording."""

    def __init__(self, answerer: Answerer, labels: Sequence[str]) -> None:
        self.answerer, self.labels = answerer, tuple(labels)
        self.question = asking(PROMPTS[CATEGORICAL][0].format(labels=listed(self.labels)))

    def why(self, label: str) -> list[dict[str, Any]]:
        """Return the question for the reason of an emotion."""
        return asking(PROMPTS[REASONING][0].format(label=label))

    def __call__(self, batch: TalkBatch) -> tuple[Tensor, Tensor]:
        """Return log-probabilities (B, C) before calibration, and the pictures' tokens (B, 1, 2, D) for the heads.

        The probability of a label is that of the model's answering it, with the end of its turn.
        """
        scored = [self.answerer.score(picture, self.question, self.labels) for picture in batch.pictures]
        log_probs = torch.stack([some.log_probs for some in scored]).log_softmax(dim=1)
        return log_probs, head_tokens(torch.stack([some.picture for some in scored]))


def head_tokens(pictures: Tensor) -> Tensor:
    """Mean tokens (B, D) → (B, 1, 2, D): the one of the whole picture, and the same as its only part."""
    return pictures[:, None, None].expand(-1, 1, 2, -1)
