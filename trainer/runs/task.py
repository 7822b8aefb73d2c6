"""The network being trained: its losses, and its part of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data.schema import Batch, Skipped
from model.build import own_state
from model.captioner import Captioner
from model.losses import loss_counts, loss_sums
from model.vad import GatedFusion
from trainer.runs.seen import CAPTIONER, write_seen
from trainer.runtime.sharding import full


class Task(Protocol):
    """A network to train.

    network: whole, as it was built; of its parameters those that require a gradient are trained.
    weights: of the losses in the total.
    """

    network: nn.Module
    weights: Mapping[str, float]

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Denominators of the losses' means, known before the forward pass: scalars, by the name of the loss."""

    def sums(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Each loss of the batch as a sum (a scalar); `network` is `self.network` as accelerate prepared it."""

    def state(self) -> dict[str, Tensor]:
        """The tensors of the network that a checkpoint must hold, by name."""

    def gauges(self) -> dict[str, float]:
        """Values of the network to log beside its losses."""

    def write(self, folder: Path) -> None:
        """Write anything else that a checkpoint needs into its folder."""


class Measuring(Protocol):
    """Validation between epochs."""

    loader: DataLoader[Batch]

    def measure(
        self, network: nn.Module, accelerator: Accelerator, step: int, skipped: list[Skipped]
    ) -> dict[str, float]:
        """Return metrics by their names in TensorBoard, among them validation/loss."""


class CaptionTask:
    """The captioner with all its losses.

    Args:
        tokenizer: goes into every checkpoint.
        emotion_tokens: see model.losses.loss_sums.
        seen: the images that it is trained on, see trainer.runs.seen; None: unknown.
    """

    def __init__(
        self,
        captioner: Captioner,
        *,
        weights: Mapping[str, float],
        tokenizer,
        emotion_tokens: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> None:
        self.network, self.weights = captioner, weights
        self.tokenizer, self.emotion_tokens, self.seen = tokenizer, emotion_tokens, seen

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return loss_counts(batch)

    def sums(self, network: nn.Module, batch: Batch, **looked: object) -> dict[str, Tensor]:
        """looked: `visual`, where the images were encoded before."""
        return loss_sums(network(batch, **looked), batch, emotion_tokens=self.emotion_tokens)

    def state(self) -> dict[str, Tensor]:
        return own_state(self.network)

    def gauges(self) -> dict[str, float]:
        return gates(self.network)

    def write(self, folder: Path) -> None:
        self.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        if self.seen is not None:
            write_seen(folder, {CAPTIONER: self.seen})


def gates(captioner: Captioner) -> dict[str, float]:
    """tanh of every gate: 0 is shut, as all are at the start."""
    values = {}
    for i, block in enumerate(captioner.language.blocks):
        if block.xattn_block is not None:
            values[f"gates/attention_{i:02d}"] = float(full(block.xattn_block.alpha_attn).detach().tanh())
            values[f"gates/feed_forward_{i:02d}"] = float(full(block.xattn_block.alpha_ffw).detach().tanh())
    if isinstance(captioner.fusion, GatedFusion):
        values["gates/vad_fusion"] = float(full(captioner.fusion.gate).detach().tanh())
    return values
