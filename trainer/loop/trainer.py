"""The training loop, over accelerate: steps, validation, checkpoints."""

from __future__ import annotations

import itertools
import math
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from common.errors import UserError, shorten
from common.faults import explain_error, out_of_memory
from common.progress import progress
from data.loaders import EpochSampler, drop_empty_batches
from data.readers.split import source_of
from data.schema import Batch, Skipped
from data.workers import LoaderDeaths
from trainer.loop.optim import load_optimizer
from trainer.loop.recovery import NotFinite, explain_memory, explain_not_finite, interrupted, require_finite
from trainer.loop.steps import Stepper
from trainer.loop.tracker import Speed, Tracker, peak_memory
from trainer.loop.validation import TEMPERATURE
from trainer.runs.checkpoint import Checkpoint, load_training, save_checkpoint
from trainer.runs.retention import entries
from trainer.runs.state import TrainState, random_states, restore_random_states
from trainer.runs.task import AnyValidator, Task
from trainer.runtime.processes import announce_failure, announced_failure, any_rank, lost_peer, step_batches
from trainer.runtime.sharding import Sharding, gather_state, shard_optimizer_state
from trainer.runtime.signals import Stoppable, Stopped, StopRequest
from trainer.runtime.skipped import unique, write_skipped


@dataclass(slots=True)
class TrainingLoader:
    loader: DataLoader[Batch]
    sampler: EpochSampler
    batch_size: int


