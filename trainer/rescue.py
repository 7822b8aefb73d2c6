"""How a training ends when memory, a loader process or its numbers fail: what is told, and the command that goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from omegaconf import DictConfig
from torch import Tensor, nn

from data.schema import Batch, Skipped
from data.workers import deaths_wait
from errors import UserError
from faults import explained
from trainer.memory import Need, advice, attempt, free_memory, measure, release
from trainer.record import GOING_ON, command
from trainer.sharding import share
from trainer.shelf import entries
from trainer.state import TrainState, random_states, restore_random_states
from trainer.steps import NotFinite, Step, Stepper
from trainer.task import Measuring

MOST_IDS = 100  # that are listed
OTHER_SETTINGS = {"resume_pretrained_state": "true", "trainer.overwrite": None, "trainer.resume": "null"}


class Interrupted(Exception):
    """Something outside the training broke it off; what was trained so far is whole.

    Args:
        changes: keys, and the values under which it may go on.
    """

    def __init__(self, what: str, changes: Mapping[str, object] | None = None) -> None:
        super().__init__(what)
        self.changes = changes or {}


def no_memory(
    said: str, need: Need | None, batch: Batch | None, config: DictConfig, split: str, *, device: torch.device
) -> Interrupted:
    """Memory ran out in training or validation: which settings to lower, and to what.

    Args:
        said: by torch.
        need: what such a batch takes; None: it could not be measured.
        batch: of the batches in question the largest.
        split: "train_ds" | "validation_ds"
    """
    key, size, training = f"dataset.{split}.batch_size", config.dataset[split].batch_size, split == "train_ds"
    images = size if batch is None else len(batch.ids)
    text, fits = advice(need, images=images, free=free_memory(device), key=key, value=size)
    changes: dict[str, object] = {} if fits is None else {key: fits}
    others = "trainer.num_validation_captions and trainer.num_validation_images count too"
    if training:
        others = "dataset.texts_per_image and dataset.max_length count too"
        if changes:
            steps = -(-size * config.trainer.accumulation_steps // fits)
            changes["trainer.accumulation_steps"] = steps
            text += f" and trainer.accumulation_steps={steps} for steps of the same size"
    return Interrupted(
        f"memory ran out in {'training' if training else 'validation'} ({said}): {text}; {others}", changes
    )


def need_of_step(stepper: Stepper, batch: Batch) -> Need | None:
    """Of one batch, forwards and backwards; with the optimiser's states where there are none yet."""
    device = stepper.accelerator.device
    release(stepper.model, device)
    if stepper.accelerator.num_processes > 1:  # the others wait elsewhere
        return None
    trained = sum(parameter.nbytes for parameter in stepper.model.parameters() if parameter.requires_grad)
    states = 0 if stepper.optimizer.state else 2 * trained
    return measure(stepper.backward, batch.to(device), stepper.model, kept=states)


def need_of_validation(
    validator: Measuring, network: nn.Module, accelerator: Accelerator
) -> tuple[Need | None, Batch | None]:
    """Of the first batch, and that batch."""

    @torch.no_grad()
    def work(batch: Batch) -> None:
        with accelerator.autocast():
            validator.rehearse(network, batch)

    release(network, accelerator.device)
    if accelerator.num_processes > 1:  # the others wait elsewhere
        return None, None
    batch, _ = attempt(lambda: next(iter(validator.loader)))
    if batch is None:
        return None, None
    return measure(work, batch.to(accelerator.device), network), batch


def interrupted(said: str, changes: Mapping[str, object], run: Path, state: TrainState) -> UserError:
    """With the checkpoint that holds the most, and the command that goes on from there."""
    last = next(iter(entries(run / "checkpoints")), None)
    if last is None:
        return UserError(f"{said}. There is no checkpoint yet; to begin again:\n    {command({**GOING_ON, **changes})}")
    keys = {"pretrained_name": run, **OTHER_SETTINGS, **changes} if changes else GOING_ON
    lost = f", {state.step - last.step} steps before" if state.step > last.step else ""
    return UserError(f"{said}. {last.folder} holds the training{lost}; to go on:\n    {command(keys)}")


