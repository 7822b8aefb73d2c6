"""Losses as sums and counts, so that the mean over an optimizer step is exact: Σ sums / Σ counts over its batches."""

from __future__ import annotations

import torch
from torch import Tensor

from model.captioner import CaptionerOutput
from model.contrastive import find_negatives, span_mean
from model.next_word import NextWord

NAMES = ("caption", "emotion", "vad", "vad_sentence", "contrastive")


def loss_counts(batch) -> dict[str, Tensor]:
    """Return the number of terms of each loss in this batch.

    caption: supervised tokens; emotion: supervised emotion names; vad: values of known words; vad_sentence: values of
    texts whose explanation has a known word; contrastive: texts with a negative. The counts need no forward pass,
    since gradient accumulation divides by their total before the first backward pass.
    """
    negatives = find_negatives(batch.text_image, batch.emotion, len(batch.frames))
    return {
        "caption": (batch.labels[:, 1:] != -100).sum(),
        "emotion": _emotion_mask(batch).any(dim=1).sum(),
        "vad": _vad_mask(batch).sum() * 3,
        "vad_sentence": _explanation_words(batch).any(dim=1).sum() * 3,
        "contrastive": (negatives >= 0).any(dim=1).sum(),
    }


def loss_sums(output: CaptionerOutput, batch, *, emotion_tokens: Tensor | None = None) -> dict[str, Tensor]:
    """Return the summed loss of each enabled part, in float32.

    Args:
        emotion_tokens: (C,) first token of each label. If given, the first token of an emotion's name is trained on the
            distribution h of the image's annotators, where it is known, instead of on this text's emotion alone: its
            loss is −Σ h_c · log p(first token of c). The later tokens of the name are trained on the text as usual.
    """
    labels = batch.labels[:, 1:]
    supervised = labels != -100
    named = _emotion_mask(batch)
    tokens = output.next_word.losses(labels[supervised])
    if emotion_tokens is not None:
        tokens = _with_shares(tokens, output.next_word, batch, emotion_tokens)
    sums = {"caption": tokens.sum(), "emotion": (tokens * named[supervised]).sum()}
    if output.vad is not None:
        errors = (output.vad[:, :-1].float() - batch.vad[:, 1:]).square().sum(dim=-1)
        sums["vad"] = (errors * _vad_mask(batch)).sum()
    if output.vad_sentence is not None:
        words = _explanation_words(batch)
        errors = (output.vad_sentence.float() - span_mean(batch.vad, words)).square().sum(dim=-1)
        sums["vad_sentence"] = (errors * words.any(dim=1)).sum()
    if output.contrastive is not None:
        scores = output.contrastive.float()  # −inf for a missing negative; a row without negatives adds 0
        sums["contrastive"] = (torch.logsumexp(scores, dim=1) - scores[:, 0]).sum()
    return sums


def _with_shares(tokens: Tensor, next_word: NextWord, batch, emotion_tokens: Tensor) -> Tensor:
    """Return the losses `tokens` (M,) with those of the emotions' first tokens replaced; see loss_sums."""
    shares = batch.histogram[batch.text_image]
    supervised = batch.labels[:, 1:] != -100
    first = supervised & (_index(supervised) == batch.emotion_start[:, None] - 1) & (shares > 0).any(dim=1)[:, None]
    chosen = first[supervised]  # at most one per row, in the order of the rows
    log_probs = next_word.logits(chosen).log_softmax(dim=-1)[:, emotion_tokens]
    return tokens.masked_scatter(chosen, -(shares[first.any(dim=1)] * log_probs).sum(dim=-1))


def _index(mask: Tensor) -> Tensor:
    return torch.arange(mask.shape[1], device=mask.device)[None, :]


def _emotion_mask(batch) -> Tensor:
    """(N, L−1): the next token is a supervised token of the emotion's name."""
    named = (batch.emotion_start >= 0)[:, None] & (batch.segment[:, 1:] == 0)
    named = named & (_index(named) >= batch.emotion_start[:, None] - 1)
    return named & (batch.labels[:, 1:] != -100)


def _explanation_words(batch) -> Tensor:
    """(N, L): this token completes a word of the explanation with known VAD."""
    return batch.vad_target & (_index(batch.vad_target) >= batch.explanation_start[:, None])


def _vad_mask(batch) -> Tensor:
    """(N, L−1): the next token is supervised and completes a word with known VAD."""
    return batch.vad_target[:, 1:] & (batch.labels[:, 1:] != -100)
