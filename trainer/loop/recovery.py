"""Errors that end a training, each as one sentence with the command that resumes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from omegaconf import DictConfig
from torch import Tensor

from common.errors import UserError
from common.faults import first_sentence
from data.schema import Batch
from trainer.runs.record import RESUME, command
from trainer.runs.retention import entries
from trainer.runs.state import TrainState
from trainer.runtime.sharding import local_shard

MOST_IDS = 100  # listed in a message
OTHER_SETTINGS = {"resume_pretrained_state": "true", "trainer.overwrite": None, "trainer.resume": "null"}


class NotFinite(Exception):
    """A loss, gradient or weight is NaN or infinite; nothing was updated.

    Args:
        where: the losses ("caption, vad"), or "the weights".
        ids: of the images of the step; none where the fault was found between steps.
    """

    def __init__(self, what: str, *, where: str = "", ids: Sequence[str] = ()) -> None:
        super().__init__(what)
        self.what, self.where, self.ids = what, where, ids


def not_finite_step(
    what: str, losses: Mapping[str, Tensor], batches: Iterable[Batch], accelerator: Accelerator
) -> NotFinite:
    """Return the fault of a step with the losses and images of the processes in which a loss is not finite."""
    reports = [(not_finite(losses), [image for batch in batches for image in batch.ids])]
    if accelerator.num_processes > 1:
        reports = gather_object(reports)
        reports = [report for report in reports if report[0]] or reports
    where = dict.fromkeys(name for name, _ in reports)
    return NotFinite(what, where=", ".join(where), ids=[image for _, images in reports for image in images])


def not_finite(losses: Mapping[str, Tensor]) -> str:
    """Return the names of the losses that are NaN or infinite."""
    return ", ".join(name for name, value in losses.items() if not torch.isfinite(value))


def require_finite(
    weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, accelerator: Accelerator | None
) -> None:
    """Raise NotFinite if a weight or the optimizer's state is NaN or infinite: a checkpoint must not hold it.

    Args:
        accelerator: all its processes take part; None: this one alone.
    """
    tensors = [(name, "the weights", tensor) for name, tensor in weights.items()]
    for state in optimizer.state.values():
        tensors += [(f"the optimizer's {name}", "the state of the optimizer", value) for name, value in state.items()]
    bad = [(n, where) for n, where, t in tensors if isinstance(t, Tensor) and not local_shard(t).isfinite().all()]
    if accelerator is not None and accelerator.num_processes > 1:  # each may have a shard of its own
        bad = gather_object(bad[:1])
    for name, where in bad:
        raise NotFinite(f"{name} is no longer finite", where=where)


def explain_not_finite(fault: NotFinite, run: Path, state: TrainState, config: DictConfig, precision: str) -> UserError:
    """Name the step, the images and the losses, and the command that resumes from the last good checkpoint."""
    if fault.ids:
        more = f" and {len(fault.ids) - MOST_IDS} more" if len(fault.ids) > MOST_IDS else ""
        text = f"{fault.what} at step {state.step + 1}, in the batch of the images "
        text += f"{', '.join(fault.ids[:MOST_IDS])}{more}"
    else:
        text = f"{fault.what} after step {state.step}"
    text += f"; epoch {state.epoch + 1}" + (f", not finite: {fault.where}" if fault.where else "")
    text += "; nothing was updated" if fault.ids else "; no checkpoint was written"
    clip = config.trainer.clip_grad_norm
    changes = {"model.optimizer.lr": f"{config.model.optimizer.lr / 2:g}"}
    changes["trainer.clip_grad_norm"] = f"{1.0 if clip is None else clip / 2:g}"
    changes |= {} if precision == "no" else {"trainer.precision": "fp32"}
    settings = ", ".join(f"{key}={value}" for key, value in changes.items())
    found = entries(run / "checkpoints")
    if not found:
        return UserError(f"{text}, and there is no checkpoint yet: check these images, or begin with {settings}")
    earlier = [entry for entry in found if entry.step < state.step]  # no finite step was made with later weights
    folder = (earlier or found)[0].folder
    good = "is good" if earlier else "has finite weights, though no step was made with them"
    return UserError(
        f"{text}, and {folder} {good}: check these images, or resume from there with "
        f"{settings}:\n    {command({'pretrained_name': folder, **OTHER_SETTINGS, **changes})}"
    )


def explain_memory(error: Exception, config: DictConfig, *, training: bool) -> tuple[str, dict[str, object]]:
    """Return a sentence with the keys to lower after memory ran out, and changes that halve the batch.

    Args:
        training: False in validation.
    """
    split, place = ("train_ds", "training") if training else ("validation_ds", "validation")
    key, size = f"dataset.{split}.batch_size", config.dataset[split].batch_size
    changes: dict[str, object] = {key: size // 2} if size > 1 else {}
    others = "trainer.num_validation_captions or trainer.num_validation_images"
    if training:
        others = "dataset.texts_per_image or dataset.max_length, or set trainer.gradient_checkpointing=true"
        if changes:
            images = size * config.trainer.accumulation_steps
            changes["trainer.accumulation_steps"] = -(-images // changes[key])  # for steps of the same size
        elif not config.trainer.gradient_checkpointing:
            changes["trainer.gradient_checkpointing"] = "true"
    return f"memory ran out in {place} ({first_sentence(error)}): lower {key} (now {size}), {others}", changes


def interrupted(text: str, changes: Mapping[str, object], run: Path, state: TrainState) -> UserError:
    """Add to `text` the newest checkpoint, and the command that resumes from it with `changes` of its keys."""
    last = next(iter(entries(run / "checkpoints")), None)
    if last is None:
        return UserError(f"{text}. There is no checkpoint yet; to begin again:\n    {command({**RESUME, **changes})}")
    keys = {"pretrained_name": run, **OTHER_SETTINGS, **changes} if changes else RESUME
    lost = f", {state.step - last.step} steps before" if state.step > last.step else ""
    return UserError(f"{text}. {last.folder} holds the training{lost}; to resume:\n    {command(keys)}")
