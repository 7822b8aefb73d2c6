"""What a run writes down while it trains: TensorBoard, and metrics.jsonl beside it for everything else."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter


class Tracker:
    """Scalars, pictures and texts of one run; does nothing where `folder` is None (every process but the first)."""

    def __init__(self, folder: Path | None, *, purge_step: int | None = None) -> None:
        self.folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)
            self.lines = (folder / "metrics.jsonl").open("a", encoding="utf-8")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Names are grouped by what stands before their slash: train/loss_caption, validation/loss_caption, …"""
        if self.folder is None:
            return
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.lines.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        self.lines.flush()

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """image: (H, W, 3) uint8."""
        if self.folder is not None:
            self.writer.add_image(name, image, step, dataformats="HWC")
            self.writer.flush()

    def text(self, name: str, text: str, step: int = 0) -> None:
        if self.folder is not None:
            self.writer.add_text(name, text, step)

    def close(self) -> None:
        if self.folder is not None:
            self.writer.close()
            self.lines.close()
