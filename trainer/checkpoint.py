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

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from errors import UserError
from files import write_folder, write_json
from model.build import own_state
from model.captioner import Captioner
from trainer.provenance import provenance
from trainer.shelf import SUMS, best_first, damage, entries, folder_name, retain, write_sums

TRAINING = "training.pt"


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
        return self.folder / "tokenizer.json"


def find_checkpoint(name: str, exp_dir: Path, *, prefer: str = "best") -> Checkpoint:
    """The checkpoint that the user means: its folder, its run's folder, or the run's name under trainer.exp_dir.

    Args:
        prefer: of a run, the "best" checkpoint, for its weights, or the "last", to go on with its training.

    Raises:
        UserError: nothing there, or nothing that is whole; says what was looked at.
    """
    candidates = [Path(name).expanduser(), exp_dir / name]
    for path in candidates:
        folder = path.parent if path.name == "model.safetensors" else path
        if (folder / "model.safetensors").is_file():
            return read_checkpoint(folder, training=prefer == "last")
        if found := find_in_run(folder, prefer=prefer):
            return found
    looked = " nor ".join(str(path) for path in candidates)
    raise UserError(f"pretrained_name={name}: there is no checkpoint in {looked}; give a run or checkpoint folder")


def find_in_run(run: Path, *, prefer: str) -> Checkpoint | None:
    """The best or the last checkpoint of a run that is whole, with a warning where it is not the first choice.

    Returns:
        None where the run has no checkpoint.

    Raises:
        UserError: none of them is whole; says what is wrong with the first choice.
    """
    found = entries(run / "checkpoints")
    chosen = [*best_first(found), *found] if prefer == "best" else found
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


def read_checkpoint(folder: Path, *, training: bool) -> Checkpoint:
    """Args:
        training: whether the state of its training will be needed too.

    Raises:
        UserError: a file is missing, not as it was written, or not readable.
    """
    for needed in ("config.yaml", "checkpoint.json", "tokenizer.json"):
        if not (folder / needed).exists():
            raise UserError(f"{folder} is not a whole checkpoint: {needed} is missing")
    fault = damage(folder, leave_out=() if training else (TRAINING,))
    if fault is not None:
        raise UserError(f"{fault}: take another checkpoint, or delete {SUMS} if you changed the file yourself")
    config, info = _read_config(folder / "config.yaml"), _read_json(folder / "checkpoint.json")
    if not isinstance(info, dict) or "state" not in info:
        raise UserError(f"{folder / 'checkpoint.json'} does not say how far the training was; take another checkpoint")
    return Checkpoint(folder, config, info)


def _read_config(path: Path) -> DictConfig:
    try:
        config = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}); take another checkpoint") from error
    missing = {"name", "seed", "model", "dataset", "trainer"} - set(config if isinstance(config, DictConfig) else ())
    if missing:
        raise UserError(f"{path} is not a run's configuration: it has no {sorted(missing)[0]}")
    return config


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error


def save_checkpoint(
    run: Path,
    captioner: Captioner,
    *,
    config: DictConfig,
    tokenizer,
    training: dict[str, Any] | None,
    info: dict[str, Any],
    monitored: float | None,
    lower_is_better: bool,
    keep: int,
    keep_last: int = 1,
) -> Path:
    """Write RUN/checkpoints/step-N, and only then remove what neither is best nor last.

    Args:
        training: optimiser, scaler and random states: tensors and plain values only; None: weights that were imported.
        info: progress and metrics, as JSON; its "state" holds the step.
        monitored: value that decides the best `keep`; None = this one is not a candidate.

    Raises:
        UserError: the disk is full, or otherwise takes no more.
    """
    root, step = run / "checkpoints", info["state"]["step"]
    finite = monitored is not None and math.isfinite(monitored)
    value = {"value": monitored if finite else None, "lower_is_better": lower_is_better}

    def fill(folder: Path) -> None:
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in own_state(captioner).items()}
        save_file(state, folder / "model.safetensors")
        if training is not None:
            torch.save(training, folder / TRAINING)
        write_json(folder / "checkpoint.json", {**info, "monitored": value, **provenance()})
        OmegaConf.save(config, folder / "config.yaml")
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        write_sums(folder)

    try:
        write_folder(root / folder_name(step), fill)
        retain(root, step, best=keep, last=keep_last)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch has no kind of its own for a full disk
        reason = " ".join(str(error).split())
        raise UserError(
            f"{root / folder_name(step)} cannot be written ({reason}); make room and go on with trainer.resume=auto: "
            "the checkpoints before it are as they were"
        ) from error
    return root / folder_name(step)


def load_weights(captioner: Captioner, folder: Path) -> None:
    """Fill the network with a checkpoint's weights.

    Raises:
        UserError: an unreadable file, or weights of another architecture; names the first that differs.
    """
    path = folder / "model.safetensors"
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); take another checkpoint of the run") from error
    expected = own_state(captioner)
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
    captioner.load_state_dict(stored, strict=False)


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"


def load_training(folder: Path) -> dict[str, Any]:
    """Optimiser, scaler and random states of a checkpoint."""
    path = folder / TRAINING
    if not path.is_file():
        raise UserError(f"{folder} holds weights without the state of a training: leave resume_pretrained_state out")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise UserError(f"{path} cannot be read, so its training cannot go on ({type(error).__name__})") from error
