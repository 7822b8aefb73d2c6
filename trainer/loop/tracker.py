"""Metrics of a training, in TensorBoard and, one JSON object per line, in metrics.jsonl."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils.tensorboard import SummaryWriter

from common.faults import why_not_written
from common.files import explain_write_errors, to_json, write_text
from trainer.loop.trackers import FurtherTrackers

METRICS = "metrics.jsonl"


class Tracker:
    """Scalars, pictures and texts of one run; does nothing where `folder` is None (every process but the first).

    If TensorBoard's files cannot be written, there is one warning, and the training goes on without them.

    Args:
        purge_step: remove the records of this step and later ones, which will be repeated.
        validation_too: also remove the validation of the step before.
        tensorboard: False: without its files.
        others: further trackers, which get scalars and pictures.

    Raises:
        WriteError: metrics.jsonl cannot be written; also raised by the methods.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        purge_step: int | None = None,
        validation_too: bool = False,
        tensorboard: bool = True,
        others: FurtherTrackers | None = None,
    ) -> None:
        self.folder, self.writer, self.others = folder, None, others or FurtherTrackers({})
        if folder is None:
            return
        self.path, self.events = folder / METRICS, folder / "tensorboard"
        with explain_write_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
        again = []
        if purge_step is not None:
            again = _purge(self.path, purge_step, validation_too)
            purge_step -= validation_too
        _leave_to_warn_once()
        with self._warn_once():
            self.writer = SummaryWriter(self.events, purge_step=purge_step) if tensorboard else None
        for line in again:
            values = {name: value for name, value in line.items() if name not in ("step", "time")}
            self._add({name: math.nan if value is None else value for name, value in values.items()}, line["step"])
        self._write("")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Names are grouped by the part before their slash: train/loss_caption, validation/loss_caption, …"""
        if self.folder is not None:
            self._add(values, step)
            self.others.scalars(values, step)
            self._write(to_json({"step": step, "time": round(time.time(), 3), **values}))

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """image: (H, W, 3) uint8."""
        self._events(lambda writer: writer.add_image(name, image, step, dataformats="HWC"))
        self.others.picture(name, image, step)

    def text(self, name: str, text: str, step: int = 0) -> None:
        self._events(lambda writer: writer.add_text(name, text, step))

    def sync(self) -> None:
        """Flush metrics.jsonl to the disk, before a checkpoint."""
        if self.folder is not None:
            with explain_write_errors(self.path), self.path.open("ab") as lines:
                os.fsync(lines.fileno())

    def _write(self, text: str) -> None:
        """Open the file every time: it may be moved away, and a network file system may lose the handle."""
        with explain_write_errors(self.path), self.path.open("ab") as lines:
            lines.write(text.encode())

    def _add(self, values: Mapping[str, float], step: int) -> None:
        self._events(lambda writer: [writer.add_scalar(name, value, step) for name, value in values.items()])

    def _events(self, add: Callable[[SummaryWriter], object]) -> None:
        with self._warn_once():
            if self.writer is not None:
                add(self.writer)
                self.writer.flush()  # the process may be killed at any time

    @contextmanager
    def _warn_once(self) -> Iterator[None]:
        """Print a warning and drop the writer if TensorBoard's files cannot be written."""
        try:
            yield
        except OSError as error:
            self.writer = None
            print(
                f"\nwarning: {self.events} cannot be written ({why_not_written(self.events, error)}); the training "
                f"goes on, and {self.path} has all metrics",
                file=sys.stderr,
            )


@cache
def _leave_to_warn_once() -> None:
    """Print no traceback of TensorBoard's thread for a file that it cannot write: its next record raises the error."""
    usual = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        kept = getattr(args.thread, "exception", None)
        if kept is None or kept is not args.exc_value or not isinstance(kept, OSError):
            usual(args)

    threading.excepthook = hook


def _purge(path: Path, step: int, validation_too: bool) -> list[dict[str, Any]]:
    """Remove the lines of `step` and later ones from the file, and any incomplete last line.

    Returns:
        with `validation_too` the remaining lines of the step before: TensorBoard can purge only whole steps.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    remaining, before = [], []
    for line in text.splitlines(keepends=True):
        try:
            values = json.loads(line)
            of = int(values["step"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue
        last = validation_too and of == step - 1
        if of < step and line.endswith("\n") and not (last and "validation/loss" in values):
            remaining.append(line)
            before += [values] if last else []
    if text:
        write_text(path, "".join(remaining), durable=True)
    return before


class Speed:
    """Images and texts per second since the last `read`."""

    def __init__(self) -> None:
        self.since, self.images, self.texts = time.monotonic(), 0, 0

    def read(self, images: int, texts: int) -> dict[str, float]:
        now = time.monotonic()
        elapsed = max(now - self.since, 1e-9)
        rates = {
            "speed/images_per_second": (images - self.images) / elapsed,
            "speed/texts_per_second": (texts - self.texts) / elapsed,
        }
        self.since, self.images, self.texts = now, images, texts
        return rates

    def pause(self, seconds: float) -> None:
        """Leave this time out."""
        self.since += seconds


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
