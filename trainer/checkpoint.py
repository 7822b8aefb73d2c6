"""Checkpoints: the trained weights, what resuming needs, and how all of it came to be. Nothing here is a pickle.

RUN/checkpoints/index.json            {"last": "step-00000200", "best": [{"name": …, "value": …}, …]}
RUN/checkpoints/step-00000200/        model.safetensors   trained weights (and random frozen ones)
                                      training.pt         optimiser, loss scaler, random states (weights_only)
                                      checkpoint.json     progress, metrics, versions, git commit
                                      config.yaml         the resolved configuration
                                      tokenizer/          the tokenizer's files
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
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

PACKAGES = ("torch", "transformers", "open_clip_torch", "accelerate", "hydra-core")


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

    Raises:
        UserError: nothing there; says what was looked at.
    """
    candidates = [Path(name).expanduser(), exp_dir / name]
    for path in candidates:
        folder = path.parent if path.name == "model.safetensors" else path
        index = folder / "checkpoints" / "index.json"
        if (folder / "model.safetensors").is_file():
            return _read(folder)
        if index.is_file():
            try:
                entries = _read_json(index)
                best = [entry["name"] for entry in entries["best"]] if prefer == "best" else []
                return _read(index.parent / [*best, entries["last"]][0])
            except (KeyError, TypeError) as error:
                raise UserError(f"{index} is not the index of a run's checkpoints; name one of them instead") from error
    looked = " nor ".join(str(path) for path in candidates)
    raise UserError(f"pretrained_name={name}: there is no checkpoint in {looked}; give a run or checkpoint folder")


def _read(folder: Path) -> Checkpoint:
    for needed in ("config.yaml", "checkpoint.json", "tokenizer.json"):
        if not (folder / needed).exists():
            raise UserError(f"{folder} is not a whole checkpoint: {needed} is missing")
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
    training: dict[str, Any],
    info: dict[str, Any],
    monitored: float | None,
    lower_is_better: bool,
    keep: int,
) -> Path:
    """Write RUN/checkpoints/step-N, point the index at it, and remove what neither is best nor last.

    Args:
        training: optimiser, scaler and random states: tensors and plain values only.
        info: progress and metrics, as JSON; its "state" holds the step.
        monitored: value that decides the best `keep`; None = this one is not a candidate.
    """
    root = run / "checkpoints"
    name = f"step-{info['state']['step']:08d}"

    def fill(folder: Path) -> None:
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in own_state(captioner).items()}
        save_file(state, folder / "model.safetensors")
        torch.save(training, folder / "training.pt")
        write_json(folder / "checkpoint.json", {**info, **provenance()})
        OmegaConf.save(config, folder / "config.yaml")
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))

    write_folder(root / name, fill)
    index_path = root / "index.json"
    index = _read_json(index_path) if index_path.is_file() else {"last": name, "best": []}
    index["last"] = name
    best = [entry for entry in index["best"] if entry["name"] != name]
    if monitored is not None and math.isfinite(monitored):
        best.append({"name": name, "value": monitored})
    best.sort(key=lambda entry: entry["value"] if lower_is_better else -entry["value"])
    index["best"] = best[:keep]
    write_json(index_path, index)
    kept = {name, *(entry["name"] for entry in index["best"])}
    for folder in root.glob("step-*"):
        if folder.name not in kept:
            shutil.rmtree(folder)
    return root / name


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
    path = folder / "training.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise UserError(f"{path} cannot be read, so its training cannot go on ({type(error).__name__})") from error


def provenance() -> dict[str, Any]:
    """Versions, machine and git commit."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"versions": versions, "device": device, "git": _git_commit()}


def _git_commit() -> str | None:
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()
