"""Validation between epochs: losses, emotion metrics, scores of a few captions, and images in TensorBoard.

The temperature of the emotion probabilities is fitted on the same images as the calibration metrics
(trainer.metrics.calibration): one number for hundreds of images, so the bias is small.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import Tensor
from torch.utils.data import DataLoader

from common.errors import UserError
from data.emotions import EMOTIONS
from data.frames import is_clip
from data.images import ImageError, open_image
from data.loaders import drop_empty_batches
from data.samples import Samples
from data.schema import Batch, Sample, Skipped
from model.captioner import Captioner
from model.losses import NAMES
from trainer.loop.figures import prediction_figure
from trainer.loop.tracker import Tracker
from trainer.metrics.calibration import fit_temperature, judge
from trainer.metrics.captions import caption_scores
from trainer.metrics.emotions import emotion_scores
from trainer.prediction.predictor import Predictor
from trainer.prediction.rows import Prediction
from trainer.runs.task import CaptionTask
from trainer.runtime.processes import first_batches

CAPTION_METRICS = ("bleu", "rouge_l", "cider")  # without Java; fast for some dozens of captions
TEMPERATURE = "validation/emotion_temperature"
CAPTION_SHOWN = ("BLEU-4", "ROUGE-L", "CIDEr")


@dataclass(slots=True)
class Validator:
    """Validates on the same images and texts every time; `samples` are those of the loader, in its order."""

    task: CaptionTask
    loader: DataLoader[Batch]
    samples: Samples
    predictor: Predictor
    tracker: Tracker
    strict: bool
    pictures: int  # number of first images shown in TensorBoard
    limit_batches: int | None
    captions: int = 0  # number of first images whose captions are scored

    @torch.no_grad()
    def measure(
        self, captioner: Captioner, accelerator: Accelerator, step: int, skipped: list[Skipped]
    ) -> dict[str, float]:
        """Return the mean metrics over the validation set, by their names in TensorBoard."""
        captioner.eval()
        sums = {name: torch.zeros((), dtype=torch.float64) for name in NAMES}
        counts = {name: torch.zeros((), dtype=torch.float64) for name in NAMES}
        labels = self.predictor.template.labels
        emotions = [torch.empty(0, 2 * len(labels))]
        predictions: list[Prediction] = []
        loaded = first_batches(self.loader, self.limit_batches, accelerator)
        batches = drop_empty_batches(loaded, skipped, strict=self.strict)
        for batch in (batch.to(accelerator.device) for batch in batches):
            with accelerator.autocast():
                visual = captioner.look(batch.frames, batch.frame_mask, batch.tokens)
                batch_sums = self.task.sums(captioner, batch, visual=visual)
                if self.predictor.with_emotions:
                    emotions.append(torch.cat([self.predictor.emotion_log_probs(visual), batch.histogram], dim=1).cpu())
                if len(predictions) < max(self.pictures, self.captions):
                    predictions += self.predictor(batch, visual=visual)
            batch_counts = self.task.counts(batch)
            for name, value in batch_sums.items():
                sums[name] += value.double().cpu()
                counts[name] += batch_counts[name].double().cpu()
        predictions = self._in_order(predictions, accelerator)
        if accelerator.is_main_process:
            self._show(predictions[: self.pictures], step)
        metrics = self._losses(sums, counts, accelerator)
        metrics |= caption_metrics(predictions[: self.captions], self._samples(predictions))
        if self.predictor.with_emotions:
            log_probs, histograms = gather_rows(torch.cat(emotions), accelerator).split(len(labels), dim=1)
            metrics |= emotion_metrics(log_probs, histograms, labels=labels)
        return metrics

    def _in_order(self, predictions: list[Prediction], accelerator: Accelerator) -> list[Prediction]:
        """Return the predictions of all processes, in the order of the images."""
        if accelerator.num_processes == 1:
            return predictions
        by_id = {prediction.id: prediction for prediction in gather_object(predictions)}
        return [by_id[id] for id in self._samples([*by_id.values()])]

    def _losses(self, sums: dict, counts: dict, accelerator: Accelerator) -> dict[str, float]:
        if accelerator.num_processes > 1:  # a single device may lack double precision
            sums, counts = accelerator.reduce(send_to_device((sums, counts), accelerator.device), "sum")
        metrics: dict[str, float] = {}
        total = 0.0
        for name in NAMES:
            if counts[name]:
                value = float(sums[name]) / float(counts[name])
                metrics[f"validation/loss_{name}"] = value
                total += self.task.weights[name] * value
        if not metrics:
            raise UserError(f"{self.samples[0].path.parent}: none of the validation images could be read")
        metrics["validation/loss"] = total
        return metrics

    def _samples(self, predictions: list[Prediction]) -> dict[str, Sample]:
        wanted = {prediction.id for prediction in predictions}
        found = itertools.islice((sample for sample in self.samples if sample.id in wanted), len(wanted))
        return {sample.id: sample for sample in found}

    def _show(self, shown: list[Prediction], step: int) -> None:
        """Write a figure of each image with its emotion bars and caption to TensorBoard."""
        by_id = self._samples(shown)
        for number, prediction in enumerate(shown, 1):
            sample = by_id[prediction.id]
            if is_clip(sample.path):
                continue
            with suppress(ImageError):
                row = {**prediction.row(), "histogram": sample.histogram}
                self.tracker.picture(f"pictures/{number}", prediction_figure(open_image(sample.path), row), step)


def emotion_metrics(log_probs: Tensor, histograms: Tensor, *, labels: Sequence[str] = EMOTIONS) -> dict[str, float]:
    """Return the accuracy, and log loss and calibration error before and after calibration.

    Args:
        log_probs: (N, C), uncalibrated.
        histograms: (N, C) shares of the annotators; zeros without annotations.
    """
    metrics: dict[str, float] = {}
    scores = emotion_scores(log_probs.argmax(dim=1).tolist(), histograms.tolist(), labels=labels)
    if scores.accuracy is not None:
        metrics["validation/emotion_accuracy"] = scores.accuracy
    pair = (log_probs.numpy(), histograms.numpy())
    temperature = fit_temperature(*pair)
    before, after = judge(*pair), judge(*pair, temperature)
    if before.nll is not None:
        metrics |= {"validation/emotion_nll": before.nll, "validation/emotion_nll_calibrated": after.nll}
        metrics |= {"validation/emotion_ece": before.ece, "validation/emotion_ece_calibrated": after.ece}
        metrics[TEMPERATURE] = temperature
    return metrics


def caption_metrics(predictions: Sequence[Prediction], samples: Mapping[str, Sample]) -> dict[str, float]:
    """Return scores against all texts of each image, split at white space; too few images to compare networks."""
    references = {id: sample.texts for id, sample in samples.items() if any(text.strip() for text in sample.texts)}
    texts = {prediction.id: prediction.explanation for prediction in predictions if prediction.id in references}
    if not texts:
        return {}
    people = {id: references[id] for id in texts}
    scores = caption_scores(texts, people, metrics=CAPTION_METRICS, tokenizer="whitespace").scores
    return {f"validation/{name}": scores[name] for name in CAPTION_SHOWN if name in scores}


def gather_rows(rows: Tensor, accelerator: Accelerator) -> Tensor:
    """Return the rows (N, k) of all processes, which may have different N."""
    if accelerator.num_processes == 1:
        return rows
    padded = accelerator.pad_across_processes(rows.to(accelerator.device), pad_index=math.nan)
    gathered = accelerator.gather(padded).cpu()
    return gathered[~gathered.isnan().all(dim=1)]
