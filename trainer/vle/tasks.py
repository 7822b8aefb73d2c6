"""VLE's tasks: losses for training, results for validation and test.

See trainer.runs.task.Task. Axes: N texts, P patches, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.pairs import IGNORED, PairBatch
from model.vle.heads import VLEHead
from model.vle.processor import VLEProcessor
from trainer.metrics.vle import average_precision
from trainer.runs.console import round_significant
from trainer.runs.seen import write_seen

Outputs = dict[str, Tensor]  # logits
Result = dict[str, Any]  # what is kept of one text, as JSON


class VleTask:
    """One network with one kind of loss; `images`: see trainer.runs.seen."""

    loss = "loss"  # name of the loss

    def __init__(self, network: VLEHead, processor: VLEProcessor, images: Tensor | None = None) -> None:
        self.network, self.processor, self.images = network, processor, images
        self.weights, self.bridge = {self.loss: 1.0}, {}

    def outputs(self, network: nn.Module, batch: PairBatch) -> Outputs:
        """Return the logits; `network` is `self.network`, possibly as accelerate prepared it."""
        return {self.loss: network(**batch.inputs()).logits}

    def losses(self, outputs: Outputs, batch: PairBatch) -> Outputs:
        """Return the sums of the losses."""
        raise NotImplementedError

    def results(self, outputs: Outputs, batch: PairBatch) -> list[Result]:
        """Return a result for each text of the batch that has one."""
        raise NotImplementedError

    def headline(self, results: Sequence[Result]) -> dict[str, float]:
        """Return the scores that are shown at every validation."""
        raise NotImplementedError

    def counts(self, batch: PairBatch) -> Outputs:
        return {self.loss: torch.tensor(len(batch.input_ids), device=batch.input_ids.device)}

    def sums(self, network: nn.Module, batch: PairBatch) -> Outputs:
        return self.losses(self.outputs(network, batch), batch)

    def state(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def gauges(self) -> dict[str, float]:
        return {}

    def write(self, folder: Path) -> None:
        """Write what makes the checkpoint a folder for from_pretrained."""
        self.network.config.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if self.images is not None:
            write_seen(folder, {"images": self.images})

    def rows(self, batch: PairBatch, *columns: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Return for each text the id of its picture, what the data set says about it, and the columns' values."""
        ids = [batch.ids[image] for image in batch.text_image.tolist()]
        return [*zip(ids, [text.about for text in batch.texts], *columns, strict=True)]


class VqaTask(VleTask):
    """Binary cross-entropy with soft scores, summed over the answers."""

    loss = "vqa"

    def losses(self, outputs: Outputs, batch: PairBatch) -> Outputs:
        logits = outputs[self.loss].float()
        return {self.loss: F.binary_cross_entropy_with_logits(logits, batch.targets["answers"], reduction="sum")}

    def results(self, outputs: Outputs, batch: PairBatch) -> list[Result]:
        best = outputs[self.loss].float().softmax(dim=-1).max(dim=-1)
        names, found = self.network.config.id2label, []
        for id, about, label, score in self.rows(batch, best.indices.tolist(), best.values.tolist()):
            answer = names[label]
            kept = {key: about[key] for key in ("question", "type", "answers")}
            found.append({"id": about["id"], "image": id, **kept, "answer": answer, "score": round_significant(score)})
        return found

    def headline(self, results: Sequence[Result]) -> dict[str, float]:
        return {"accuracy": mean(row["answers"].get(row["answer"], 0.0) for row in results)}


class MatchTask(VleTask):
    """Cross-entropy of matched (1) and mismatched (0) pairs."""

    loss = "match"

    def losses(self, outputs: Outputs, batch: PairBatch) -> Outputs:
        return {self.loss: F.cross_entropy(outputs[self.loss].float(), batch.targets["match"], reduction="sum")}

    def results(self, outputs: Outputs, batch: PairBatch) -> list[Result]:
        scores = outputs[self.loss].float().softmax(dim=-1)[:, 1].tolist()
        return [
            {"image": id, "text": about["text"], "match": match, "score": round_significant(score)}
            for id, about, match, score in self.rows(batch, batch.targets["match"].tolist(), scores)
        ]

    def headline(self, results: Sequence[Result]) -> dict[str, float]:
        return {"match_accuracy": match_accuracy(results)}


def match_accuracy(results: Sequence[Result]) -> float:
    return mean((row["score"] > 0.5) == (row["match"] == 1) for row in results)


