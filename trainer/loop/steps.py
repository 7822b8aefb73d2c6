"""One optimizer step, over accelerate; trainer.py has the loop around it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from omegaconf import DictConfig
from torch import Tensor, nn

from data.schema import Batch
from trainer.loop import balance
from trainer.loop.optim import learning_rate
from trainer.loop.recovery import not_finite_step
from trainer.runs.task import Task
from trainer.runtime.sharding import full_tensor

# The fp16 loss scale starts at 65,536 and is halved at every overflow: after 30 in a row it is below 1e-4, where
# fairseq gives up too. A few in a row are usual at the start.
MOST_SKIPPED = 30


class Step(NamedTuple):
    values: dict[str, float]  # losses, learning rate and gradient norm, by their names in TensorBoard
    gauges: dict[str, float]  # of the bridge, likewise; only at steps that are logged
    images: int  # in all processes, as the texts
    texts: int
    taken: bool  # False after an fp16 overflow: nothing was updated, and the learning rate does not advance


class Stepper:
    """Makes the optimizer steps; `model` and `optimizer` are as accelerator.prepare returned them.

    sharded: FSDP cannot differentiate each loss by itself, so the losses are not balanced.
    """

    def __init__(
        self,
        config: DictConfig,
        accelerator: Accelerator,
        task: Task,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        total_steps: int,
        *,
        sharded: bool = False,
    ) -> None:
        self.config, self.accelerator, self.task, self.model = config, accelerator, task, model
        self.optimizer, self.total_steps, self.sharded = optimizer, total_steps, sharded
        # Ratio of each group's learning rate to the first group's; resuming overwrites the rates in the groups.
        self.lr_ratios = [group["lr"] / optimizer.param_groups[0]["lr"] for group in optimizer.param_groups]
        self.overflows = 0  # in a row, under fp16
        self.updating = False  # True while the update runs; weights and optimizer state may be inconsistent

    def __call__(self, batches: list[Batch], step: int, ratios: dict[str, float]) -> Step:
        """Make the optimizer step number `step` (from 0): one mean per loss over all `batches` and all processes.

        Args:
            ratios: of the losses' gradients at the bridge, see trainer.loop.balance; updated in place.

        Raises:
            NotFinite: the loss or the gradient is NaN or infinite. Under fp16 the loss scaler skips such a step and
                lowers its scale; there the error needs MOST_SKIPPED of them in a row.
        """
        accelerator, task, model = self.accelerator, self.task, self.model.train()
        batches = [batch.to(accelerator.device) for batch in batches]
        counts, sums = Counter(), Counter()  # of tensors, by the name of the loss
        for batch in batches:
            counts.update(task.counts(batch))
        counts, gauges = accelerator.reduce(counts, reduction="sum"), {}
        for i, batch in enumerate(batches):
            with nullcontext() if i + 1 == len(batches) else accelerator.no_sync(model):
                losses = task.sums(model, batch)
                if i == 0 and not self.sharded and task.bridge and self._logged(step):
                    gauges = self._measure(losses, counts, ratios)
                total = self._total(losses, counts, balance.scales(ratios, self.config.model.balance))
                if accelerator.scaler is None and accelerator.num_processes == 1 and not torch.isfinite(total):
                    raise not_finite_step(f"the loss is {total.item()}", losses, batches, accelerator)
                accelerator.backward(total * accelerator.num_processes)  # DDP averages the gradients
            sums.update({name: loss.detach() for name, loss in losses.items()})
        limit = self.config.trainer.clip_grad_norm
        norm = accelerator.clip_grad_norm_(model.parameters(), math.inf if limit is None else limit)
        norm = float(full_tensor(norm))
        if accelerator.scaler is None and not math.isfinite(norm):  # in all processes, even if one has the NaN
            raise not_finite_step(f"the gradient norm is {norm}", sums, batches, accelerator)
        lr = learning_rate(step, self.config.model.optimizer, self.total_steps)
        for group, ratio in zip(self.optimizer.param_groups, self.lr_ratios, strict=True):
            group["lr"] = lr * ratio
        self.updating = True
        self.optimizer.step()
        self.updating = False
        self.optimizer.zero_grad(set_to_none=True)
        taken = not accelerator.optimizer_step_was_skipped
        self.overflows = 0 if taken else self.overflows + 1
        if self.overflows == MOST_SKIPPED:
            what = f"fp16 overflowed {MOST_SKIPPED} times in a row, at every loss scale"
            raise not_finite_step(what, sums, batches, accelerator)
        sums = accelerator.reduce(sums, reduction="sum")
        values = {f"train/loss_{name}": float(s / counts[name]) for name, s in sums.items() if counts[name] > 0}
        values |= {"train/loss": float(self._total(sums, counts)), "train/lr": lr, "train/grad_norm": norm}
        images, texts = sum(len(batch.ids) for batch in batches), sum(len(batch.input_ids) for batch in batches)
        return Step(values, gauges, images * accelerator.num_processes, texts * accelerator.num_processes, taken)

    def _logged(self, step: int) -> bool:
        return step == 0 or (step + 1) % self.config.trainer.log_every_n_steps == 0

    def _means(self, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.task.weights[name] * value / counts[name].clamp(min=1) for name, value in sums.items()}

    def _measure(
        self, losses: Mapping[str, Tensor], counts: Mapping[str, Tensor], ratios: dict[str, float]
    ) -> dict[str, float]:
        """Measure each loss's gradient at the bridge on one batch; return what TensorBoard shows of it."""
        scale = 1.0 if self.accelerator.scaler is None else self.accelerator.scaler.get_scale()  # fp16 would underflow
        means = {name: mean * scale for name, mean in self._means(losses, counts).items()}
        squares = balance.gradient_squares(means, self.task.bridge)
        squares = self.accelerator.reduce(squares, reduction="mean")
        squares = {name: float(square) / scale**2 for name, square in squares.items()}
        balance.update(ratios, squares)
        factors = balance.scales(ratios, self.config.model.balance)
        gauges = {f"bridge/gradient_{name}": square**0.5 for name, square in squares.items()}
        gauges |= {f"bridge/scale_{name}": factor for name, factor in factors.items()}
        varied = balance.variation(self.task.bridge)
        return gauges | {f"bridge/varied_{name}": share for name, share in varied.items()}

    def _total(
        self, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor], scales: Mapping[str, float] | None = None
    ) -> Tensor:
        """Return the total loss: the weighted sum of the means."""
        return sum(mean * (scales or {}).get(name, 1.0) for name, mean in self._means(sums, counts).items())
