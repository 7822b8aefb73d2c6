"""Checkpoints: the trained weights, what resuming needs, and how all of it came to be. Nothing here is a pickle.

RUN/checkpoints/index.json            {"last": "step-00000200", "best": [{"name": …, "value": …}, …]}
RUN/checkpoints/step-00000200/        model.safetensors   trained weights (and random frozen ones)
                                      training.pt         optimiser, loss scaler, random states (weights_only)
                                      checkpoint.json     progress, metrics, versions, git commit
                                      config.yaml         the resolved configuration
                                      tokenizer.json      the tokenizer
                                      SHA256SUMS          checksums of these files
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from common.config.files import load_stored
from common.errors import UserError
from common.faults import gigabytes, way_out, why_not_written
from common.files import WriteError, write_folder, write_json
from common.reading import expanded, read_json
from model.build import own_state
from model.captioner import Captioner
from model.weights.plain import read_torch
from model.weights.tensor_files import ANOTHER_CHECKPOINT, read_tensors
from trainer.runs.provenance import provenance
from trainer.runs.retention import SUMS, best_first, damage, entries, folder_name, retain, write_sums
from trainer.runs.state import TrainState
from trainer.runs.task import Task

TRAINING, TOKENIZER = "training.pt", "tokenizer.json"
WITHOUT_TEXTS = ("teacher", "student")  # stages whose trainings are of a classifier; a captioner beside it has texts


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk, with its small files read."""

    folder: Path
    config: DictConfig
    info: dict[str, Any]

    @property
    def run(self) -> Path:
        """Folder of the run, or the checkpoint itself where it was copied out of one."""
        return self.folder.parent.parent if self.folder.parent.name == "checkpoints" else self.folder

    @property
    def tokenizer(self) -> Path:
        return self.folder / TOKENIZER


def find_checkpoint(name: str, exp_dir: Path, *, prefer: str = "best") -> Checkpoint:
    """The checkpoint that the user means: its folder, its run's folder, or the run's name under trainer.exp_dir.

    Args:
        prefer: of a run, the "best" checkpoint, for its weights, or the "last", to go on with its training.

    Raises:
        UserError: nothing there, or nothing that is whole; says what was looked at.
    """
    candidates = [expanded(name), exp_dir / name]
    for path in candidates:
        folder = path.parent if path.name == "model.safetensors" else path
        if (folder / "model.safetensors").is_file():
            return _captioner(read_checkpoint(folder, training=prefer == "last"))
        if found := find_in_run(folder, prefer=prefer):
            return _captioner(found)
    looked = " nor ".join(str(path) for path in candidates)
    raise UserError(f"pretrained_name={name}: there is no checkpoint in {looked}; give a run or checkpoint folder")


def _captioner(checkpoint: Checkpoint) -> Checkpoint:
    """Raises UserError: it is a classifier's."""
    if not checkpoint.tokenizer.exists():
        raise UserError(
            f"{checkpoint.folder} is of a run of stage={checkpoint.config.stage}, a classifier that writes nothing: "
            "name a captioner's run, or what stage=student or stage=gate made of one"
        )
    return checkpoint


def find_in_run(run: Path, *, prefer: str) -> Checkpoint | None:
    """The best or the last checkpoint of a run that is whole, with a warning where it is not the first choice.

    Returns:
        None where the run has no checkpoint.

    Raises:
        UserError: none of them is whole; says what is wrong with the first choice.
    """
    found = entries(run / "checkpoints")
    damaged = [entry for entry in found if not entry.readable]  # tried first, for the warning
    chosen = [*damaged, *best_first(found), *found] if prefer == "best" else found
    faults: dict[Path, UserError] = {}
    for folder in dict.fromkeys(entry.folder for entry in chosen):
        try:
            checkpoint = read_checkpoint(folder, training=prefer == "last")
        except UserError as error:
            faults[folder] = error
            continue
        for fault in faults.values():
            print(f"warning: {fault}; {folder} is used instead", file=sys.stderr)
        return checkpoint
    for fault in faults.values():
        raise fault
    return None


def best_of(run: Path) -> Checkpoint:
    """Raises UserError: the run has no checkpoint, or none that is whole."""
    found = find_in_run(run, prefer="best")
    if found is None:
        raise UserError(f"{run} has no checkpoint")
    return found


def read_checkpoint(folder: Path, *, training: bool) -> Checkpoint:
    """Args:
        training: whether the state of its training will be needed too.

    Raises:
        UserError: a file is missing, not as it was written, or not readable.
    """
    for needed in ("config.yaml", "checkpoint.json"):
        if not (folder / needed).exists():
            raise UserError(f"{folder} is not a whole checkpoint: {needed} is missing")
    fault = damage(folder, leave_out=() if training else (TRAINING,))
    if fault is not None:
        raise UserError(f"{fault}: take another checkpoint, or delete {SUMS} if you changed the file yourself")
    config, info = _read_config(folder / "config.yaml"), _read_json(folder / "checkpoint.json")
    if config.get("stage") not in WITHOUT_TEXTS and not (folder / TOKENIZER).exists():
        raise UserError(f"{folder} is not a whole checkpoint: {TOKENIZER} is missing")
    try:
        info["state"] = TrainState.from_dict(info["state"]).as_dict()
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / 'checkpoint.json'} does not say how far the training was; take another checkpoint"
        ) from error
    return Checkpoint(folder, config, info)


