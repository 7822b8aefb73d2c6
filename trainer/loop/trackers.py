"""Further trackers of a training, such as W&B, MLflow and trackio, through accelerate."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from omegaconf import DictConfig, OmegaConf

from common.config.check import groups, leaves
from common.errors import UserError, shorten

TENSORBOARD, PROJECT = "tensorboard", "emoscribe"
NAMED = {"wandb": "name", "trackio": "name", "swanlab": "experiment_name"}  # argument for the run, inside the project


def require_installed(names: Sequence[str]) -> None:
    """Raise UserError if the package of a tracker is missing."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise UserError(f"trainer.trackers: {missing[0]} is not installed: pip install {missing[0]}")


def start_trackers(names: Sequence[str], run: Path, config: DictConfig) -> dict[str, GeneralTracker]:
    """Start the trackers other than TensorBoard, and store the configuration in them.

    Raises:
        UserError: one does not start.
    """
    found = {}
    for name in dict.fromkeys(names):
        if name == TENSORBOARD:
            continue
        try:
            found[name] = _start(name, run)
            found[name].store_init_configuration(dict(leaves(OmegaConf.to_container(config, resolve=True), groups())))
        except Exception as error:  # each library raises its own kinds
            raise UserError(f"trainer.trackers: {name} does not start ({shorten(error)})") from error
    return found


def _start(name: str, run: Path) -> GeneralTracker:
    kind = LOGGER_TYPE_TO_CLASS[name]
    if name == "mlflow":
        tracker = kind(experiment_name=PROJECT, run_name=run.name)
    elif name in NAMED:
        tracker = kind(PROJECT, **{NAMED[name]: run.name})
    else:
        tracker = kind(run.name, **({"logging_dir": run.parent} if kind.requires_logging_directory else {}))
    tracker.start()
    return tracker


class FurtherTrackers:
    """The started trackers; one that fails is left out from then on, with a warning, and the training goes on."""

    def __init__(self, trackers: Mapping[str, GeneralTracker]) -> None:
        self.trackers = dict(trackers)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._each("log", dict(values), step=step)

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """image: (H, W, 3) uint8; some trackers take no pictures."""
        self._each("log_images", {name: [image]}, step=step)

    def finish(self) -> None:
        self._each("finish")

    def _each(self, method: str, *args: Any, **options: Any) -> None:
        for name, tracker in [*self.trackers.items()]:
            try:
                getattr(tracker, method, lambda *args, **options: None)(*args, **options)
            except Exception as error:  # a network, a full disk, …
                del self.trackers[name]
                print(f"\nwarning: {name} gets no more metrics of this training ({shorten(error)})", file=sys.stderr)
