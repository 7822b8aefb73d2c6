"""The training loop, over accelerate: steps, validation, checkpoints."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from data.loaders import EpochSampler, usable
from data.schema import Batch, Skipped
from errors import UserError
from model.captioner import Captioner
from model.losses import loss_counts, loss_sums
from progress import progress
from trainer.checkpoint import load_training, save_checkpoint
from trainer.gauges import Speed, gates, peak_memory
from trainer.optim import lr_at, warmup_steps
from trainer.skipped import unique, write_skipped
from trainer.state import TrainState, random_states, restore_random_states
from trainer.tracker import Tracker
from trainer.validation import Validator


@dataclass(slots=True)
class TrainingLoader:
    loader: DataLoader[Batch]
    sampler: EpochSampler
    batch_size: int


class Trainer:
    """Trains one captioner into one run folder.

    Args:
        config: the whole resolved configuration; it goes into every checkpoint.
        run: folder of the run.
        data: batches of an epoch.
        validator: what is measured, and on what.
    """

    def __init__(
        self,
        *,
        config: DictConfig,
        run: Path,
        accelerator: Accelerator,
        captioner: Captioner,
        optimizer: torch.optim.Optimizer,
        data: TrainingLoader,
        validator: Validator,
        tokenizer,
        tracker: Tracker,
        skipped: list[Skipped],
    ) -> None:
        self.config, self.settings, self.run = config, config.trainer, run
        self.accelerator, self.captioner, self.tokenizer = accelerator, captioner, tokenizer
        self.model, self.optimizer, loader = accelerator.prepare(captioner, optimizer, data.loader)
        self.data = TrainingLoader(loader, data.sampler, data.batch_size)
        self.validator, self.tracker, self.skipped = validator, tracker, skipped
        self.state = TrainState()
        self.metrics: dict[str, float] = {}
        batches = math.ceil(len(data.sampler) / (data.batch_size * accelerator.num_processes))
        self.batches_per_epoch = min(batches, self.settings.limit_train_batches or batches)
        self.steps_per_epoch = math.ceil(self.batches_per_epoch / self.settings.accumulation_steps)
        self.total_steps = self.settings.epochs * self.steps_per_epoch
        self.warmup = warmup_steps(config.model.optimizer.scheduler, self.total_steps)
        self._sums: dict[str, float] = {}
        self.speed = Speed()
        self.texts = 0  # seen since the start or the resumption
        self._loaded = 0  # batches of this epoch, unusable ones included

    def resume(self, folder: Path, state: dict) -> None:
        """Go on from a checkpoint: optimiser, loss scaler, random states and the position in the epoch."""
        training = load_training(folder)
        try:
            self.optimizer.load_state_dict(training["optimizer"])
        except (ValueError, KeyError) as error:
            raise UserError(f"{folder / 'training.pt'}: its optimiser is not this one's ({error})") from error
        if self.accelerator.scaler is not None and training.get("scaler"):
            self.accelerator.scaler.load_state_dict(training["scaler"])
        restore_random_states(training["random"])
        self.state = TrainState(**state)
        self.speed.images = self.state.images
        self.skipped.extend(Skipped(id, Path(path), reason) for id, path, reason in self.state.skipped)

    # ------------------------------------------------------------------ the loop

    def fit(self) -> None:
        """Train until the last epoch, or until validation has not improved for long enough."""
        with progress(
            self.total_steps, "train", unit="step", initial=self.state.step, enabled=self.accelerator.is_main_process
        ) as bar:
            while self.state.epoch < self.settings.epochs and not self._worn_out():
                bar.set_description(f"epoch {self.state.epoch + 1}/{self.settings.epochs}")
                self._epoch(bar)
        self._write_skipped()

    def _epoch(self, bar) -> None:
        sampler = self.data.sampler
        sampler.epoch, sampler.skip = self.state.epoch, self.state.batches * self.data.batch_size
        self._loaded = self.state.batches
        loaded = itertools.islice(self.data.loader, self.batches_per_epoch - self.state.batches)
        batches = usable(self._counted(loaded), self.skipped, strict=self.config.dataset.strict)
        for window in windows(batches, self.settings.accumulation_steps):
            values = self._step(window)
            self.state.batches = self._loaded
            bar.update()
            bar.set_postfix_str(f"loss {values['train/loss']:.3f}, lr {values['train/lr']:.1e}", refresh=False)
            every = self.settings.check_val_every_n_steps
            if every and self.state.step % every == 0 and self.state.batches < self.batches_per_epoch:
                self._validate()
                if self._worn_out():
                    return
        if self.state.step == 0:
            raise UserError(f"{self.config.dataset.train_ds.json_path}: none of its images could be read")
        self.state.epoch, self.state.batches = self.state.epoch + 1, 0
        every, steps = self.settings.check_val_every_n_epoch, self.settings.check_val_every_n_steps
        due = (every and self.state.epoch % every == 0) or (steps and self.state.step % steps == 0)
        if due or self.state.epoch == self.settings.epochs:
            self._validate()

    def _counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """A batch without one usable picture makes no step, but it is behind us all the same."""
        for batch in batches:
            self._loaded += 1
            yield batch

    def _step(self, window: list[Batch]) -> dict[str, float]:
        """One optimiser step over the batches of `window`, normalised by all that they supervise together."""
        self.model.train()
        batches = [batch.to(self.accelerator.device) for batch in window]
        counts = self._reduced(add_up(loss_counts(batch) for batch in batches))
        sums: dict[str, torch.Tensor] = {}
        for i, batch in enumerate(batches):
            sync = i + 1 == len(batches)
            with torch.enable_grad() if sync else self.accelerator.no_sync(self.model):
                batch_sums = loss_sums(self.model(batch), batch)
                total = self._weighted(batch_sums, counts)
                if not torch.isfinite(total):
                    self._stop_before_update(f"the loss is {total.item()}", batches)
                self.accelerator.backward(total * self.accelerator.num_processes)
            sums = add_up([sums, {name: value.detach() for name, value in batch_sums.items()}])
        norm = self._update(batches)
        self.state.images += sum(len(batch.ids) for batch in batches) * self.accelerator.num_processes
        self.texts += sum(len(batch.input_ids) for batch in batches) * self.accelerator.num_processes
        return self._log(self._reduced(sums), counts, norm)

    def _update(self, batches: list[Batch]) -> float:
        limit = self.settings.clip_grad_norm
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit if limit is not None else math.inf)
        norm = float(norm)
        if not math.isfinite(norm) and self.accelerator.scaler is None:  # the fp16 scaler skips such a step itself
            self._stop_before_update(f"the gradient norm is {norm}", batches)
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not self.accelerator.optimizer_step_was_skipped:  # fp16 overflow: the learning rate waits too
            self.state.step += 1
        return norm

    def _lr(self) -> float:
        settings = self.config.model.optimizer
        return lr_at(
            self.state.step,
            lr=settings.lr,
            min_lr=settings.scheduler.min_lr,
            name=settings.scheduler.name,
            warmup=self.warmup,
            total=self.total_steps,
        )

    def _weighted(self, sums: dict[str, torch.Tensor], counts: dict[str, torch.Tensor]) -> torch.Tensor:
        weights = self.config.model.loss_weights
        return sum(weights[name] * value / counts[name].clamp(min=1) for name, value in sums.items())

    def _reduced(self, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Summed over all processes."""
        return {name: self.accelerator.reduce(value, reduction="sum") for name, value in values.items()}

    def _stop_before_update(self, what: str, batches: list[Batch]) -> None:
        ids = ", ".join(image for batch in batches for image in batch.ids)
        self._write_skipped()
        raise UserError(
            f"{what} at step {self.state.step + 1}, in the batch of the images {ids}; nothing was updated and the "
            f"checkpoints in {self.run / 'checkpoints'} are good. Lower model.optimizer.lr or set "
            "trainer.precision=fp32"
        )

    # ------------------------------------------------------------------ what is written down

    def _log(self, sums: dict, counts: dict, norm: float) -> dict[str, float]:
        values = {f"train/loss_{name}": float(v / counts[name]) for name, v in sums.items() if counts[name] > 0}
        values["train/loss"] = float(self._weighted(sums, counts))
        values["train/lr"] = self.optimizer.param_groups[0]["lr"]
        values["train/grad_norm"] = norm
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._sums["steps"] = self._sums.get("steps", 0) + 1
        if self.state.step % self.settings.log_every_n_steps == 0:
            gauges = {**gates(self.captioner), **self.speed.read(self.state.images, self.texts)}
            gauges["memory/peak_gigabytes"] = peak_memory(self.accelerator.device) / 1e9
            self.tracker.scalars({**values, **gauges}, self.state.step)
        return values

    def _validate(self) -> None:
        started = time.monotonic()
        steps = max(self._sums.pop("steps", 0), 1)
        epoch_means = {f"epoch/{name.split('/')[1]}": value / steps for name, value in self._sums.items()}
        self._sums = {}
        self.metrics = self.validator.measure(self.captioner, self.accelerator, self.state.step, self.skipped)
        self.tracker.scalars({**epoch_means, **self.metrics}, self.state.step)
        monitor = self.settings.checkpoint_callback_params.monitor
        value = self._monitored(monitor, epoch_means)
        lower = monitor.endswith("loss")
        improved = (
            value is not None
            and math.isfinite(value)
            and (self.state.best is None or (value < self.state.best if lower else value > self.state.best))
        )
        self.state.best = value if improved else self.state.best
        self.state.bad_validations = 0 if improved else self.state.bad_validations + 1
        self.save(value, lower)
        self.speed.pause(time.monotonic() - started)  # validation does not count as slow training

    def _monitored(self, monitor: str, epoch_means: dict[str, float]) -> float | None:
        if monitor == "train_loss":
            return epoch_means.get("epoch/loss")
        return self.metrics.get({"val_loss": "validation/loss"}.get(monitor, "validation/emotion_accuracy"))

    def _worn_out(self) -> bool:
        patience = self.settings.early_stopping_patience
        return patience is not None and self.state.bad_validations >= patience

    def save(self, value: float | None, lower_is_better: bool) -> None:
        """Write a checkpoint; `value` decides whether it is among the best."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        self.state.skipped = [[s.id, str(s.path), s.reason] for s in unique(self.skipped)]
        scaler = self.accelerator.scaler
        save_checkpoint(
            self.run,
            self.captioner,
            config=self.config,
            tokenizer=self.tokenizer,
            training={
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else {},
                "random": random_states(),
            },
            info={"state": self.state.as_dict(), "metrics": self.metrics},
            monitored=value,
            lower_is_better=lower_is_better,
            keep=self.settings.checkpoint_callback_params.save_top_k,
        )

    def _write_skipped(self) -> None:
        if self.accelerator.is_main_process:
            write_skipped(self.skipped, self.run)


def windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches; the last may be shorter."""
    iterator = iter(batches)
    while window := list(itertools.islice(iterator, size)):
        yield window


def add_up(dicts: Iterable[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for values in dicts:
        for name, value in values.items():
            total[name] = total[name] + value if name in total else value
    return total
