"""The loss of stage=vlm."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ProcessorMixin

from common.config.rules import VLM
from data.talks import TalkBatch
from model.vlm.chat import IGNORED
from model.vlm.loading import trained_state
from trainer.runs.seen import write_seen

LOSS = "answer"


class VlmTask:
    """Cross-entropy of the answers' tokens; see trainer.runs.task.Task.

    Args:
        processor: stored in every checkpoint.
        images: see trainer.runs.seen.
    """

    def __init__(self, network: nn.Module, processor: ProcessorMixin, images: Tensor) -> None:
        self.network, self.processor, self.images = network, processor, images
        self.weights, self.bridge = {LOSS: 1.0}, {}

    def counts(self, batch: TalkBatch) -> dict[str, Tensor]:
        return {LOSS: (batch.labels != IGNORED).sum()}

    def sums(self, network: nn.Module, batch: TalkBatch) -> dict[str, Tensor]:
        known = batch.labels != IGNORED
        first = int(known.any(dim=0).int().argmax())  # the answers are last: only their logits are computed
        kept = batch.labels.shape[1] - first + 1
        logits = network(**batch.inputs, use_cache=False, logits_to_keep=kept).logits[:, :-1]
        losses = F.cross_entropy(
            logits.float().flatten(0, 1), batch.labels[:, first:].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return {LOSS: losses}

    def state(self) -> dict[str, Tensor]:
        return trained_state(self.network)

    def gauges(self) -> dict[str, float]:
        return {}

    def write(self, folder: Path) -> None:
        self.processor.save_pretrained(folder)
        write_seen(folder, {VLM: self.images})
