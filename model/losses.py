"""The losses, each as a sum and a count, so that gradient accumulation and several processes average them exactly.

The mean over an optimiser step is Σ sums / Σ counts over all of its batches, never a mean of means.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.captioner import CaptionerOutput
from model.contrastive import find_negatives

NAMES = ("caption", "emotion", "vad", "contrastive")


def loss_counts(batch) -> dict[str, Tensor]:
    """What each loss of this batch is averaged over: supervised tokens; emotions; known values; texts with a negative.

    Known before the forward pass, because an accumulated step must be normalised before its first backward pass.
    """
    negatives = find_negatives(batch.text_image, batch.emotion, len(batch.frames))
    return {
        "caption": (batch.labels[:, 1:] != -100).sum(),
        "emotion": _emotion_mask(batch).any(dim=1).sum(),
        "vad": _vad_mask(batch).sum() * 3,
        "contrastive": (negatives >= 0).any(dim=1).sum(),
    }


def loss_sums(output: CaptionerOutput, batch) -> dict[str, Tensor]:
    """Summed loss of each part that is switched on, in float32."""
    labels = batch.labels[:, 1:]
    supervised = labels != -100
    tokens = F.cross_entropy(output.logits.float(), labels[supervised], reduction="none")
    sums = {"caption": tokens.sum(), "emotion": (tokens * _emotion_mask(batch)[supervised]).sum()}
    if output.vad is not None:
        errors = (output.vad[:, :-1].float() - batch.vad[:, 1:]).square().sum(dim=-1)
        sums["vad"] = (errors * _vad_mask(batch)).sum()
    if output.contrastive is not None:
        scores = output.contrastive.float()  # −inf where there is no negative; a row without any contributes 0
        sums["contrastive"] = (torch.logsumexp(scores, dim=1) - scores[:, 0]).sum()
    return sums


def _emotion_mask(batch) -> Tensor:
    """(N, L−1): the next token is a supervised one of the emotion's name."""
    named = (batch.segment[:, 1:] == 0) & (batch.emotion >= 0)[:, None]
    return named & (batch.labels[:, 1:] != -100)


def _vad_mask(batch) -> Tensor:
    """(N, L−1): the next token completes a word of known VAD, inside the supervised part."""
    return batch.vad_target[:, 1:] & (batch.labels[:, 1:] != -100)
