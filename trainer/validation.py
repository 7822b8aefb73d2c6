"""What is measured between epochs: every loss, the emotion accuracy, and a few pictures for the eye."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from data.images import ImageError, open_image
from data.loaders import VIDEO_SUFFIXES, usable
from data.samples import Samples
from data.schema import Batch, Skipped
from errors import UserError
from model.captioner import Captioner
from model.losses import NAMES, loss_counts, loss_sums
from trainer.figures import prediction_figure
from trainer.metrics.emotions import emotion_scores
from trainer.predictor import Prediction, Predictor
from trainer.tracker import Tracker


@dataclass(slots=True)
class Validator:
    """Measures on the same images and the same texts every time.

    Args:
        samples: of the loader, in its order; the first `pictures` are shown.
    """

    loader: DataLoader[Batch]
    samples: Samples
    predictor: Predictor
    tracker: Tracker
    loss_weights: dict[str, float]
    strict: bool
    pictures: int
    limit_batches: int | None

    @torch.no_grad()
    def measure(
        self, captioner: Captioner, accelerator: Accelerator, step: int, skipped: list[Skipped]
    ) -> dict[str, float]:
        """Means over the validation set, under the names that TensorBoard shows."""
        captioner.eval()
        sums = {name: torch.zeros((), dtype=torch.float64) for name in NAMES}
        counts = {name: torch.zeros((), dtype=torch.float64) for name in NAMES}
        predicted: list[int] = []
        histograms: list[list[float]] = []
        shown: list[Prediction] = []
        batches = itertools.islice(usable(self.loader, skipped, strict=self.strict), self.limit_batches)
        for batch in (batch.to(accelerator.device) for batch in batches):
            with accelerator.autocast():
                visual = captioner.look(batch.frames, batch.frame_mask, batch.tokens)
                batch_sums = loss_sums(captioner(batch, visual), batch)
                if self.predictor.with_emotions:
                    predicted += self.predictor.emotions(visual).argmax(dim=1).tolist()
                    histograms += batch.histogram.tolist()
                if accelerator.is_main_process and not shown and self.pictures:
                    shown = self.predictor(batch, visual=visual)[: self.pictures]
            for name, value in batch_sums.items():
                sums[name] += value.double().cpu()
                counts[name] += loss_counts(batch)[name].double().cpu()
        self._show(shown, step)
        metrics = self._losses(sums, counts, accelerator)
        if self.predictor.with_emotions:
            scores = emotion_scores(predicted, histograms)
            if scores.accuracy is not None:
                metrics["validation/emotion_accuracy"] = scores.accuracy
        return metrics

    def _losses(self, sums: dict, counts: dict, accelerator: Accelerator) -> dict[str, float]:
        metrics: dict[str, float] = {}
        total = 0.0
        for name in NAMES:
            count = _over_processes(counts[name], accelerator)
            if count:
                value = _over_processes(sums[name], accelerator) / count
                metrics[f"validation/loss_{name}"] = value
                total += self.loss_weights[name] * value
        if not metrics:
            raise UserError(f"{self.samples[0].path.parent}: none of the images to validate on could be read")
        metrics["validation/loss"] = total
        return metrics

    def _show(self, shown: list[Prediction], step: int) -> None:
        """A figure of the first pictures with their emotion bars and captions."""
        wanted = {prediction.id for prediction in shown}
        found = itertools.islice((sample for sample in self.samples if sample.id in wanted), len(wanted))
        by_id = {sample.id: sample for sample in found}
        images, rows = [], []
        for prediction in shown:
            sample = by_id[prediction.id]
            if sample.path.suffix.lower() in VIDEO_SUFFIXES:
                continue
            try:
                images.append(open_image(sample.path))
            except ImageError:
                continue
            rows.append({**prediction.row(), "histogram": sample.histogram})
        if images:
            self.tracker.picture("validation/pictures", prediction_figure(images, rows), step)


def _over_processes(value: torch.Tensor, accelerator: Accelerator) -> float:
    """A double-precision sum over all processes; one process need not move it to a device that may lack doubles."""
    return float(value if accelerator.num_processes == 1 else accelerator.reduce(value.to(accelerator.device), "sum"))
