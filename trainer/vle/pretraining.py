"""The task of stage=vle_pretrain: matching, regions, masked words and hidden objects; see trainer.vle.tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.pairs import IGNORED, PairBatch
from model.vle.heads import VLEHead
from model.vle.processor import VLEProcessor
from trainer.runs.console import round_significant
from trainer.vle.tasks import Outputs, Result, VleTask, match_accuracy, patch_loss, region_headline


class PretrainTask(VleTask):
    """Matching, patches of the caption, masked words and hidden objects; each loss is a mean of its own."""

    losses_of = ("match", "patches", "words", "object")

    def __init__(self, network: VLEHead, processor: VLEProcessor, images: Tensor | None = None) -> None:
        super().__init__(network, processor, images)
        names = self.losses_of if network.config.object_names else self.losses_of[:-1]
        self.weights = dict.fromkeys(names, 1.0)

    def _rows(self, batch: PairBatch) -> dict[str, Tensor]:
        """Return the texts of each loss; of words, the tokens, (N, L) bool."""
        given = {name: batch.targets[name] != IGNORED for name in self.weights}
        texts = {name: there.view(len(there), -1).any(dim=1).nonzero().flatten() for name, there in given.items()}
        return texts | {"words": given["words"]}

    def outputs(self, network: nn.Module, batch: PairBatch) -> Outputs:
        inputs = batch.inputs()
        hidden = [row for row, text in enumerate(batch.texts) if text.boxes]
        if hidden:  # a copy of the picture, with the object's patches black
            copies = batch.pixels[batch.text_image[hidden]]
            shown = torch.stack([self._shown(batch.texts[row].boxes) for row in hidden]).to(copies.device)
            black = self._black().to(copies)
            copies = torch.where(shown[:, None], copies, black)
            inputs["pixel_values"] = torch.cat([batch.pixels, copies])
            first, last = len(batch.pixels), len(batch.pixels) + len(hidden)
            inputs["image_index"][hidden] = torch.arange(first, last, device=copies.device)
        return network(rows=self._rows(batch), **inputs)

    def _shown(self, boxes: list[list[int]]) -> Tensor:
        """Return (H, W) bool: False where a box hides a patch."""
        vision = self.network.config.vision_config
        grid = vision.image_size // vision.patch_size
        shown = torch.ones(grid * grid, dtype=torch.bool)
        shown[[patch for box in boxes for patch in box]] = False
        return shown.view(grid, grid).repeat_interleave(vision.patch_size, 0).repeat_interleave(vision.patch_size, 1)

    def _black(self) -> Tensor:
        """Return the normalized value of a black pixel, (3, 1, 1)."""
        settings = self.processor.image_processor
        return (-torch.tensor(settings.image_mean) / torch.tensor(settings.image_std)).view(3, 1, 1)

    def counts(self, batch: PairBatch) -> Outputs:
        rows = self._rows(batch)
        counts = {name: some.new_tensor(len(some)) for name, some in rows.items()}
        return counts | {"words": rows["words"].sum()}

    def losses(self, outputs: Outputs, batch: PairBatch) -> Outputs:
        found = {}
        for name, rows in self._rows(batch).items():
            logits, labels = outputs[name].float(), batch.targets[name][rows]
            if name == "patches":
                found[name] = patch_loss(logits, labels)
            else:
                found[name] = F.cross_entropy(logits, labels, reduction="sum")
        return found

    def results(self, outputs: Outputs, batch: PairBatch) -> list[Result]:
        """Return the pairs of MatchTask, and for texts with regions the entries of RegionTask."""
        rows, found = self._rows(batch), {}
        everything = self.rows(batch)
        for row, logits in zip(rows["match"].tolist(), outputs["match"].float().softmax(dim=-1), strict=True):
            id, about = everything[row]
            match = batch.targets["match"][row].item()
            score = round_significant(logits[1].item())
            found[row] = {"image": id, "text": about["text"], "match": match, "score": score}
        for row, logits in zip(rows["patches"].tolist(), outputs["patches"].float().softmax(dim=-1), strict=True):
            scores = [round(value, 4) for value in logits[:, 1].tolist()]
            labels, boxes = batch.targets["patches"][row].tolist(), everything[row][1]["boxes"]
            found[row] |= {"scores": scores, "patches": labels, "boxes": boxes}
        return [*found.values()]

    def headline(self, results: Sequence[Result]) -> dict[str, float]:
        return {"match_accuracy": match_accuracy(results), **region_headline(results)}
