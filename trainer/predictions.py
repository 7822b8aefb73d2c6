"""Predictions over a set of images, written down as they come."""

from __future__ import annotations

import itertools
import json
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from data.emotions import EMOTIONS, INDEX
from data.loaders import usable
from data.samples import Samples
from data.schema import Batch, Sample, Skipped
from progress import progress
from trainer.predictor import Predictor

NAME_WIDTH = 40  # of a picture's name on screen; its end is what differs


def write_predictions(
    path: Path,
    *,
    loader: DataLoader[Batch],
    samples: Samples,
    predictor: Predictor,
    accelerator: Accelerator,
    skipped: list[Skipped],
    strict: bool,
    limit_batches: int | None = None,
    emotion: int | None = None,
) -> list[dict[str, Any]]:
    """Predict every image of `loader` into `path`, one JSON object a line, and give back the rows.

    The lines are flushed batch by batch into `path`.part, so what was predicted before a fault is kept; at the end the
    file gets its name. Rows also have the image's path, and what people said where the data has it.
    """
    rows_by_id = {sample.id: row for row, sample in enumerate(samples)}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    rows: list[dict[str, Any]] = []
    batches = itertools.islice(usable(loader, skipped, strict=strict), limit_batches)
    with (
        part.open("w", encoding="utf-8", errors="replace") as lines,
        progress(len(samples), "predict", unit="image") as bar,
    ):
        for batch in batches:
            shown = [samples[rows_by_id[id]] for id in batch.ids]
            for row in _rows(batch.to(accelerator.device), shown, predictor, accelerator, emotion):
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                rows.append(row)
            lines.flush()
            bar.update(len(batch.ids))
    part.replace(path)
    return rows


@torch.no_grad()
def _rows(
    batch: Batch, samples: list[Sample], predictor: Predictor, accelerator: Accelerator, emotion: int | None
) -> Iterator[dict[str, Any]]:
    with accelerator.autocast():
        predictions = predictor(batch, emotion=emotion)
    for prediction, sample in zip(predictions, samples, strict=True):
        row = {**prediction.row(), "image": str(sample.path)}
        if emotion is not None:
            row["asked_emotion"] = True
        if sample.texts:
            row["references"] = list(sample.texts)
            row["reference_emotions"] = [EMOTIONS[i] for i in sample.emotions]
            row["histogram"] = sample.histogram and list(sample.histogram)
        yield row


def table(rows: list[dict[str, Any]]) -> str:
    """Picture, emotion and reason of each row, aligned, the reasons wrapped at the width of the terminal."""
    if not rows:
        return "no picture"
    names = [Path(row["image"]).name for row in rows]
    names = [name if len(name) <= NAME_WIDTH else f"…{name[1 - NAME_WIDTH :]}" for name in names]
    emotions = [f"{row['emotion']} {max_share(row):.0%}" if row["emotion"] is not None else "" for row in rows]
    first, second = max(map(len, names)), max(map(len, emotions))
    indent = " " * (first + 2 + (second + 2 if second else 0))
    width = max(shutil.get_terminal_size((160, 24)).columns, len(indent) + 30)
    lines = []
    for name, emotion, row in zip(names, emotions, rows, strict=True):
        head = f"{name:<{first}}  " + (f"{emotion:<{second}}  " if second else "")
        text = textwrap.fill(row["explanation"], width, initial_indent=head, subsequent_indent=indent)
        lines.append(text or head.rstrip())
    return "\n".join(lines)


def max_share(row: dict[str, Any]) -> float:
    """Probability of the emotion that the reason was written for."""
    return row["emotion_distribution"][INDEX[row["emotion"]]]
