"""One optimizer step, over accelerate. The loop around it is in trainer.py."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from omegaconf import DictConfig
from torch import Tensor, nn

from data.schema import Batch
from trainer.loop.optim import lr_at, warmup_steps
from trainer.loop.recovery import NotFinite, not_finite
from trainer.runs.task import Task
from trainer.runtime.sharding import full

# The fp16 loss scale starts at 65,536 and is halved at every overflow: after 30 in a row it is below 1e-4, where
# fairseq gives up too. A few in a row are usual at the start.
MOST_SKIPPED = 30


@dataclass(frozen=True, slots=True)
class Step:
    """Result of one step.

    Args:
        values: losses, learning rate and gradient norm, under their TensorBoard names.
        images, texts: how many it saw, over all processes.
        taken: False after an fp16 overflow: nothing was updated, and the learning rate does not advance.
    """

    values: dict[str, float]
    images: int
    texts: int
    taken: bool


class Stepper:
    """Args:
    model, optimizer: as accelerator.prepare returned them; the model runs its forward pass under autocast.
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
        self.settings, self.accelerator, self.task = config.trainer, accelerator, task
        self.model, self.optimizer = model, optimizer
        own, scheduler = config.model.optimizer, config.model.optimizer.scheduler
        warmup = warmup_steps(scheduler, total_steps)
        schedule = {"name": scheduler.name, "min_lr": scheduler.min_lr, "warmup": warmup, "total": total_steps}
        self.lr_at = partial(lr_at, lr=own.lr, **schedule)
        # Ratio of each group's learning rate to the first group's; resuming overwrites what the groups hold.
        self.lr_ratios = [group["lr"] / optimizer.param_groups[0]["lr"] for group in optimizer.param_groups]
        self.overflows = 0  # in a row, under fp16
        self.updating = False  # while the update runs, weights and optimizer state may be inconsistent

    def __call__(self, batches: list[Batch], step: int) -> Step:
        """Make the optimizer step number `step` (from 0): one mean per loss over all `batches` and all processes.

        Raises:
            NotFinite: the loss or the gradient is NaN or infinite. Under fp16 the loss scaler leaves such a step out
                and lowers its scale; there it takes MOST_SKIPPED of them in a row.
        """
        accelerator, task = self.accelerator, self.task
        self.model.train()
        batches = [batch.to(accelerator.device) for batch in batches]
        counts, sums = Counter(), Counter()  # of tensors, by the name of the loss
        for batch in batches:
            counts.update(task.counts(batch))
        counts = self._over_processes(counts)
        for i, batch in enumerate(batches):
            with nullcontext() if i + 1 == len(batches) else accelerator.no_sync(self.model):
                losses = task.sums(self.model, batch)
                total = self._total(losses, counts)
                if accelerator.scaler is None and not torch.isfinite(total):
                    raise NotFinite(f"the loss is {total.item()}", where=not_finite(losses), batches=batches)
                accelerator.backward(total * accelerator.num_processes)  # DDP averages the gradients
            sums.update({name: loss.detach() for name, loss in losses.items()})
        limit = self.settings.clip_grad_norm
        norm = accelerator.clip_grad_norm_(self.model.parameters(), math.inf if limit is None else limit)
        norm = float(full(norm))
        if accelerator.scaler is None and not math.isfinite(norm):
            raise NotFinite(f"the gradient norm is {norm}", batches=batches)
        lr = self.lr_at(step)
        for group, ratio in zip(self.optimizer.param_groups, self.lr_ratios, strict=True):
            group["lr"] = lr * ratio
        self.updating = True
        self.optimizer.step()
        self.updating = False
        self.optimizer.zero_grad(set_to_none=True)
        self.overflows = self.overflows + 1 if accelerator.optimizer_step_was_skipped else 0
        if self.overflows == MOST_SKIPPED:
            what = f"fp16 overflowed {MOST_SKIPPED} times in a row, whatever the loss was scaled by"
            raise NotFinite(what, where=not_finite(sums), batches=batches)
        sums = self._over_processes(sums)
        values = {f"train/loss_{name}": float(s / counts[name]) for name, s in sums.items() if counts[name] > 0}
        values |= {"train/loss": float(self._total(sums, counts)), "train/lr": lr, "train/grad_norm": norm}
        return Step(
            values=values,
            images=sum(len(batch.ids) for batch in batches) * accelerator.num_processes,
            texts=sum(len(batch.input_ids) for batch in batches) * accelerator.num_processes,
            taken=not accelerator.optimizer_step_was_skipped,
        )

    def _total(self, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> Tensor:
        """The total loss: the weighted sum of the means."""
        return sum(self.task.weights[name] * value / counts[name].clamp(min=1) for name, value in sums.items())

    def _over_processes(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.accelerator.reduce(value, reduction="sum") for name, value in values.items()}
