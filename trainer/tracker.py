"""What a run writes down while it trains: TensorBoard, and metrics.jsonl beside it for everything else."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import summary

from faults import why_not_written
from files import write_text, writing
from trainer.events import EventFile

METRICS = "metrics.jsonl"
OF_STEP = ("step", "time")  # of a line, beside its scalars


class Tracker:
    """Scalars, pictures and texts of one run; does nothing where `folder` is None (every process but the first).

    metrics.jsonl must be written, a fault there raises files.WriteError. TensorBoard is for looking on: what cannot be
    written there is said once, and is tried again with whatever comes next.

    Args:
        purge_step: what an earlier process wrote of this step and later ones is taken back: it is done again.
        validation_too: so is the validation of the step before, which stays otherwise.
    """

    def __init__(self, folder: Path | None, *, purge_step: int | None = None, validation_too: bool = False) -> None:
        self.folder = folder
        if folder is None:
            return
        self.path, self._warned = folder / METRICS, False
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
        again = [] if purge_step is None else _cut_back(self.path, purge_step, validation_too)
        purged = purge_step if purge_step is None else purge_step - validation_too
        self.events = EventFile(folder / "tensorboard", purge_step=purged)
        self._add([], 0)
        for line in again:
            self._points({name: value for name, value in line.items() if name not in OF_STEP}, line["step"])
        self._write("")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Names are grouped by what stands before their slash: train/loss_caption, validation/loss_caption, …

        Raises:
            WriteError: metrics.jsonl cannot be written.
        """
        if self.folder is None:
            return
        self._points(values, step)
        self._write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """image: (H, W, 3) uint8."""
        if self.folder is not None:
            self._add([summary.image(name, image, dataformats="HWC")], step)

    def text(self, name: str, text: str, step: int = 0) -> None:
        if self.folder is not None:
            self._add([summary.text(name, text)], step)

    def sync(self) -> None:
        """Wait until all that was written is on the disk: a checkpoint counts on it."""
        if self.folder is None:
            return
        with writing(self.path), self.path.open("ab") as lines:
            os.fsync(lines.fileno())

    def _write(self, text: str) -> None:
        """The file is opened every time: it may be taken away, and a network file system may forget who had it open."""
        with writing(self.path), self.path.open("ab") as lines:
            lines.write(text.encode())

    def _points(self, values: Mapping[str, float], step: int) -> None:
        self._add([summary.scalar(name, value) for name, value in values.items()], step)

    def _add(self, summaries: list[Summary], step: int) -> None:
        try:
            self.events.add(summaries, step)
        except OSError as error:
            folder = self.events.folder
            if not self._warned:
                print(
                    f"\nwarning: {folder} cannot be written ({why_not_written(folder, error)}); the training goes on, "
                    f"and {self.path} has all figures",
                    file=sys.stderr,
                )
            self._warned = True


def _cut_back(path: Path, step: int, validation_too: bool) -> list[dict[str, Any]]:
    """Leave only the lines of steps before `step` in the file, and none that a killed process tore.

    Returns:
        with `validation_too` those of the step before, which TensorBoard can only take back as a whole.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    kept, before = [], []
    for line in text.splitlines(keepends=True):
        try:
            values = json.loads(line)
            of = int(values["step"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue
        last = validation_too and of == step - 1
        if of < step and line.endswith("\n") and not (last and "validation/loss" in values):
            kept.append(line)
            before += [values] if last else []
    if kept or text:
        write_text(path, "".join(kept), durable=True)
    return before
