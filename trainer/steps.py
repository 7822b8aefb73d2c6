"""One optimiser step, over accelerate: forward, backward, clipping, update."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from omegaconf import DictConfig
from torch import Tensor, nn

from data.schema import Batch
from trainer.optim import lr_at, warmup_steps
from trainer.sharding import full
from trainer.task import Task, weighted

# A scale starts at 65,536 and is halved each time: after so many it is below 1e-4, where fairseq gives up too. A few in
# a row are usual at the start.
MOST_SKIPPED = 30


@dataclass(frozen=True, slots=True)
class Step:
    """What came of one step.

    Args:
        values: losses, learning rate and gradient norm, under the names that TensorBoard shows.
        images, texts: in it, over all processes.
        taken: False: fp16 overflowed, nothing was updated, and the learning rate waits too.
    """

    values: dict[str, float]
    images: int
    texts: int
    taken: bool


class NotFinite(Exception):
    """A loss, a gradient or a weight that is no number, and the images that it came of; nothing was updated.

    Args:
        where: "caption, vad": the parts of the loss; or the weights.
    """

    def __init__(self, what: str, *, where: str = "", ids: Iterable[str] = ()) -> None:
        super().__init__(what)
        self.what, self.where, self.ids = what, where, list(ids)


class Stepper:
    """Args:
    model, optimizer: as accelerator.prepare gave them.
    total_steps: of the whole training, for the learning rate.
    """

    def __init__(
        self,
        *,
        config: DictConfig,
        accelerator: Accelerator,
        task: Task,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        total_steps: int,
    ) -> None:
        self.config, self.accelerator, self.task = config, accelerator, task
        self.model, self.optimizer, self.total_steps = model, optimizer, total_steps
        self.warmup = warmup_steps(config.model.optimizer.scheduler, total_steps)
        self.skipped = 0  # steps in a row that overflowed
        self.updating = False  # whether weights and optimiser may be of two minds: a step broke off in the middle
        # Of each group's learning rate to the first group's: kept here, since resuming overwrites what groups hold.
        self.lr_factors = [group["lr"] / optimizer.param_groups[0]["lr"] for group in optimizer.param_groups]

    def __call__(self, window: list[Batch], step: int) -> Step:
        """The optimiser step `step` (from 0) over the batches of `window`, normalised by all that they supervise.

        Under fp16 a loss or gradients beyond its range are expected now and then: the loss scaler leaves such a step
        out and lowers its scale.

        Raises:
            NotFinite: a loss or a gradient that is no number, or under fp16 MOST_SKIPPED of them in a row.
        """
        self.model.train()
        batches = [batch.to(self.accelerator.device) for batch in window]
        counts = self._reduced(add_up(self.task.counts(batch) for batch in batches))
        sums: dict[str, Tensor] = {}
        for i, batch in enumerate(batches):
            sync = i + 1 == len(batches)
            with torch.enable_grad() if sync else self.accelerator.no_sync(self.model):
                batch_sums = self.task.sums(self.model, batch)
                total = weighted(self.task, batch_sums, counts)
                if self.accelerator.scaler is None and not torch.isfinite(total):
                    where = ", ".join(name for name, value in batch_sums.items() if not torch.isfinite(value))
                    raise NotFinite(f"the loss is {total.item()}", where=where, ids=_ids(batches))
                self.accelerator.backward(total * self.accelerator.num_processes)
            sums = add_up([sums, {name: value.detach() for name, value in batch_sums.items()}])
        norm = self._update(step, batches)
        taken = not self.accelerator.optimizer_step_was_skipped
        self.skipped = 0 if taken else self.skipped + 1
        if self.skipped == MOST_SKIPPED:
            where = ", ".join(name for name, value in sums.items() if not torch.isfinite(value))
            what = f"fp16 overflowed {MOST_SKIPPED} times in a row, whatever the loss was scaled by"
            raise NotFinite(what, where=where, ids=_ids(batches))
        return Step(
            values=self._values(self._reduced(sums), counts, norm),
            images=sum(len(batch.ids) for batch in batches) * self.accelerator.num_processes,
            texts=sum(len(batch.input_ids) for batch in batches) * self.accelerator.num_processes,
            taken=taken,
        )

    def backward(self, batch: Batch) -> None:
        """What a step does with a batch, for the memory that it takes; the gradients are worth nothing."""
        weighted(self.task, self.task.sums(self.model, batch), self.task.counts(batch)).backward()

    def _update(self, step: int, batches: list[Batch]) -> float:
        limit = self.config.trainer.clip_grad_norm
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit if limit is not None else math.inf)
        norm = float(full(norm))
        if not math.isfinite(norm) and self.accelerator.scaler is None:  # the fp16 scaler skips such a step itself
            raise NotFinite(f"the gradient norm is {norm}", ids=_ids(batches))
        lr = self._lr(step)
        for group, factor in zip(self.optimizer.param_groups, self.lr_factors, strict=True):
            group["lr"] = lr * factor
        self.updating = True
        self.optimizer.step()
        self.updating = False
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _lr(self, step: int) -> float:
        settings = self.config.model.optimizer
        return lr_at(
            step,
            lr=settings.lr,
            min_lr=settings.scheduler.min_lr,
            name=settings.scheduler.name,
            warmup=self.warmup,
            total=self.total_steps,
        )

    def _values(self, sums: dict[str, Tensor], counts: dict[str, Tensor], norm: float) -> dict[str, float]:
        values = {f"train/loss_{name}": float(v / counts[name]) for name, v in sums.items() if counts[name] > 0}
        values["train/loss"] = float(weighted(self.task, sums, counts))
        values["train/lr"] = self.optimizer.param_groups[0]["lr"]
        values["train/grad_norm"] = norm
        return values

    def _reduced(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Summed over all processes."""
        return {name: self.accelerator.reduce(value, reduction="sum") for name, value in values.items()}


def _ids(batches: list[Batch]) -> list[str]:
    return [image for batch in batches for image in batch.ids]


def windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches; the last may be shorter."""
    iterator = iter(batches)
    while window := list(itertools.islice(iterator, size)):
        yield window


def add_up(dicts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for values in dicts:
        for name, value in values.items():
            total[name] = total[name] + value if name in total else value
    return total