class Trainer:
    """Train one network into one run folder.

    Args:
        config: the whole resolved configuration, stored in every checkpoint.
        run: folder of the run.
        stop: checked between steps.
        origin: stored in every checkpoint.json.
        sharding: how the network was split over the processes; None: each holds all of it.
    """

    def __init__(
        self,
        *,
        config: DictConfig,
        run: Path,
        accelerator: Accelerator,
        task: Task,
        optimizer: torch.optim.Optimizer,
        data: TrainingLoader,
        validator: AnyValidator,
        tracker: Tracker,
        skipped: list[Skipped],
        stop: StopRequest | None = None,
        origin: dict[str, Any] | None = None,
        sharding: Sharding | None = None,
    ) -> None:
        self.config, self.settings, self.run = config, config.trainer, run
        self.accelerator, self.task, self.sharding = accelerator, task, sharding
        model = accelerator.prepare_model(task.network, evaluation_mode=sharding is not None)  # else DDP wraps it
        self.optimizer, loader = accelerator.prepare(optimizer, data.loader)
        self.data = TrainingLoader(loader, data.sampler, data.batch_size)
        self.validator, self.tracker, self.skipped = validator, tracker, skipped
        self.state = TrainState()
        self.metrics: dict[str, float] = {}
        batches = math.ceil(len(data.sampler) / data.batch_size) // accelerator.num_processes
        self.batches_per_epoch = min(batches, self.settings.limit_train_batches or batches)
        self.total_steps = self.settings.epochs * math.ceil(self.batches_per_epoch / self.settings.accumulation_steps)
        sharded = sharding is not None
        self.stepper = Stepper(config, accelerator, task, model, self.optimizer, self.total_steps, sharded=sharded)
        self.stop, self.origin = stop or StopRequest(), origin or {}
        if accelerator.num_processes == 1:  # several would have to stop at the same batch
            validator.loader = Stoppable(validator.loader, self.stop)
        self._saved_at = time.monotonic()  # the wall clock may be set back
        self._saved = self.state.as_dict()  # as of the last checkpoint
        self._discarded: set[int] = set()  # later checkpoints of a run that resumed from an earlier one
        self._stopping = False
        self.speed = Speed()
        self.texts = 0  # since the start or the resumption
        self.deaths = LoaderDeaths()
        self._loaded = 0  # batches of this epoch, unusable ones included

    def resume(self, checkpoint: Checkpoint) -> None:
        """Restore optimizer, loss scaler, random states, position in the epoch and all counters."""
        training = load_training(checkpoint.folder)
        try:
            load_optimizer(self.optimizer, shard_optimizer_state(training["optimizer"], self.optimizer))
            if self.accelerator.scaler is not None and training.get("scaler"):
                self.accelerator.scaler.load_state_dict(training["scaler"])
            states = training["random"]  # one entry per process
            restore_random_states(states[self.accelerator.process_index % len(states)])
        except Exception as error:  # a damaged file fails in many ways
            path = checkpoint.folder / "training.pt"
            raise UserError(f"{path} belongs to another optimizer, or it is damaged ({shorten(error)})") from error
        self.state = TrainState.from_dict(checkpoint.info["state"])
        self.metrics = dict(checkpoint.info.get("metrics", {}))
        self._saved = self.state.as_dict()
        if checkpoint.run.resolve() == self.run.resolve():
            self._discarded = {e.step for e in entries(self.run / "checkpoints") if e.step > self.state.step}
        self.speed.images = self.state.images
        self.skipped.extend(Skipped(id, Path(path), reason) for id, path, reason in self.state.skipped)

    def fit(self) -> bool:
        """Train until the last epoch, early stopping or a stop request (then return False), and write a checkpoint.

        Raises:
            UserError: it failed (memory, a loader process, NaN); names the checkpoint and the command that resumes it.
        """
        with self.deaths:
            return self._fit()

    def _fit(self) -> bool:
        try:
            self._train()
        except NotFinite as fault:
            precision = self.accelerator.mixed_precision
            raise explain_not_finite(fault, self.run, self.state, self.config, precision) from fault
        except (RuntimeError, MemoryError, ConnectionError, EOFError) as error:
            text, changes = explain_error(self.deaths.error or error), {}
            if text is None:
                if lost_peer(error) and announced_failure():
                    self._rescue(error)
                raise
            if out_of_memory(error):
                text, changes = explain_memory(error, self.config, training=self.task.network.training)
            self._rescue(error)
            raise interrupted(text, changes, self.run, self.state) from error
        finally:
            if self.accelerator.is_main_process:
                write_skipped(self.skipped, self.run)
        return self.state.finished(self.settings)

    def _rescue(self, error: Exception) -> None:
        """Write a checkpoint of the last complete step, if possible; of several processes, the first does so alone.

        After a process was killed, the last checkpoint stays the newest: it has the random states of all.
        """
        try:
            with suppress(UserError, NotFinite):  # the first error is reported, not these
                traceback.clear_frames(error.__traceback__)  # frees the tensors of the failed step and ends its loaders
                alone = self.accelerator.num_processes > 1
                if alone and not self.accelerator.is_main_process and not self.stepper.updating:
                    announce_failure()
                elif not (self.stepper.updating or self.state.as_dict() == self._saved or (alone and self.sharding)):
                    self.optimizer.zero_grad(set_to_none=True)
                    self.save(alone=alone)
        except (RuntimeError, MemoryError) as second:
            if explain_error(second) is None:  # else out of memory again, or the death of a loader process
                raise

    def _train(self) -> None:
        shown = {"initial": self.state.step, "enabled": self.accelerator.is_main_process}
        with progress(self.total_steps, "train", unit="step", **shown) as bar:
            self._between_steps()  # the resumed run may have stopped before a validation
            while not self._stopping and not self.state.finished(self.settings):
                bar.set_description(f"epoch {self.state.epoch + 1}/{self.settings.epochs}")
                self._epoch(bar)
        if self.state.as_dict() != self._saved:
            self.save()

    def _epoch(self, bar) -> None:
        sampler, processes = self.data.sampler, self.accelerator.num_processes
        sampler.epoch, sampler.skip = self.state.epoch, self.state.batches * self.data.batch_size * processes
        self._loaded = self.state.batches
        loaded = itertools.islice(self.data.loader, self.batches_per_epoch - self.state.batches)
        keep = partial(drop_empty_batches, skipped=self.skipped, strict=self.config.dataset.strict)
        for batches in step_batches(self.accelerator, self._count(loaded), self.settings.accumulation_steps, keep=keep):
            values = self._step(batches)
            bar.update()
            bar.set_postfix_str(f"loss {values['train/loss']:.3f}, lr {values['train/lr']:.1e}", refresh=False)
            if self.state.batches < self.batches_per_epoch:
                self._between_steps()
                if self._stopping or self.state.finished(self.settings):
                    return
            self.deaths.check()
        if self.state.images == 0:
            raise UserError(f"{source_of(self.config.dataset, 'train_ds')}: none of its images could be read")
        self.state.epoch, self.state.batches = self.state.epoch + 1, 0
        self._between_steps()

    def _between_steps(self) -> None:
        """Validate, write a checkpoint or stop, whichever is due."""
        checkpoint = self.state.checkpoint_due(self.settings, time.monotonic() - self._saved_at)
        stop, checkpoint = any_rank(self.accelerator, self.stop, checkpoint)
        if self.state.validation_due(self.settings) and not stop:
            self._validate()
            (stop,) = any_rank(self.accelerator, self.stop)
        self._stopping = stop
        if (stop or checkpoint) and self.state.as_dict() != self._saved:
            self.save()

    def _count(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Count every batch: a batch without a usable image makes no step, but a resumed epoch must skip it too."""
        for batch in batches:
            self._loaded += 1
            yield batch

    def _step(self, batches: list[Batch]) -> dict[str, float]:
        step = self.stepper(batches, self.state.step, self.state.balance)
        self.state.batches = self._loaded
        self.state.images += step.images
        self.texts += step.texts
        self.state.step += step.taken
        self.state.overflows += not step.taken
        if not step.taken:  # its losses may be NaN
            return step.values
        for name, value in {**step.values, "steps": 1}.items():
            self.state.sums[name] = self.state.sums.get(name, 0) + value
        if self.state.step % self.settings.log_every_n_steps == 0:
            gauges = {**self.task.gauges(), **step.gauges, **self.speed.read(self.state.images, self.texts)}
            gauges["memory/peak_gigabytes"] = peak_memory(self.accelerator.device) / 1e9
            if self.accelerator.scaler is not None:
                gauges["train/overflows"] = self.state.overflows
            self.tracker.scalars({**step.values, **gauges}, self.state.step)
        return step.values

    def _validate(self) -> None:
        """Validate and write a checkpoint; a stop request ends it without either."""
        started, random, metrics = time.monotonic(), random_states(), None
        try:
            with self.sharding.unsharded(self.task.network) if self.sharding else nullcontext():
                metrics = self.validator.measure(self.task.network, self.accelerator, self.state.step, self.skipped)
        except Stopped:
            return
        finally:
            if metrics is None:
                restore_random_states(random)  # the validation will be repeated
        if not math.isfinite(metrics["validation/loss"]):
            where = [name for name, value in metrics.items() if "/loss_" in name and not math.isfinite(value)]
            raise NotFinite("the validation loss is NaN or infinite", where=", ".join(where))
        steps = max(self.state.sums.pop("steps", 0), 1)
        values = {f"epoch/{name.split('/')[1]}": value / steps for name, value in self.state.sums.items()} | metrics
        self.tracker.scalars(values, self.state.step)
        self.metrics, self.state.sums = metrics, {}
        self.state.record_validation(values, self.settings.checkpoint_callback_params.monitor)
        self.save()
        self.speed.pause(time.monotonic() - started)  # validation does not count as slow training

    def save(self, *, alone: bool = False) -> None:
        """Write a checkpoint, which may be among the best if this step was validated.

        Args:
            alone: the other processes do not take part; a run that resumes has this one's random states in all of them.

        Raises:
            NotFinite: a weight or the optimizer's state is NaN or infinite; nothing is written.
        """
        weights, optimizer = self.task.state(), self.optimizer.state_dict()
        require_finite(weights, self.optimizer, None if alone else self.accelerator)
        random = [random_states()]
        if not alone:
            self.accelerator.wait_for_everyone()
            random = gather_object(random)
        self._saved_at = time.monotonic()
        self.state.skipped = [[s.id, str(s.path), s.reason] for s in unique(self.skipped)]
        self._saved = self.state.as_dict()
        keep = self.accelerator.is_main_process
        if not alone:
            weights, optimizer = gather_state((weights, optimizer), keep=keep)
        if not self.accelerator.is_main_process:
            return
        self.tracker.sync()
        info = {"state": self._saved, "metrics": self.metrics, **self.origin}
        if TEMPERATURE in self.metrics:  # as of the last validation, like the metrics
            info["emotion_temperature"] = self.metrics[TEMPERATURE]
        scaler, params = self.accelerator.scaler, self.settings.checkpoint_callback_params
        save_checkpoint(
            self.run,
            self.task,
            config=self.config,
            weights=weights,
            training={"optimizer": optimizer, "scaler": scaler.state_dict() if scaler else {}, "random": random},
            info=info,
            monitored=self.state.monitored if self.state.validated == self.state.step else None,
            lower_is_better=params.monitor.endswith("loss"),
            keep=params.save_top_k,
            keep_last=params.keep_last,
            discarded=self._discarded - {self.state.step},
        )
        self._discarded = set()