class RegionTask(VleTask):
    """Cross-entropy of every patch, mean over the patches of a text."""

    loss = "patches"

    def losses(self, outputs: Outputs, batch: PairBatch) -> Outputs:
        return {self.loss: patch_loss(outputs[self.loss], batch.targets["patches"])}

    def results(self, outputs: Outputs, batch: PairBatch) -> list[Result]:
        scores = outputs[self.loss].float().softmax(dim=-1)[..., 1].tolist()
        labels = batch.targets["patches"].tolist()
        return [
            {**about, "image": id, "scores": [round(value, 4) for value in some], "patches": true}
            for id, about, some, true in self.rows(batch, scores, labels)
        ]

    def headline(self, results: Sequence[Result]) -> dict[str, float]:
        return region_headline(results)


def region_headline(results: Sequence[Result]) -> dict[str, float]:
    """Return mean average precision over patches, and how often the highest patch is in a box."""
    results = [row for row in results if any(row.get("patches", ()))]
    found = [average_precision(np.array(row["scores"]), np.array(row["patches"])) for row in results]
    hits = [row["patches"][int(np.argmax(row["scores"]))] for row in results]
    return {"average_precision": mean(found), "pointing": mean(hits)} if results else {}


def patch_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum over the texts of the mean over their patches: logits (N, P, 2), labels (N, P)."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view(labels.shape).mean(dim=-1).sum()


class EmotionTask(VleTask):
    """Cross-entropy with the annotators' shares."""

    loss = "emotion"

    def counts(self, batch: PairBatch) -> Outputs:
        return {self.loss: (batch.targets["shares"].sum(dim=1) > 0).sum()}

    def losses(self, outputs: Outputs, batch: PairBatch) -> Outputs:
        log_probs = outputs[self.loss].float().log_softmax(dim=-1)
        return {self.loss: -(batch.targets["shares"] * log_probs).sum()}

    def results(self, outputs: Outputs, batch: PairBatch) -> list[Result]:
        probs = outputs[self.loss].float().softmax(dim=-1)
        names, shares = self.network.config.id2label, batch.targets["shares"].tolist()
        return [
            {
                "image": id,
                "emotion": names[int(p.argmax())],
                "emotion_distribution": [round_significant(value) for value in p.tolist()],
                "histogram": some if sum(some) else None,
            }
            for id, _, p, some in self.rows(batch, probs, shares)
        ]

    def headline(self, results: Sequence[Result]) -> dict[str, float]:
        return {}  # see trainer.loop.validation.emotion_metrics

    @property
    def labels(self) -> list[str]:
        return [*self.network.config.id2label.values()]

    def table(self, results: Sequence[Result]) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and the annotators' shares, (N, C) each; a row of zeros without annotators."""
        shares = [row["histogram"] or [0.0] * len(self.labels) for row in results]
        probs = torch.tensor([row["emotion_distribution"] for row in results])
        return probs.clamp(min=1e-12).log(), torch.tensor(shares)


class VcrTask(VleTask):
    """Cross-entropy over the four choices; the four texts of a sample are consecutive."""

    loss = "vcr"
    choices = 4

    def _logits(self, outputs: Outputs) -> Tensor:
        return outputs[self.loss].float().view(-1, self.choices)

    def outputs(self, network: nn.Module, batch: PairBatch) -> Outputs:
        return {self.loss: network(**batch.inputs(), flat=True).logits}

    def _labels(self, batch: PairBatch) -> Tensor:
        return batch.targets["choice"][:: self.choices]

    def counts(self, batch: PairBatch) -> Outputs:
        return {self.loss: (self._labels(batch) != IGNORED).sum()}

    def losses(self, outputs: Outputs, batch: PairBatch) -> Outputs:
        losses = F.cross_entropy(self._logits(outputs), self._labels(batch), reduction="sum", ignore_index=IGNORED)
        return {self.loss: losses}

    def results(self, outputs: Outputs, batch: PairBatch) -> list[Result]:
        samples, logits, found = self.rows(batch)[:: self.choices], self._logits(outputs), []
        for (id, about), some, label in zip(samples, logits, self._labels(batch).tolist(), strict=True):
            chosen, choices = int(some.argmax()), about["choices"]
            row = {"id": about["id"], "image": id, "img_fn": about["img_fn"], "question": about["question"]}
            row["choices"] = choices
            row |= {"answer": choices[chosen], "score": round_significant(some.softmax(dim=0).max().item())}
            row |= {"scores": [round_significant(v) for v in some.tolist()], "prediction": chosen, "label": None}
            if label != IGNORED:
                row |= {"label": label, "answers": {choices[label]: 1.0}}
            found.append(row)
        return found

    def headline(self, results: Sequence[Result]) -> dict[str, float]:
        known = [row for row in results if row["label"] is not None]
        return {"accuracy": mean(row["prediction"] == row["label"] for row in known)} if known else {}