def stepped(stepper: Stepper, window: list[Batch], step: int, config: DictConfig) -> Step:
    """The optimiser step `step` over the batches of `window`.

    Raises:
        Interrupted: memory ran out; the random generators are where they were.
        NotFinite: see Stepper.
    """
    random = random_states()
    done, lack = attempt(lambda: stepper(window, step))
    if done is not None:
        return done
    restore_random_states(random)  # it is done again
    largest = max(window, key=lambda batch: len(batch.ids))
    need = need_of_step(stepper, largest)
    raise no_memory(lack, need, largest, config, "train_ds", device=stepper.accelerator.device)


def validated(
    validator: Measuring,
    network: nn.Module,
    accelerator: Accelerator,
    step: int,
    skipped: list[Skipped],
    config: DictConfig,
) -> dict[str, float]:
    """What `validator` measures; where it comes to nothing, the random generators are where they were.

    Raises:
        Broken: a stop was asked for.
        Interrupted: memory ran out.
        NotFinite: a loss that is no number.
    """
    random, metrics = random_states(), None
    try:
        metrics, lack = attempt(lambda: validator.measure(network, accelerator, step, skipped))
    finally:
        if metrics is None:
            restore_random_states(random)  # it is done again
    if metrics is None:
        need, batch = need_of_validation(validator, network, accelerator)
        raise no_memory(lack, need, batch, config, "validation_ds", device=accelerator.device)
    if not math.isfinite(metrics["validation/loss"]):
        where = ", ".join(name for name, value in metrics.items() if "/loss_" in name and not math.isfinite(value))
        raise NotFinite("the loss of the validation is no number", where=where)
    return metrics


def rescued(save: Callable[[], None]) -> None:
    """Write a checkpoint if one can be written; what ends the training is told elsewhere."""
    try:
        with deaths_wait(), suppress(UserError, NotFinite):
            save()
    except RuntimeError as error:
        if explained(error) is None:  # else a loader process whose broken pipe was noticed before its death
            raise


def not_finite(fault: NotFinite, run: Path, state: TrainState, config: DictConfig, precision: str) -> UserError:
    """Which step, which images, which losses, and how to go on from the last checkpoint, which is good."""
    said = f"{fault.what} at step {state.step + 1}" if fault.ids else f"{fault.what} after step {state.step}"
    if fault.ids:
        more = f" and {len(fault.ids) - MOST_IDS} more" if len(fault.ids) > MOST_IDS else ""
        said += f", in the batch of the images {', '.join(fault.ids[:MOST_IDS])}{more}"
    said += f"; epoch {state.epoch + 1}" + (f", not finite: {fault.where}" if fault.where else "")
    kept = "nothing was updated" if fault.ids else "nothing of that was kept"
    changes = _gentler(config, precision)
    settings = ", ".join(f"{key}={value}" for key, value in changes.items())
    found = entries(run / "checkpoints")
    tried = [entry for entry in found if entry.step < state.step]  # of weights that made a step, numbers came out
    if not found:
        return UserError(
            f"{said}; {kept}, and there is no checkpoint yet: look at these images, or begin with {settings}"
        )
    folder = (tried or found)[0].folder
    good = "is good" if tried else "has finite weights, though no step was made with them"
    return UserError(
        f"{said}; {kept}, and {folder} {good}: look at these images, or go on from there with "
        f"{settings}:\n    {command({'pretrained_name': folder, **OTHER_SETTINGS, **changes})}"
    )


def _gentler(config: DictConfig, precision: str) -> dict[str, Any]:
    clip = config.trainer.clip_grad_norm
    changes = {"model.optimizer.lr": f"{config.model.optimizer.lr / 2:g}"}
    changes["trainer.clip_grad_norm"] = f"{1.0 if clip is None else clip / 2:g}"
    return changes if precision == "no" else {**changes, "trainer.precision": "fp32"}


def require_finite(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
    """Raises NotFinite: a weight, or what the optimiser knows of one, is no number and must not be kept."""
    found = [_not_finite(weights, optimizer)]
    if accelerator.num_processes > 1:  # each may have a share of its own
        found = gather_object(found)
    for fault in found:
        if fault is not None:
            raise NotFinite(fault[0], where=fault[1])


def _not_finite(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> tuple[str, str] | None:
    for name, tensor in weights.items():
        if not torch.isfinite(share(tensor)).all():
            return f"{name} is no longer finite", "the weights"
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor) and not torch.isfinite(share(value)).all():
                return f"the optimiser's {name} is no longer finite", "the state of the optimiser"
    return None
