"""The network being trained: its losses, and its part of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data.schema import Batch, Skipped
from data.tokenizer import save_tokenizer
from model.build import own_state
from model.captioner import Captioner
from model.losses import loss_counts, loss_sums
from model.vad import GatedFusion
from trainer.runs.seen import CAPTIONER, write_seen
from trainer.runtime.sharding import full_tensor


class Task(Protocol):
    """A network to train; its parameters that require a gradient are trained."""

    network: nn.Module
    weights: Mapping[str, float]  # of the losses in the total
    bridge: Mapping[str, Tensor]  # outputs of mapper and resampler in the last batch; empty if there are none

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the denominators of the mean losses, known before the forward pass: scalars, by name of the loss."""

    def sums(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return each loss of the batch as a sum (a scalar); `network` is `self.network` as accelerate prepared it."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of the network that a checkpoint must hold, by name."""

    def gauges(self) -> dict[str, float]:
        """Return values of the network to log with its losses."""

    def write(self, folder: Path) -> None:
        """Write anything else that a checkpoint needs into its folder."""


class AnyValidator(Protocol):
    loader: DataLoader[Batch]

    def measure(
        self, network: nn.Module, accelerator: Accelerator, step: int, skipped: list[Skipped]
    ) -> dict[str, float]:
        """Return metrics by their names in TensorBoard, including validation/loss."""


class CaptionTask:
    """The captioner with all its losses.

    Args:
        tokenizer: stored in every checkpoint.
        emotion_tokens: see model.losses.loss_sums.
        seen: the training images, see trainer.runs.seen; None: unknown.
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
        self.bridge: Mapping[str, Tensor] = {}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return loss_counts(batch)

    def sums(self, network: nn.Module, batch: Batch, **encoded: object) -> dict[str, Tensor]:
        """encoded: `visual`, if the images were encoded before."""
        output = network(batch, **encoded)
        self.bridge = {name: tensor for name, tensor in output.bridge.items() if tensor.requires_grad}
        return loss_sums(output, batch, emotion_tokens=self.emotion_tokens)

    def state(self) -> dict[str, Tensor]:
        return own_state(self.network)

    def gauges(self) -> dict[str, float]:
        """Return tanh of every gate; 0 is closed, as all are at the start."""
        gates = {}
        for i, block in enumerate(self.network.language.blocks):
            if block.xattn_block is not None:
                gates[f"gates/attention_{i:02d}"] = block.xattn_block.alpha_attn
                gates[f"gates/feed_forward_{i:02d}"] = block.xattn_block.alpha_ffw
        if isinstance(self.network.fusion, GatedFusion):
            gates["gates/vad_fusion"] = self.network.fusion.gate
        return {name: float(full_tensor(gate).detach().tanh()) for name, gate in gates.items()}

    def write(self, folder: Path) -> None:
        save_tokenizer(self.tokenizer, folder)
        if self.seen is not None:
            write_seen(folder, {CAPTIONER: self.seen})
