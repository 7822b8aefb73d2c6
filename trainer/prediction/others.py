"""Would somebody who reads an explanation find its picture among others of the same emotion?

The others are training pictures, kept with the checkpoint. A speaker who says what makes a listener choose right is
called pragmatic (Andreas and Klein, Reasoning about pragmatics with neural listeners and speakers, 2016; for captions
Cohn-Gordon et al., Pragmatically informative image captioning with character-level inference, 2018).

CHECKPOINT/others.safetensors   of up to PER_EMOTION training pictures of each emotion: prefix (N, T, D), prefix_mask
                                (N, T), latents (N, Q, Dv) unless there is no resampler, and emotion (N,), an index into
                                the labels of the training, 0 without emotions
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from common.errors import UserError, shorten
from data.schema import Batch, Sample
from model.captioner import Captioner, Visual
from model.decoding.scoring import text_log_probs
from model.weights.tensor_files import ANOTHER_CHECKPOINT, read_tensors

FILE = "others.safetensors"
PER_EMOTION = 16
AT_ONCE = 256  # texts read at once


@dataclass
class Chosen:
    """Collects the first PER_EMOTION pictures of each emotion, the commonest of a picture's texts."""

    prefix: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    emotion: list[int] = field(default_factory=list)

    def add(self, samples: Sequence[Sample], visual: Visual) -> None:
        latents = visual.bridge.get("latents")
        for row, sample in enumerate(samples):
            emotion = Counter(sample.emotions).most_common(1)[0][0] if sample.emotions else 0
            if self.emotion.count(emotion) < PER_EMOTION:
                self.emotion.append(emotion)
                self.prefix.append(visual.prefix[row][visual.prefix_mask[row]].half().cpu())
                if latents is not None:
                    self.latents.append(latents[row].half().cpu())

    def tensors(self) -> dict[str, Tensor]:
        masks = [torch.ones(len(prefix), dtype=torch.bool) for prefix in self.prefix]
        found = {"prefix": pad_sequence(self.prefix, batch_first=True), "emotion": torch.tensor(self.emotion)}
        found["prefix_mask"] = pad_sequence(masks, batch_first=True)
        return found | ({"latents": torch.stack(self.latents)} if self.latents else {})


@dataclass
class Others:
    """The other pictures; emotion: (N,) index into the labels of the prediction, -2 for a label that it lacks."""

    prefix: Tensor
    prefix_mask: Tensor
    emotion: Tensor
    latents: Tensor | None = None

    def log_posteriors(self, captioner: Captioner, texts: Batch, rows: Tensor, own: Tensor) -> Tensor:
        """Return (M,) log p(its picture | text), if its picture and the others of its emotion are equally likely.

        Args:
            texts: of N explanations. rows: (M,) those to score.
            own: (N,) log p(text | its picture).
        """
        scores = own[rows]
        for emotion in texts.emotion[rows].unique().tolist():
            others, places = self._look(captioner, emotion), (texts.emotion[rows] == emotion).nonzero()[:, 0]
            count = len(others.prefix)
            each = torch.arange(count, device=rows.device).repeat(len(places))
            read = zip(each.split(AT_ONCE), rows[places].repeat_interleave(count).split(AT_ONCE), strict=True)
            found = [text_log_probs(captioner, others.rows(i), texts, rows=part) for i, part in read if len(part)]
            found = torch.cat(
                [own[rows[places]][:, None], torch.cat([own[:0], *found]).view(len(places), count)], dim=1
            )
            scores[places] -= found.logsumexp(dim=1)
        return scores

    def _look(self, captioner: Captioner, emotion: int) -> Visual:
        """Return the pictures of an emotion (-1: of all), as `Captioner.look` does."""
        chosen = (self.emotion == emotion) if emotion >= 0 else torch.ones_like(self.prefix_mask[:, 0])
        like = next(captioner.parameters())
        prefix, mask = self.prefix[chosen].to(like), self.prefix_mask[chosen].to(like.device)
        latents = None if self.latents is None else self.latents[chosen].to(like)
        keys_values = () if latents is None else captioner.language.keys_values(latents)
        return Visual(prefix[:, 0], prefix, mask, keys_values)


def read_others(folder: Path, *, labels: Sequence[str], trained: Sequence[str], captioner: Captioner) -> Others:
    """Return the other pictures of a checkpoint.

    Args:
        labels: of the prediction. trained: of the training.

    Raises:
        UserError: it has none, the file cannot be read, or it belongs to another network.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(
            f"trainer.test.rank_by=pragmatic needs {path}, which the end of a training on 100 pictures or more writes: "
            "finish the training, name its best checkpoint, or take trainer.test.rank_by=picture"
        )
    tensors = read_tensors(path, way_out=ANOTHER_CHECKPOINT)
    try:
        index = [labels.index(name) if name in labels else -2 for name in trained]
        tensors["emotion"] = torch.tensor([index[i] for i in tensors["emotion"].tolist()] if index else [])
        others = Others(**tensors)
        if others._look(captioner, -1).prefix.shape[2] != captioner.language.dim:
            raise ValueError("prefix")
    except (TypeError, ValueError, IndexError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} belongs to another network ({shorten(error)}); {ANOTHER_CHECKPOINT}") from error
    return others