def _read_config(path: Path) -> DictConfig:
    config = load_stored(path)
    missing = {"name", "seed", "model", "dataset", "trainer"} - set(config)
    if missing:
        raise UserError(f"{path} is not a run's configuration: it has no {sorted(missing)[0]}")
    return config


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error


def save_checkpoint(
    run: Path,
    task: Task,
    *,
    config: DictConfig,
    weights: Mapping[str, Tensor] | None = None,
    training: dict[str, Any] | None,
    info: dict[str, Any],
    monitored: float | None,
    lower_is_better: bool,
    keep: int,
    keep_last: int = 1,
    given_up: Collection[int] = (),
) -> Path:
    """Write RUN/checkpoints/step-N, and only then remove what neither is best nor last.

    Args:
        weights: as task.state() gives them; needed where the processes have to gather them.
        training: optimiser, scaler and random states: tensors and plain values only; None: weights that were imported.
        info: progress and metrics, as JSON; its "state" holds the step.
        monitored: value that decides the best `keep`; None = this one is not a candidate.
        given_up: steps whose checkpoints are of a course that was left.

    Raises:
        UserError: the disk is full, or otherwise takes no more.
    """
    root, step = run / "checkpoints", info["state"]["step"]
    finite = monitored is not None and math.isfinite(monitored)
    value = {"value": monitored if finite else None, "lower_is_better": lower_is_better}

    weights = task.state() if weights is None else weights
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}

    def fill(folder: Path) -> None:
        save_file(state, folder / "model.safetensors")
        if training is not None:
            with (folder / TRAINING).open("wb") as file:  # of a path, torch does not say why it cannot be written
                torch.save(training, file)
        write_json(folder / "checkpoint.json", {**info, "monitored": value, **provenance()})
        OmegaConf.save(config, folder / "config.yaml")
        task.write(folder)
        write_sums(folder)

    try:
        write_folder(root / folder_name(step), fill)
        retain(root, step, best=keep, last=keep_last, given_up=given_up)
    except (OSError, SafetensorError, RuntimeError) as error:
        told = isinstance(error, OSError | SafetensorError) and not isinstance(error, WriteError)
        cause = error if told else error.__context__  # torch raises another error while it closes the file
        if not isinstance(cause, OSError | SafetensorError):
            raise
        folder, size = root / folder_name(step), gigabytes(_bytes([state, training]))
        raise UserError(
            f"{folder} cannot be written ({why_not_written(folder, cause)}; it takes {size}): {way_out(cause)} and go "
            "on with trainer.resume=auto; the checkpoints before it are as they were"
        ) from error
    return root / folder_name(step)


def _bytes(value: Any) -> int:
    """Of all tensors in it."""
    if isinstance(value, Tensor):
        return value.nbytes
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(_bytes, values))


def load_weights(captioner: Captioner, folder: Path) -> None:
    """Fill the captioner with a checkpoint's weights; see load_state."""
    load_state(captioner, own_state(captioner), folder / "model.safetensors")


def load_state(network: nn.Module, expected: Mapping[str, Tensor], path: Path) -> None:
    """Fill the network with the weights of a file.

    Args:
        expected: what must be in it.

    Raises:
        UserError: an unreadable file, or weights of another architecture; names the first that differs.
    """
    stored = read_tensors(path, way_out=ANOTHER_CHECKPOINT)
    problems = [f"{key} is missing" for key in expected if key not in stored]
    problems += [f"{key} is not part of this model" for key in stored if key not in expected]
    problems += [
        f"{key} is {_shape(stored[key])} there and {_shape(expected[key])} here"
        for key in expected
        if key in stored and stored[key].shape != expected[key].shape
    ]
    if problems:
        raise UserError(
            f"{path} holds another architecture ({len(problems)} differences, the first: {problems[0]}); "
            "use the model section of the configuration that it was trained with"
        )
    network.load_state_dict(stored, strict=False)


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"


def load_training(folder: Path) -> dict[str, Any]:
    """Optimiser, scaler and random states of a checkpoint."""
    path = folder / TRAINING
    if not path.is_file():
        raise UserError(f"{folder} holds weights without the state of a training: leave resume_pretrained_state out")
    try:
        return read_torch(path, mapped=False)
    except UserError as error:
        raise UserError(f"{error}; its training cannot go on") from error
