"""Checkpoints: the trained weights, what resuming needs, and their provenance. None of the files is a pickle.

RUN/checkpoints/index.json            {"last": "step-00000200", "best": [{"name": …, "value": …}, …]}
RUN/checkpoints/step-00000200/        model.safetensors   trained weights (and random frozen ones)
                                      training.pt         optimizer, loss scaler, random states (weights_only)
                                      checkpoint.json     progress, metrics, versions, git commit
                                      config.yaml         the resolved configuration
                                      tokenizer.json      the tokenizer; tokenizer_config.json: its special tokens,
                                                          unless data/tokenizer.py finds the same without it
                                      SHA256SUMS          checksums of these files
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from common.config.files import load_stored
from common.config.rules import RATINGS, VLM
from common.errors import UserError
from common.faults import gigabytes, way_out, why_not_written
from common.files import WriteError, write_folder, write_json
from common.reading import expand_user, read_json
from model.build import own_state
from model.captioner import Captioner
from model.decoding.int8 import from_int8
from model.weights.plain import read_torch
from model.weights.tensor_files import ANOTHER_CHECKPOINT, read_tensors
from trainer.runs.console import print_status
from trainer.runs.hub import HUB, download_checkpoint, repository_of
from trainer.runs.provenance import provenance
from trainer.runs.retention import SUMS, best_first, entries, find_damage, folder_name, retain, write_sums
from trainer.runs.state import TrainState
from trainer.runs.task import Task

TRAINING, TOKENIZER = "training.pt", "tokenizer.json"
WITHOUT_TEXTS = ("teacher", "student", RATINGS)  # stages that train a network of pictures alone, without tokenizer


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk, with its small files read."""

    folder: Path
    config: DictConfig
    info: dict[str, Any]
    repository: str | None = None  # ORG/NAME, if the folder is in the hub's cache

    @property
    def run(self) -> Path:
        """Folder of the run, or of the checkpoint if it was copied out of one."""
        return self.folder.parent.parent if self.folder.parent.name == "checkpoints" else self.folder

    @property
    def tokenizer(self) -> Path:
        return self.folder / TOKENIZER


def find_checkpoint(
    name: str | Path, exp_dir: Path, *, prefer: str = "best", key: str = "pretrained_name", with_ratings: bool = False
) -> Checkpoint:
    """Return a captioner's checkpoint by its folder, its run's folder, or the run's name under trainer.exp_dir.

    Or by hf-hub:ORG/NAME, see trainer.runs.hub.

    Args:
        prefer: of a run, the "best" checkpoint, for its weights, or the "last", to resume its training.
        key: of the configuration, for the message of an error.
        with_ratings: a run of stage=ratings may be named too.

    Raises:
        UserError: there is none, none that is valid, that of a classifier, or it cannot be downloaded.
    """
    repository = repository_of(name) if str(name).startswith(HUB) else None
    candidates = [expand_user(name), exp_dir / name] if repository is None else [download_checkpoint(name, key=key)]
    for path in candidates:
        folder = path.parent if path.name == "model.safetensors" else path
        if (folder / "model.safetensors").is_file():
            checkpoint = read_checkpoint(folder, training=prefer == "last")
        else:
            checkpoint = find_in_run(folder, prefer=prefer)
        if checkpoint is None:
            continue
        if checkpoint.tokenizer.exists() or (with_ratings and checkpoint.config.get("stage") == RATINGS):
            return replace(checkpoint, repository=repository)
        what = "head" if checkpoint.config.stage == RATINGS else "classifier"
        raise UserError(
            f"{checkpoint.folder} is of a run of stage={checkpoint.config.stage}, a {what} without texts: name a "
            "captioner's run, or one of stage=student or stage=gate"
        )
    for path in candidates:
        if published := _published(path):
            kind, found = published
            command = f"python -m model.checkpoint_import {kind} {found} --out {exp_dir / found.stem}"
            raise UserError(f"{key}={name}: {path} is not a run; import it first: {command}")
    places = " nor ".join(map(str, dict.fromkeys(candidates)))
    raise UserError(f"{key}={name}: there is no checkpoint in {places}; give a run or checkpoint folder")


def _published(path: Path) -> tuple[str, Path] | None:
    """Return the arguments of model.checkpoint_import for published weights at, in or just above the path."""
    folders = (path, *path.glob("nle_model_*"), *path.glob("*/nle_model_*"))
    if decoder := next(filter(_is_decoder, folders), None):
        return "sevlm", decoder.parent
    files = (path, path.with_name(f"{path.name}.pt"), *path.glob("*.pt"))
    found = next((file for file in files if file.is_file() and file.suffix in (".pt", ".pth")), None)
    return found and ("perceiver", found)


def _is_decoder(path: Path) -> bool:
    return path.is_dir() and path.name.startswith("nle_model_")


def is_vlm(checkpoint: Checkpoint) -> bool:
    """Return whether the checkpoint is a VLM, with heads or without."""
    return checkpoint.config.get("stage") == VLM


