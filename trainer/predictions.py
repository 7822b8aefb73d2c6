"""Predictions over a set of images, written down as they come."""

from __future__ import annotations

import itertools
import json
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from data.emotions import EMOTIONS, INDEX
from data.loaders import usable
from data.samples import Samples
from data.schema import Batch, Sample, Skipped
from pages import percent
from progress import progress
from trainer.predictor import Predictor

NAME_WIDTH = 40  # of a picture's name on screen; its end is what differs
SAID_WIDTH = 24  # of a text in the emotion's place that is none of the nine
VAD_HEAD = "V / A / D (−1..1)"  # valence, arousal, dominance: as wide as three signed numbers


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
    """Picture, emotion, VAD and reason of each row, aligned, the reasons wrapped at the width of the terminal.

    Reasons for other emotions stand below, without the picture's name. What no row has leaves no column.
    """
    if not rows:
        return "no picture"
    lines = [line for row in rows for line in _lines(row)]
    if any(line.vad for line in lines):
        lines.insert(0, _Line("", "", VAD_HEAD, ""))
    columns = list(zip(*lines, strict=True))[:-1]
    widths = [max(map(len, column)) for column in columns]
    indent = sum(width + 2 for width in widths if width)
    terminal = max(shutil.get_terminal_size((160, 24)).columns, indent + 30)
    shown = []
    for line in lines:
        head = "".join(f"{cell:<{width}}  " for cell, width in zip(line, widths, strict=False) if width)
        text = textwrap.fill(line.text, terminal, initial_indent=head, subsequent_indent=" " * indent)
        shown.append(text or head.rstrip())
    return "\n".join(shown)


class _Line(NamedTuple):
    name: str
    emotion: str
    vad: str
    text: str


def _lines(row: dict[str, Any]) -> Iterator[_Line]:
    name = Path(row["image"]).name
    name = name if len(name) <= NAME_WIDTH else f"…{name[1 - NAME_WIDTH :]}"
    yield _Line(name, _emotion(row), _signed(row.get("vad")), row["explanation"])
    for reason in row.get("reasons", ())[1:]:  # the first is the row's own
        emotion = f"{reason['emotion']} {percent(reason['probability'])}%"
        yield _Line("", emotion, _signed(reason.get("vad")), reason["explanation"])


def _emotion(row: dict[str, Any]) -> str:
    if row["emotion"] is not None:
        return f"{row['emotion']} {percent(max_share(row))}%"
    said = row.get("emotion_text")
    return "" if said is None else f'"{textwrap.shorten(said, SAID_WIDTH, placeholder="…")}"'


def _signed(vad: Sequence[float] | None) -> str:
    return "" if vad is None else " ".join(f"{round(value, 2) + 0.0:+.2f}" for value in vad)  # no -0.00


def max_share(row: dict[str, Any]) -> float:
    """Probability of the emotion that the reason was written for."""
    return row["emotion_distribution"][INDEX[row["emotion"]]]
