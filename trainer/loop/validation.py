"""Validation between epochs: every loss, the emotions, scores of a few captions, and pictures in TensorBoard.

The temperature of the emotion probabilities is fitted here (trainer.metrics.calibration), on the same images that its
calibration is measured on: one number for hundreds of images, so the bias is small.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader

from common.errors import UserError
from data.emotions import EMOTIONS
from data.frames import is_clip
from data.images import ImageError, open_image
from data.loaders import usable
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

CAPTION_METRICS = ("bleu", "rouge_l", "cider")  # no Java, a moment for some dozens of captions
TEMPERATURE = "validation/emotion_temperature"
CAPTION_SHOWN = ("BLEU-4", "ROUGE-L", "CIDEr")


@dataclass(slots=True)
class Validator:
    """Measures on the same images and the same texts every time.

    Args:
        samples: those of the loader, in its order.
        pictures: how many of the first are shown.
        captions: how many of the first have their captions scored.
    """

    task: CaptionTask
    loader: DataLoader[Batch]
    samples: Samples
    predictor: Predictor
    tracker: Tracker
    strict: bool
    pictures: int
    limit_batches: int | None
    captions: int = 0

    @torch.no_grad()
    def measure(
        self, captioner: Captioner, accelerator: Accelerator, step: int, skipped: list[Skipped]
    ) -> dict[str, float]:
        """Return the means over the validation set, by their names in TensorBoard."""
        captioner.eval()
        sums = {name: torch.zeros((), dtype=torch.float64) for name in NAMES}
        counts = {name: torch.zeros((), dtype=torch.float64) for name in NAMES}
        labels = self.predictor.template.labels
        answers = [torch.empty(0, 2 * len(labels))]
        written: list[Prediction] = []
        batches = usable(self._own_batches(accelerator), skipped, strict=self.strict)
        for batch in (batch.to(accelerator.device) for batch in batches):
            with accelerator.autocast():
                visual = captioner.look(batch.frames, batch.frame_mask, batch.tokens)
                batch_sums = self.task.sums(captioner, batch, visual=visual)
                if self.predictor.with_emotions:
                    answers.append(torch.cat([self.predictor.emotion_log_probs(visual), batch.histogram], dim=1).cpu())
                if len(written) < max(self.pictures, self.captions):
                    written += self.predictor(batch, visual=visual)
            batch_counts = self.task.counts(batch)
            for name, value in batch_sums.items():
                sums[name] += value.double().cpu()
                counts[name] += batch_counts[name].double().cpu()
        written = self._in_order(written, accelerator)
        if accelerator.is_main_process:
            self._show(written[: self.pictures], step)
        metrics = self._losses(sums, counts, accelerator)
        metrics |= caption_metrics(written[: self.captions], self._samples(written))
        if self.predictor.with_emotions:
            both = rows_of_all(torch.cat(answers), accelerator).split(len(labels), dim=1)
            metrics |= emotion_metrics(*both, labels=labels)
        return metrics

    def _own_batches(self, accelerator: Accelerator) -> Iterable[Batch]:
        """This process's share of the first `limit_batches`, which are dealt out in turn."""
        if self.limit_batches is None:
            return self.loader
        before = accelerator.process_index
        return itertools.islice(self.loader, len(range(before, self.limit_batches, accelerator.num_processes)))

    def _in_order(self, written: list[Prediction], accelerator: Accelerator) -> list[Prediction]:
        """The predictions of all processes, in the order of the images."""
        if accelerator.num_processes == 1:
            return written
        by_id = {prediction.id: prediction for prediction in gather_object(written)}
        return [by_id[id] for id in self._samples([*by_id.values()])]

    def _losses(self, sums: dict, counts: dict, accelerator: Accelerator) -> dict[str, float]:
        metrics: dict[str, float] = {}
        total = 0.0
        for name in NAMES:
            count = _over_processes(counts[name], accelerator)
            if count:
                value = _over_processes(sums[name], accelerator) / count
                metrics[f"validation/loss_{name}"] = value
                total += self.task.weights[name] * value
        if not metrics:
            raise UserError(f"{self.samples[0].path.parent}: none of the images to validate on could be read")
        metrics["validation/loss"] = total
        return metrics

    def _samples(self, predictions: list[Prediction]) -> dict[str, Sample]:
        wanted = {prediction.id for prediction in predictions}
        found = itertools.islice((sample for sample in self.samples if sample.id in wanted), len(wanted))
        return {sample.id: sample for sample in found}

    def _show(self, shown: list[Prediction], step: int) -> None:
        """A figure of the first pictures with their emotion bars and captions."""
        by_id = self._samples(shown)
        images, rows = [], []
        for prediction in shown:
            sample = by_id[prediction.id]
            if is_clip(sample.path):
                continue
            try:
                images.append(open_image(sample.path))
            except ImageError:
                continue
            rows.append({**prediction.row(), "histogram": sample.histogram})
        if images:
            self.tracker.picture("validation/pictures", prediction_figure(images, rows), step)


def emotion_metrics(log_probs: Tensor, histograms: Tensor, *, labels: Sequence[str] = EMOTIONS) -> dict[str, float]:
    """Accuracy, and how far the probabilities are from the annotators' answers, as they are and calibrated.

    Args:
        log_probs: (N, C), uncalibrated; histograms: (N, C), zeros where nobody was asked.
    """
    metrics: dict[str, float] = {}
    scores = emotion_scores(log_probs.argmax(dim=1).tolist(), histograms.tolist(), labels=labels)
    if scores.accuracy is not None:
        metrics["validation/emotion_accuracy"] = scores.accuracy
    both = (log_probs.numpy(), histograms.numpy())
    temperature = fit_temperature(*both)
    before, after = judge(*both), judge(*both, temperature)
    if before.nll is not None:
        metrics |= {"validation/emotion_nll": before.nll, "validation/emotion_nll_calibrated": after.nll}
        metrics |= {"validation/emotion_ece": before.ece, "validation/emotion_ece_calibrated": after.ece}
        metrics[TEMPERATURE] = temperature
    return metrics


def caption_metrics(written: Sequence[Prediction], samples: Mapping[str, Sample]) -> dict[str, float]:
    """Scores against all texts of each image, words split at white space: a trend, of too few images to compare."""
    references = {id: sample.texts for id, sample in samples.items() if any(text.strip() for text in sample.texts)}
    texts = {prediction.id: prediction.explanation for prediction in written if prediction.id in references}
    if not texts:
        return {}
    people = {id: references[id] for id in texts}
    scores = caption_scores(texts, people, metrics=CAPTION_METRICS, tokenizer="whitespace").scores
    return {f"validation/{name}": scores[name] for name in CAPTION_SHOWN if name in scores}


def rows_of_all(rows: Tensor, accelerator: Accelerator) -> Tensor:
    """Rows (N, k) of every process, each as many as it has."""
    if accelerator.num_processes == 1:
        return rows
    padded = accelerator.pad_across_processes(rows.to(accelerator.device), pad_index=math.nan)
    gathered = accelerator.gather(padded).cpu()
    return gathered[~gathered.isnan().all(dim=1)]


def _over_processes(value: Tensor, accelerator: Accelerator) -> float:
    """A double-precision sum over all processes; one process need not move it to a device that may lack doubles."""
    return float(value if accelerator.num_processes == 1 else accelerator.reduce(value.to(accelerator.device), "sum"))
