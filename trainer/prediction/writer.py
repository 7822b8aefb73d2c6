"""Predictions of many images, by one process or by several, written down as they come."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from common.faults import explaining
from common.files import write_text
from common.progress import progress
from data.loaders import EpochSampler, usable
from data.schema import Batch, Sample, Skipped
from trainer.prediction.predictor import Predictor
from trainer.prediction.resume import Unfinished
from trainer.runtime.processes import exchanged


class Share(NamedTuple):
    """What came of one batch."""

    rows: list[dict[str, Any]]
    skipped: list[Skipped]


def write_predictions(
    unfinished: Unfinished,
    *,
    done: int,
    loader: DataLoader[Batch],
    sampler: EpochSampler,
    predictor: Predictor,
    accelerator: Accelerator,
    strict: bool,
    emotion: int | None = None,
) -> None:
    """Predict every image but the first `done`: one JSON object each, with its path and what people said of it.

    Each process takes every so-manieth batch, and the first writes down what came of them all, in their order: the same
    batches as one process would make, and the same lines.

    Raises:
        UserError: an unusable image, if `strict`; in every process. What was written before it is kept.
    """
    samples, size, processes = unfinished.samples, unfinished.batch_size, accelerator.num_processes
    sampler.skip = done
    batches = iter(accelerator.prepare(loader))
    first = accelerator.is_main_process
    with progress(len(samples), "predict", unit="image", initial=done, enabled=first) as bar:
        for start in range(done, len(samples), size * processes):
            own = start + size * accelerator.process_index
            images = [samples[index] for index in range(own, min(own + size, len(samples)))]
            work = functools.partial(_share, batches, images, predictor, accelerator, strict=strict, emotion=emotion)
            shares = exchanged(accelerator, work)
            if first:
                for share in shares:
                    unfinished.add(share.rows, share.skipped)
            bar.update(min(size * processes, len(samples) - start))


def _share(
    batches: Iterator[Batch],
    images: Sequence[Sample],
    predictor: Predictor,
    accelerator: Accelerator,
    *,
    strict: bool,
    emotion: int | None,
) -> Share:
    """Of the next batch, which holds `images`; there may be none, or none of them may be usable."""
    share = Share([], [])
    by_id = {image.id: image for image in images}
    for batch in usable([next(batches)] if images else [], share.skipped, strict=strict):
        shown = [by_id[id] for id in batch.ids]
        share.rows.extend(_rows(batch.to(accelerator.device), shown, predictor, accelerator, emotion))
    return share


@torch.no_grad()
def _rows(
    batch: Batch, samples: list[Sample], predictor: Predictor, accelerator: Accelerator, emotion: int | None
) -> Iterator[dict[str, Any]]:
    in_fp32 = predictor.captioner.language.dtype == torch.float32
    with explaining(), accelerator.autocast() if in_fp32 else contextlib.nullcontext():
        predictions = predictor(batch, emotion=emotion)
    for prediction, sample in zip(predictions, samples, strict=True):
        row = {**prediction.row(), "image": str(sample.path)}
        if emotion is not None:
            row["asked_emotion"] = True
        if sample.texts:
            row |= _people(sample, predictor.template.labels)
        yield row


def _people(sample: Sample, labels: Sequence[str]) -> dict[str, Any]:
    """What people said and felt; an emotion that nobody explained stands in the histogram alone."""
    said = range(len(sample.texts)) if any(sample.texts) else ()
    return {
        "references": [sample.texts[i] for i in said],
        "reference_emotions": [labels[sample.emotions[i]] for i in said if sample.emotions],
        "histogram": sample.histogram and list(sample.histogram),
    }


def write_json_lines_as_list(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON list of all rows, as `files.write_json` would write it, though no two of them are in memory at once."""
    write_text(path, _listed(rows))


def _listed(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    between = "["
    for row in rows:
        yield between + ("\n" + json.dumps(row, indent=2, ensure_ascii=False)).replace("\n", "\n  ")
        between = ","
    yield "\n]\n"
