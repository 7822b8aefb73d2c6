"""Predict many images, in one process or several, and write the rows batch by batch."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from common.faults import explain_errors
from common.files import to_json, write_text
from common.progress import progress
from data.loaders import EpochSampler, drop_empty_batches
from data.schema import Batch, Sample, Skipped
from trainer.prediction.expert import Expert
from trainer.prediction.resume import Unfinished
from trainer.prediction.rows import Prediction
from trainer.runtime.processes import gather_results


class AnyLanguage(Protocol):
    dtype: torch.dtype


class AnyPredictor(Protocol):
    """A captioner's Predictor, a VlmPredictor or a RatingPredictor."""

    labels: tuple[str, ...]
    language: AnyLanguage
    temperature: float
    expert: Expert | None
    judge: Any

    def __call__(self, batch: Any, *, emotion: int | None = None) -> list[Prediction]: ...


class BatchResult(NamedTuple):
    rows: list[dict[str, Any]]
    skipped: list[Skipped]


def write_predictions(
    unfinished: Unfinished,
    *,
    done: int,
    loader: DataLoader[Batch],
    sampler: EpochSampler,
    predictor: AnyPredictor,
    accelerator: Accelerator,
    strict: bool,
    emotion: int | None = None,
) -> None:
    """Predict all images but the first `done`, and append a row with path and annotations for each.

    Process p of n takes every n-th batch and rank 0 writes the results in order, so that batches and rows equal those
    of a single process.

    Raises:
        UserError: an unusable image, if `strict`; in every process. Rows written before it are kept.
    """
    samples, size, processes = unfinished.samples, unfinished.batch_size, accelerator.num_processes
    sampler.skip = done
    batches = iter(accelerator.prepare(loader))
    first = accelerator.is_main_process
    with progress(len(samples), "predict", unit="image", initial=done, enabled=first) as bar:
        for start in range(done, len(samples), size * processes):
            own = start + size * accelerator.process_index
            images = [samples[index] for index in range(own, min(own + size, len(samples)))]
            work = functools.partial(
                predict_batch, batches, images, predictor, accelerator, strict=strict, emotion=emotion
            )
            for result in gather_results(accelerator, work):
                if first:
                    unfinished.add(*result)
            bar.update(min(size * processes, len(samples) - start))


def predict_batch(
    batches: Iterator[Batch],
    images: Sequence[Sample],
    predictor: AnyPredictor,
    accelerator: Accelerator,
    *,
    strict: bool,
    emotion: int | None,
) -> BatchResult:
    """Predict the next batch, which holds `images`: possibly none, or none that is usable."""
    result = BatchResult([], [])
    by_id = {image.id: image for image in images}
    for batch in drop_empty_batches([next(batches)] if images else [], result.skipped, strict=strict):
        samples = [by_id[id] for id in batch.ids]
        result.rows.extend(_rows(batch.to(accelerator.device), samples, predictor, accelerator, emotion))
    return result


@contextlib.contextmanager
def computing(language: AnyLanguage, accelerator: Accelerator) -> Iterator[None]:
    """Compute without gradients in the configured precision; explain errors from outside the program."""
    in_fp32 = language.dtype == torch.float32
    with torch.no_grad(), explain_errors(), accelerator.autocast() if in_fp32 else contextlib.nullcontext():
        yield


def _rows(
    batch: Batch, samples: list[Sample], predictor: AnyPredictor, accelerator: Accelerator, emotion: int | None
) -> Iterator[dict[str, Any]]:
    with computing(predictor.language, accelerator):
        predictions = predictor(batch, emotion=emotion)
    for prediction, sample in zip(predictions, samples, strict=True):
        row = {**prediction.row(), "image": str(sample.path)}
        if emotion is not None:
            row["asked_emotion"] = True
        if sample.texts or sample.ratings is not None:
            row |= annotations(sample, predictor.labels)
        yield row


def annotations(sample: Sample, labels: Sequence[str]) -> dict[str, Any]:
    """Return references, their emotions and the histogram; emotions without explanations are in the histogram only.

    If people rated the picture, "ratings" holds valence, arousal, dominance (None if not rated), and both ends of their
    scale.
    """
    indices = range(len(sample.texts)) if any(sample.texts) else ()
    return {
        "references": [sample.texts[i] for i in indices],
        "reference_emotions": [labels[sample.emotions[i]] for i in indices if sample.emotions],
        "histogram": sample.histogram and list(sample.histogram),
    } | {
        **({"language": sample.language} if sample.language else {}),
        **({"ratings": [None if math.isnan(v) else v for v in sample.ratings]} if sample.ratings is not None else {}),
    }


def write_json_lines_as_list(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the JSON list that `files.write_json` would write, holding one row at a time."""

    def parts() -> Iterator[str]:
        separator = "["
        for row in rows:
            yield separator + ("\n" + to_json(row, indent=2).rstrip()).replace("\n", "\n  ")
            separator = ","
        yield "\n]\n"

    write_text(path, parts())
