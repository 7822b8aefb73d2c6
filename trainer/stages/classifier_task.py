"""Training of emotion classifiers, teacher and head alike: their losses, and what is measured between epochs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.errors import UserError
from data.loaders import usable
from data.schema import Batch, Skipped
from model.expert.student import StudentHead, label_losses, teacher_losses
from trainer.loop.figures import confusion_figure
from trainer.loop.tracker import Tracker
from trainer.loop.validation import emotion_metrics, rows_of_all
from trainer.metrics.emotions import emotion_scores
from trainer.runs.logits import TEACHER
from trainer.runs.seen import write_seen

ANNOTATORS = "annotators"  # a loss, beside TEACHER


class ClassifierTask:
    """See trainer.runs.task.Task; without a teacher."""

    def __init__(self, network: nn.Module, *, seen: Tensor, weights: Mapping[str, float] | None = None) -> None:
        self.network, self.seen = network, seen
        self.weights = weights or {ANNOTATORS: 1.0}

    def logits(self, network: nn.Module, batch: Batch) -> Tensor:
        raise NotImplementedError

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


class TeacherTask(ClassifierTask):
    """A classifier of pictures.

    Args:
        seen: see trainer.runs.seen.
    """

    def logits(self, network: nn.Module, batch: Batch) -> Tensor:
        return network(batch.frames[:, 0])


class StudentTask(ClassifierTask):
    """A head on tokens, which learns from a teacher's logits too.

    Args:
        teacher: logits by picture; pictures that are not among them teach what their annotators said alone.
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
            wanted = torch.stack([self.teacher[batch.ids[row]] for row in rows]).to(logits.device)
            sums[TEACHER] = teacher_losses(logits[rows], wanted, temperature=self.temperature).sum()
        return sums


@dataclass(slots=True)
class ClassifierValidator:
    """Emotions alone: see trainer.loop.validation.emotion_metrics. validation/loss is the log loss, uncalibrated."""

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
        answers = [torch.empty(0, 2 * len(self.labels))]
        loaded = itertools.islice(self.loader, self.limit_batches)
        for batch in usable(loaded, skipped, strict=self.strict):
            batch = batch.to(accelerator.device)
            with accelerator.autocast():
                log_probs = self.task.logits(network, batch).float().log_softmax(dim=-1)
            answers.append(torch.cat([log_probs, batch.histogram], dim=1).cpu())
        both = rows_of_all(torch.cat(answers), accelerator).split(len(self.labels), dim=1)
        metrics = emotion_metrics(*both, labels=self.labels)
        if "validation/emotion_nll" not in metrics:
            raise UserError("no image to validate on could be read, or none of them has an emotion")
        if accelerator.is_main_process:
            found = emotion_scores(both[0].argmax(dim=1).tolist(), both[1].tolist(), labels=self.labels)
            self.tracker.picture("validation/confusion", confusion_figure(found.confusion, self.labels), step)
        return {**metrics, "validation/loss": metrics["validation/emotion_nll"]}
