"""The training loop, over accelerate: steps, validation, checkpoints."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from data.loaders import EpochSampler, usable
from data.schema import Batch, Skipped
from errors import UserError
from model.captioner import Captioner
from progress import progress
from trainer.cadence import CheckpointClock, finished, validation_due
from trainer.checkpoint import Checkpoint, load_training, save_checkpoint
from trainer.gauges import Speed, gates, peak_memory
from trainer.signals import Broken, StopRequest
from trainer.skipped import unique, write_skipped
from trainer.state import TrainState, random_states, restore_random_states
from trainer.steps import Stepper, windows
from trainer.tracker import Tracker
from trainer.validation import TEMPERATURE, Validator


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
        emotion_tokens: see model.losses.loss_sums.
        stop: whether to stop after the step that is going on; looked at between steps.
        origin: goes into every checkpoint.json.
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
        emotion_tokens: Tensor | None = None,
        stop: StopRequest | None = None,
        origin: dict[str, Any] | None = None,
    ) -> None:
        self.config, self.settings, self.run = config, config.trainer, run
        self.accelerator, self.captioner, self.tokenizer = accelerator, captioner, tokenizer
        self.model, self.optimizer, loader = accelerator.prepare(captioner, optimizer, data.loader)
        self.data = TrainingLoader(loader, data.sampler, data.batch_size)
        self.validator, self.tracker, self.skipped = validator, tracker, skipped
        self.state = TrainState()
        self.metrics: dict[str, float] = {}
        batches = math.ceil(len(data.sampler) / data.batch_size)
        batches //= accelerator.num_processes  # as many for each: in every step they wait for one another
        self.batches_per_epoch = min(batches, self.settings.limit_train_batches or batches)
        self.steps_per_epoch = math.ceil(self.batches_per_epoch / self.settings.accumulation_steps)
        self.total_steps = self.settings.epochs * self.steps_per_epoch
        self.stepper = Stepper(
            config=config,
            accelerator=accelerator,
            model=self.model,
            optimizer=self.optimizer,
            total_steps=self.total_steps,
            emotion_tokens=emotion_tokens,
        )
        self.stop, self.origin = stop or StopRequest(), origin or {}
        if accelerator.num_processes == 1:  # several could not agree in the middle of a validation
            validator.loader = self.stop.breaking(validator.loader)
        self.clock = CheckpointClock(
            steps=self.settings.checkpoint_every_n_steps, minutes=self.settings.checkpoint_every_n_minutes
        )
        self._saved = self.state.as_dict()  # what need not be written again
        self._stopping = False
        self.speed = Speed()
        self.texts = 0  # seen since the start or the resumption
        self._loaded = 0  # batches of this epoch, unusable ones included

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from there: optimiser, loss scaler, random states, position in the epoch, and all that is counted."""
        training = load_training(checkpoint.folder)
        try:
            self.optimizer.load_state_dict(training["optimizer"])
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{checkpoint.folder / 'training.pt'}: its optimiser is not this one's ({error})"
            ) from error
        if self.accelerator.scaler is not None and training.get("scaler"):
            self.accelerator.scaler.load_state_dict(training["scaler"])
        states = training["random"]  # of every process; older checkpoints have those of the first
        restore_random_states(states[self.accelerator.process_index % len(states)] if type(states) is list else states)
        self.state = TrainState.from_dict(checkpoint.info["state"])
        self.metrics = dict(checkpoint.info.get("metrics", {}))
        self._saved = self.state.as_dict()
        self.speed.images = self.state.images
        self.skipped.extend(Skipped(id, Path(path), reason) for id, path, reason in self.state.skipped)

    # ------------------------------------------------------------------ the loop

    def fit(self) -> bool:
        """Train until the last epoch, until validation has not improved for long enough, or until asked to stop.

        Returns:
            whether the training is over; if not, it was asked to stop. Where it stands is written in either case.
        """
        with progress(
            self.total_steps, "train", unit="step", initial=self.state.step, enabled=self.accelerator.is_main_process
        ) as bar:
            self._between_steps()  # a validation that a stop kept the run from
            while not self._stopping and not finished(self.state, self.settings):
                bar.set_description(f"epoch {self.state.epoch + 1}/{self.settings.epochs}")
                try:
                    self._epoch(bar)
                except UserError:
                    self._write_skipped()
                    raise
        if self.state.as_dict() != self._saved:
            self.save()
        self._write_skipped()
        return finished(self.state, self.settings)

    def _epoch(self, bar) -> None:
        sampler, processes = self.data.sampler, self.accelerator.num_processes
        sampler.epoch, sampler.skip = self.state.epoch, self.state.batches * self.data.batch_size * processes
        self._loaded = self.state.batches
        loaded = itertools.islice(self.data.loader, self.batches_per_epoch - self.state.batches)
        batches = usable(self._counted(loaded), self.skipped, strict=self.config.dataset.strict)
        for window in windows(batches, self.settings.accumulation_steps):
            values = self._step(window)
            self.state.batches = self._loaded
            bar.update()
            bar.set_postfix_str(f"loss {values['train/loss']:.3f}, lr {values['train/lr']:.1e}", refresh=False)
            if self.state.batches < self.batches_per_epoch:
                self._between_steps()
                if self._stopping or finished(self.state, self.settings):
                    return
        if self.state.step == 0:
            raise UserError(f"{self.config.dataset.train_ds.json_path}: none of its images could be read")
        self.state.epoch, self.state.batches = self.state.epoch + 1, 0
        self._between_steps()

    def _between_steps(self) -> None:
        """Validate, write a checkpoint or stop, as is due."""
        stop, checkpoint = self._agreed(self.stop, self.clock.due(self.state.step))
        if validation_due(self.state, self.settings) and not stop:
            self._validate()
            (stop,) = self._agreed(self.stop)
        self._stopping = stop
        if (stop or checkpoint) and self.state.as_dict() != self._saved:
            self.save()

    def _agreed(self, *questions: object) -> list[bool]:
        """Each question's answer: yes, where any process says so."""
        answers = [bool(question) for question in questions]
        if self.accelerator.num_processes == 1:
            return answers
        votes = torch.tensor(answers, dtype=torch.float32, device=self.accelerator.device)
        return (self.accelerator.reduce(votes, reduction="sum") > 0).tolist()

    def _counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """A batch without one usable picture makes no step, but it is behind us all the same."""
        for batch in batches:
            self._loaded += 1
            yield batch

    def _step(self, window: list[Batch]) -> dict[str, float]:
        step = self.stepper(window, self.state.step)
        self.state.step += step.taken
        self.state.images += step.images
        self.texts += step.texts
        for name, value in {**step.values, "steps": 1}.items():
            self.state.sums[name] = self.state.sums.get(name, 0) + value
        if step.taken and self.state.step % self.settings.log_every_n_steps == 0:
            gauges = {**gates(self.captioner), **self.speed.read(self.state.images, self.texts)}
            gauges["memory/peak_gigabytes"] = peak_memory(self.accelerator.device) / 1e9
            self.tracker.scalars({**step.values, **gauges}, self.state.step)
        return step.values

    # ------------------------------------------------------------------ what is written down

    def _validate(self) -> None:
        """Measure, and write a checkpoint; does nothing where a stop breaks it off."""
        started, random = time.monotonic(), random_states()
        try:
            metrics = self.validator.measure(self.captioner, self.accelerator, self.state.step, self.skipped)
        except Broken:
            restore_random_states(random)
            return
        steps = max(self.state.sums.pop("steps", 0), 1)
        epoch_means = {f"epoch/{name.split('/')[1]}": value / steps for name, value in self.state.sums.items()}
        self.tracker.scalars({**epoch_means, **metrics}, self.state.step)
        self.metrics, self.state.sums = metrics, {}
        monitor = self.settings.checkpoint_callback_params.monitor
        value = self._monitored(monitor, epoch_means)
        value = value if value is not None and math.isfinite(value) else None
        best, lower = self.state.best, monitor.endswith("loss")
        improved = value is not None and (best is None or (value < best if lower else value > best))
        self.state.validated, self.state.monitored = self.state.step, value
        self.state.best = value if improved else best
        self.state.bad_validations = 0 if improved else self.state.bad_validations + 1
        self.save()
        self.speed.pause(time.monotonic() - started)  # validation does not count as slow training

    def _monitored(self, monitor: str, epoch_means: dict[str, float]) -> float | None:
        if monitor == "train_loss":
            return epoch_means.get("epoch/loss")
        return self.metrics.get({"val_loss": "validation/loss"}.get(monitor, "validation/emotion_accuracy"))

    def save(self) -> None:
        """Write a checkpoint of where the training stands; at a validated step it may be among the best."""
        self.accelerator.wait_for_everyone()
        random = gather_object([random_states()])
        self.clock.restart()
        self.state.skipped = [[s.id, str(s.path), s.reason] for s in unique(self.skipped)]
        self._saved = self.state.as_dict()
        if not self.accelerator.is_main_process:
            return
        self.tracker.sync()
        info = {"state": self._saved, "metrics": self.metrics, **self.origin}
        if TEMPERATURE in self.metrics:  # as of the last validation, like the metrics
            info["emotion_temperature"] = self.metrics[TEMPERATURE]
        scaler, params = self.accelerator.scaler, self.settings.checkpoint_callback_params
        save_checkpoint(
            self.run,
            self.captioner,
            config=self.config,
            tokenizer=self.tokenizer,
            training={
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else {},
                "random": random,
            },
            info=info,
            monitored=self.state.monitored if self.state.validated == self.state.step else None,
            lower_is_better=params.monitor.endswith("loss"),
            keep=params.save_top_k,
            keep_last=params.keep_last,
        )

    def _write_skipped(self) -> None:
        if self.accelerator.is_main_process:
            write_skipped(self.skipped, self.run)
