"""A run as a source of the gate: what its network says about each picture."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import Tensor

from common.files import sha256
from data.loaders import drop_empty_batches
from data.samples import Samples
from data.schema import Movable
from trainer.runs.checkpoint import Checkpoint
from trainer.runs.logits import complete_logits, digests_of
from trainer.runs.seen import read_seen


@dataclass
class RunSource:
    """See trainer.prediction.other_sources.Source."""

    name: str
    checkpoint: Checkpoint
    answers: bool = False
    is_file: bool = False

    @property
    def path(self) -> Path:
        return self.checkpoint.run

    def seen(self) -> dict[str, Tensor]:
        found = read_seen(self.checkpoint.folder)
        return {self.name if len(found) == 1 else f"{name} of {self.name}": seen for name, seen in found.items()}

    @functools.cached_property
    def digest(self) -> str:
        return sha256(self.checkpoint.folder / "model.safetensors")

    def log_probs(
        self, samples: Samples, config: DictConfig, accelerator: Accelerator, folder: Path
    ) -> dict[str, Tensor]:
        """See Source. They are kept in FOLDER/logits-NAME.jsonl; the processes of a machine share the file."""
        network = functools.cache(lambda: self.load(config, accelerator))  # not loaded if nothing is missing

        @torch.no_grad()
        def compute(batch: Movable) -> dict[str, Tensor]:
            with accelerator.autocast():
                return {self.name: network()(batch.to(accelerator.device))}

        def loader(missing: Samples) -> Iterable[Movable]:
            return drop_empty_batches(self.loader(missing, config), [], strict=False)  # the host reports the others

        show = accelerator.is_local_main_process
        with accelerator.local_main_process_first():
            logits = complete_logits(
                folder / f"logits-{self.name}.jsonl",
                samples,
                digests_of(samples, config.dataset.feature_cache, show=show),
                compute,
                of=self.digest,
                loader=loader,
                what=f"emotions of {self.name}",
            )
        return {id: found[self.name].log_softmax(dim=-1) for id, found in logits.items()}

    def load(self, config: DictConfig, accelerator: Accelerator) -> Callable[[Any], Tensor]:
        """Return the function from a batch to its logits (B, C)."""
        raise NotImplementedError

    def loader(self, samples: Samples, config: DictConfig) -> Iterable[Movable]:
        raise NotImplementedError
