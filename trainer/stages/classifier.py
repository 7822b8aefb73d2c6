"""Training of emotion classifiers, which stage=teacher and stage=student share: losses, validation, data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.errors import UserError
from data.loaders import drop_empty_batches
from data.samples import Samples
from data.schema import Batch, Skipped
from model.expert.student import StudentHead, label_losses, teacher_losses
from trainer.loop.figures import confusion_figure
from trainer.loop.optim import build_optimizer
from trainer.loop.tracker import Tracker
from trainer.loop.validation import emotion_metrics, gather_rows
from trainer.metrics.emotions import emotion_scores
from trainer.runs.logits import TEACHER
from trainer.runs.seen import write_seen
from trainer.setup.loading import load_samples
from trainer.stages.run_stage import SPLITS

ANNOTATORS = "annotators"  # name of a loss; the other is TEACHER


class ClassifierTask:
    """A classifier of images that learns from the annotators; see trainer.runs.task.Task and, for `seen`, runs.seen."""

    def __init__(self, network: nn.Module, *, seen: Tensor, weights: Mapping[str, float] | None = None) -> None:
        self.network, self.seen = network, seen
        self.weights, self.bridge = weights or {ANNOTATORS: 1.0}, {}

    def logits(self, network: nn.Module, batch: Batch) -> Tensor:
        pictures, training = batch.frames[:, 0], network.training
        network.train(training and len(pictures) > 1)  # batch statistics need two: a lone picture gets the running ones
        logits = network(pictures)
        network.train(training)
        return logits

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {ANNOTATORS: (batch.histogram.sum(dim=1) > 0).sum()}

    def sums(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {ANNOTATORS: label_losses(self.logits(network, batch), batch.histogram).sum()}

    def state(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def gauges(self) -> dict[str, float]:
        return {}

    def write(self, folder: Path) -> None:
        write_seen(folder, {"images": self.seen})


class StudentTask(ClassifierTask):
    """A head on tokens that also learns from a teacher's logits.

    Args:
        teacher: logits by image id; other images are learned from their annotators alone.
        alpha, temperature: see expert.student of config.yaml.
    """

    def __init__(
        self,
        network: StudentHead,
        *,
        seen: Tensor,
        teacher: Mapping[str, Tensor] | None = None,
        alpha: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(network, seen=seen, weights={ANNOTATORS: 1 - alpha, TEACHER: alpha})
        self.teacher, self.temperature = teacher or {}, temperature

    def logits(self, network: nn.Module, batch: Batch) -> Tensor:
        return network(batch.tokens.float(), batch.frame_mask)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        taught = sum(id in self.teacher for id in batch.ids)
        return {**super().counts(batch), TEACHER: torch.tensor(taught, device=batch.histogram.device)}

    def sums(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = self.logits(network, batch)
        sums = {ANNOTATORS: label_losses(logits, batch.histogram).sum()}
        rows = [row for row, id in enumerate(batch.ids) if id in self.teacher]
        if rows:
            targets = torch.stack([self.teacher[batch.ids[row]] for row in rows]).to(logits.device)
            sums[TEACHER] = teacher_losses(logits[rows], targets, temperature=self.temperature).sum()
        return sums


@dataclass(slots=True)
class ClassifierValidator:
    """Metrics of trainer.loop.validation.emotion_metrics; validation/loss is the uncalibrated log loss."""

    task: ClassifierTask
    loader: DataLoader[Batch]
    labels: tuple[str, ...]
    tracker: Tracker
    strict: bool
    limit_batches: int | None

    @torch.no_grad()
    def measure(
        self, network: nn.Module, accelerator: Accelerator, step: int, skipped: list[Skipped]
    ) -> dict[str, float]:
        network.eval()
        rows = [torch.empty(0, 2 * len(self.labels))]
        loaded = itertools.islice(self.loader, self.limit_batches)
        for batch in drop_empty_batches(loaded, skipped, strict=self.strict):
            batch = batch.to(accelerator.device)
            with accelerator.autocast():
                log_probs = self.task.logits(network, batch).float().log_softmax(dim=-1)
            rows.append(torch.cat([log_probs, batch.histogram], dim=1).cpu())
        log_probs, histograms = gather_rows(torch.cat(rows), accelerator).split(len(self.labels), dim=1)
        metrics = emotion_metrics(log_probs, histograms, labels=self.labels)
        if "validation/emotion_nll" not in metrics:
            raise UserError("no validation image could be read, or none of them has an emotion")
        if accelerator.is_main_process:
            scores = emotion_scores(log_probs.argmax(dim=1).tolist(), histograms.tolist(), labels=self.labels)
            self.tracker.picture("validation/confusion", confusion_figure(scores.confusion, self.labels), step)
        return {**metrics, "validation/loss": metrics["validation/emotion_nll"]}


def labelled_samples(config: DictConfig, skipped: list[Skipped]) -> dict[str, Samples]:
    """Return the samples for training and validation; raise UserError if a split has no emotions."""
    samples = {split: load_samples(config, split, skipped) for split in SPLITS}
    for split, of_split in samples.items():
        if not of_split.has_emotions:
            raise UserError(f"stage={config.stage} needs emotions, and the images of dataset.{split} have none")
    return samples


class ClassifierStage:
    """See trainer.stages.run_stage.Stage, without its `loaders`; `name` is that of the network."""

    def __init__(
        self,
        config: DictConfig,
        task: ClassifierTask,
        *,
        name: str,
        samples: dict[str, Samples],
        skipped: list[Skipped],
        ingredients: dict[str, Any],
    ) -> None:
        self.config, self.task, self.name = config, task, name
        self.samples, self.skipped, self.ingredients = samples, skipped, ingredients

    def describe(self) -> str:
        weights = sum(parameter.numel() for parameter in self.task.network.parameters())
        return f"{self.name}: {weights:,} weights, {len(self.samples['train_ds'].labels)} emotions"

    def prepare(self) -> None:
        pass

    def optimizer(self, *, fused: bool) -> torch.optim.Optimizer:
        return build_optimizer(self.config.model.optimizer, self.task.network.parameters(), fused=fused)

    def validator(self, loader: DataLoader[Batch], accelerator: Accelerator, tracker: Tracker) -> ClassifierValidator:
        labels, strict = self.samples["train_ds"].labels, self.config.dataset.strict
        return ClassifierValidator(self.task, loader, labels, tracker, strict, self.config.trainer.limit_val_batches)