def find_in_run(run: Path, *, prefer: str) -> Checkpoint | None:
    """Return the best or the last valid checkpoint of a run, with a warning if others are damaged; None if it has none.

    Raises:
        UserError: none of them is valid; describes the damage of the first choice.
    """
    found = entries(run / "checkpoints")
    damaged = [entry for entry in found if not entry.readable]  # tried first, for the warning
    chosen = [*damaged, *best_first(found), *found] if prefer == "best" else found
    faults: list[UserError] = []
    for folder in dict.fromkeys(entry.folder for entry in chosen):
        try:
            checkpoint = read_checkpoint(folder, training=prefer == "last")
        except UserError as error:
            faults.append(error)
            continue
        for fault in faults:
            print_status(f"warning: {fault}; {folder} is used instead")
        return checkpoint
    if faults:
        raise faults[0]
    return None


def best_of(run: Path) -> Checkpoint:
    """Raise UserError if the run has no checkpoint, or none that is valid."""
    if found := find_in_run(run, prefer="best"):
        return found
    raise UserError(f"{run} has no checkpoint")


def read_checkpoint(folder: Path, *, training: bool) -> Checkpoint:
    """Check and read a checkpoint.

    Args:
        training: also check the file that resuming needs.

    Raises:
        UserError: a file is missing, changed or not readable.
    """
    for needed in ("config.yaml", "checkpoint.json"):
        if not (folder / needed).exists():
            raise UserError(f"{folder} is an incomplete checkpoint: {needed} is missing")
    if fault := find_damage(folder, ignore=() if training else (TRAINING,)):
        raise UserError(f"{fault}: use another checkpoint, or delete {SUMS} if you changed the file yourself")
    config, path = load_stored(folder / "config.yaml"), folder / "checkpoint.json"
    if missing := {"name", "seed", "model", "dataset", "trainer"} - set(config):
        raise UserError(f"{folder / 'config.yaml'} is not a run's configuration: {min(missing)} is missing")
    if config.get("stage") not in WITHOUT_TEXTS and not (folder / TOKENIZER).exists():
        raise UserError(f"{folder} is an incomplete checkpoint: {TOKENIZER} is missing")
    try:
        info = read_json(path)
        info["state"] = TrainState.from_dict(info["state"]).as_dict()
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read, or has no valid state of a training ({error})") from error
    return Checkpoint(folder, config, info)


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
    discarded: Collection[int] = (),
) -> Path:
    """Write RUN/checkpoints/step-N, and only then remove those that are neither best nor last.

    Args:
        weights: result of task.state(), if the processes had to gather it.
        training: optimizer, scaler and random states: tensors and plain values only; None: imported weights.
        info: progress and metrics, as JSON; its "state" holds the step.
        monitored: value that decides the best `keep`; None: this checkpoint is not among them.
        discarded: steps whose checkpoints are removed, as training went back before them.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    root, step = run / "checkpoints", info["state"]["step"]
    folder = root / folder_name(step)
    finite = monitored is not None and math.isfinite(monitored)
    value = {"value": monitored if finite else None, "lower_is_better": lower_is_better}
    weights = task.state() if weights is None else weights
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}

    def fill(folder: Path) -> None:
        save_file(state, folder / "model.safetensors")
        if training is not None:
            with (folder / TRAINING).open("wb") as file:  # torch hides the reason if it cannot write a path
                torch.save(training, file)
        write_json(folder / "checkpoint.json", {**info, "monitored": value, **provenance()})
        OmegaConf.save(config, folder / "config.yaml")
        task.write(folder)
        write_sums(folder)

    try:
        write_folder(folder, fill)
        retain(root, step, best=keep, last=keep_last, discarded=discarded)
    except (OSError, SafetensorError, RuntimeError) as error:
        direct = isinstance(error, OSError | SafetensorError) and not isinstance(error, WriteError)
        cause = error if direct else error.__context__  # torch raises another error while it closes the file
        if not isinstance(cause, OSError | SafetensorError):
            raise
        size = gigabytes(sum(t.nbytes for t in tree_leaves([state, training]) if isinstance(t, Tensor)))
        raise UserError(
            f"{folder} cannot be written ({why_not_written(folder, cause)}; it takes {size}): {way_out(cause)} and "
            "resume with trainer.resume=auto; the earlier checkpoints are intact"
        ) from error
    return folder


def load_weights(captioner: Captioner, folder: Path) -> bool:
    """Load a checkpoint's weights into the captioner; see load_network."""
    return load_network(captioner, own_state(captioner), folder / "model.safetensors")


def load_network(network: nn.Module, expected: Mapping[str, Tensor], path: Path) -> bool:
    """Load the weights of a file, which must have the names and shapes of `expected`, into the network.

    Returns:
        Whether the file has weights in 8 bits, see model.decoding.int8; the network has their values in float32.

    Raises:
        UserError: an unreadable file, or weights of another architecture; names the first difference.
    """
    read = read_tensors(path, way_out=ANOTHER_CHECKPOINT)
    try:
        stored = from_int8(read)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); {ANOTHER_CHECKPOINT}") from error
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
    return len(stored) < len(read)


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"


def load_training(folder: Path) -> dict[str, Any]:
    """Return the optimizer, scaler and random states of a checkpoint."""
    path = folder / TRAINING
    if not path.is_file():
        raise UserError(f"{folder} holds weights without the state of a training: remove resume_pretrained_state")
    try:
        return read_torch(path, mapped=False)
    except UserError as error:
        raise UserError(f"{error}; its training cannot be resumed") from error
