"""The losses, each as a sum and a count, so that gradient accumulation and several processes average them exactly.

The mean over an optimiser step is Σ sums / Σ counts over all of its batches, never a mean of means.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.captioner import CaptionerOutput
from model.contrastive import find_negatives

NAMES = ("caption", "vad", "contrastive")


def loss_counts(batch) -> dict[str, Tensor]:
    """What each loss of this batch is averaged over: supervised tokens; known values; texts that have a negative.

    Known before the forward pass, because an accumulated step must be normalised before its first backward pass.
    """
    negatives = find_negatives(batch.text_image, batch.emotion, len(batch.frames))
    return {
        "caption": (batch.labels[:, 1:] != -100).sum(),
        "vad": _vad_mask(batch).sum() * 3,
        "contrastive": (negatives >= 0).any(dim=1).sum(),
    }


def loss_sums(output: CaptionerOutput, batch) -> dict[str, Tensor]:
    """Summed loss of each part that is switched on, in float32."""
    labels = batch.labels[:, 1:]
    sums = {"caption": F.cross_entropy(output.logits.float(), labels[labels != -100], reduction="sum")}
    if output.vad is not None:
        errors = (output.vad[:, :-1].float() - batch.vad[:, 1:]).square().sum(dim=-1)
        sums["vad"] = (errors * _vad_mask(batch)).sum()
    if output.contrastive is not None:
        scores = output.contrastive.float()  # −inf where there is no negative; a row without any contributes 0
        sums["contrastive"] = (torch.logsumexp(scores, dim=1) - scores[:, 0]).sum()
    return sums


def _vad_mask(batch) -> Tensor:
    """(N, L−1): the next token completes a word of known VAD, inside the supervised part."""
    return batch.vad_target[:, 1:] & (batch.labels[:, 1:] != -100)
