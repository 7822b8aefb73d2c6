"""Errors that end a training, each as one sentence with the command that goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from omegaconf import DictConfig
from torch import Tensor

from common.errors import UserError
from common.faults import first_line
from data.schema import Batch
from trainer.runs.record import GOING_ON, command
from trainer.runs.retention import entries
from trainer.runs.state import TrainState
from trainer.runtime.sharding import share

MOST_IDS = 100  # that are listed
OTHER_SETTINGS = {"resume_pretrained_state": "true", "trainer.overwrite": None, "trainer.resume": "null"}


class NotFinite(Exception):
    """A loss, gradient or weight is NaN or infinite; nothing was updated.

    Args:
        where: the parts of the loss ("caption, vad"), or "the weights".
        batches: those of the step; empty where the fault was found between steps.
    """

    def __init__(self, what: str, *, where: str = "", batches: Iterable[Batch] = ()) -> None:
        super().__init__(what)
        self.what, self.where = what, where
        self.ids = [image for batch in batches for image in batch.ids]


def not_finite(losses: Mapping[str, Tensor]) -> str:
    """The names of those that are NaN or infinite."""
    return ", ".join(name for name, value in losses.items() if not torch.isfinite(value))


def require_finite(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
    """Raise NotFinite if a weight or the optimizer's state is NaN or infinite: a checkpoint must not hold it."""
    found = [_first_not_finite(weights, optimizer)]
    if accelerator.num_processes > 1:  # each may have a share of its own
        found = gather_object(found)
    for fault in filter(None, found):
        raise NotFinite(fault[0], where=fault[1])


def _first_not_finite(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> tuple[str, str] | None:
    for name, tensor in weights.items():
        if not torch.isfinite(share(tensor)).all():
            return f"{name} is no longer finite", "the weights"
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor) and not torch.isfinite(share(value)).all():
                return f"the optimizer's {name} is no longer finite", "the state of the optimizer"
    return None


def explain_not_finite(fault: NotFinite, run: Path, state: TrainState, config: DictConfig, precision: str) -> UserError:
    """Name the step, the images and the losses, and the command that goes on from the last good checkpoint."""
    said = f"{fault.what} at step {state.step + 1}" if fault.ids else f"{fault.what} after step {state.step}"
    if fault.ids:
        more = f" and {len(fault.ids) - MOST_IDS} more" if len(fault.ids) > MOST_IDS else ""
        said += f", in the batch of the images {', '.join(fault.ids[:MOST_IDS])}{more}"
    said += f"; epoch {state.epoch + 1}" + (f", not finite: {fault.where}" if fault.where else "")
    said += "; nothing was updated" if fault.ids else "; nothing of that was kept"
    changes = _gentler(config, precision)
    settings = ", ".join(f"{key}={value}" for key, value in changes.items())
    found = entries(run / "checkpoints")
    if not found:
        return UserError(f"{said}, and there is no checkpoint yet: look at these images, or begin with {settings}")
    tried = [entry for entry in found if entry.step < state.step]  # later weights have not made a finite step
    folder = (tried or found)[0].folder
    good = "is good" if tried else "has finite weights, though no step was made with them"
    return UserError(
        f"{said}, and {folder} {good}: look at these images, or go on from there with "
        f"{settings}:\n    {command({'pretrained_name': folder, **OTHER_SETTINGS, **changes})}"
    )


def _gentler(config: DictConfig, precision: str) -> dict[str, Any]:
    clip = config.trainer.clip_grad_norm
    changes = {"model.optimizer.lr": f"{config.model.optimizer.lr / 2:g}"}
    changes["trainer.clip_grad_norm"] = f"{1.0 if clip is None else clip / 2:g}"
    return changes if precision == "no" else {**changes, "trainer.precision": "fp32"}


def explain_memory(error: Exception, config: DictConfig, *, training: bool) -> tuple[str, dict[str, object]]:
    """Name the keys to lower after memory ran out, and return half a batch as the change to go on with.

    Args:
        training: in a training step, else in validation.
    """
    split, place = ("train_ds", "training") if training else ("validation_ds", "validation")
    key, size = f"dataset.{split}.batch_size", config.dataset[split].batch_size
    changes: dict[str, object] = {key: size // 2} if size > 1 else {}
    if training:
        others = "dataset.texts_per_image or dataset.max_length, or set trainer.gradient_checkpointing=true"
        if changes:
            images = size * config.trainer.accumulation_steps
            changes["trainer.accumulation_steps"] = -(-images // changes[key])  # for steps of the same size
        elif not config.trainer.gradient_checkpointing:
            changes["trainer.gradient_checkpointing"] = "true"
    else:
        others = "trainer.num_validation_captions or trainer.num_validation_images"
    return f"memory ran out in {place} ({first_line(error)}): lower {key} (now {size}), {others}", changes


def interrupted(said: str, changes: Mapping[str, object], run: Path, state: TrainState) -> UserError:
    """Name the checkpoint that holds the most, and the command that goes on from it with `changes` of its keys."""
    last = next(iter(entries(run / "checkpoints")), None)
    if last is None:
        return UserError(f"{said}. There is no checkpoint yet; to begin again:\n    {command({**GOING_ON, **changes})}")
    keys = {"pretrained_name": run, **OTHER_SETTINGS, **changes} if changes else GOING_ON
    lost = f", {state.step - last.step} steps before" if state.step > last.step else ""
    return UserError(f"{said}. {last.folder} holds the training{lost}; to go on:\n    {command(keys)}")
