"""What the stages of classifiers have in common: images with emotions, the optimiser, and what is measured."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from common.errors import UserError
from data.samples import Samples
from data.schema import Batch, Skipped
from trainer.loop.optim import configured_optimizer
from trainer.loop.tracker import Tracker
from trainer.setup.loading import load_samples
from trainer.stages.classifier_task import ClassifierTask, ClassifierValidator
from trainer.stages.run_stage import SPLITS


def labelled_samples(config: DictConfig, skipped: list[Skipped]) -> dict[str, Samples]:
    """To train on and to validate on.

    Raises:
        UserError: see trainer.setup.loading.load_samples; or nobody has named an emotion.
    """
    samples = {split: load_samples(config, split, skipped) for split in SPLITS}
    for split, of_split in samples.items():
        if not of_split.has_emotions:
            raise UserError(f"stage={config.stage} needs emotions, and the images of dataset.{split} have none")
    return samples


class ClassifierStage:
    """See trainer.stages.run_stage.Stage; `loaders` is a stage's own.

    Args:
        name: of the network.
    """

    def __init__(
        self,
        config: DictConfig,
        task: ClassifierTask,
        *,
        name: str,
        samples: dict[str, Samples],
        skipped: list[Skipped],
        made_of: dict[str, Any],
    ) -> None:
        self.config, self.task, self.name = config, task, name
        self.samples, self.skipped, self.made_of = samples, skipped, made_of

    def describe(self) -> str:
        weights = sum(parameter.numel() for parameter in self.task.network.parameters())
        return f"{self.name}: {weights:,} weights, {len(self.samples['train_ds'].labels)} emotions"

    def ready(self) -> None:
        pass

    def optimizer(self, *, fused: bool) -> torch.optim.Optimizer:
        return configured_optimizer(self.config.model.optimizer, self.task.network.parameters(), fused=fused)

    def validator(self, loader: DataLoader[Batch], accelerator: Accelerator, tracker: Tracker) -> ClassifierValidator:
        return ClassifierValidator(
            task=self.task,
            loader=loader,
            labels=self.samples["train_ds"].labels,
            tracker=tracker,
            strict=self.config.dataset.strict,
            limit_batches=self.config.trainer.limit_val_batches,
        )
