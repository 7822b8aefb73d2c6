"""The losses, each as a sum and a count, so that gradient accumulation and several processes average them exactly.

The mean over an optimiser step is Σ sums / Σ counts over all of its batches, never a mean of means.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.captioner import CaptionerOutput
from model.contrastive import find_negatives, span_mean
from model.next_word import NextWord

NAMES = ("caption", "emotion", "vad", "vad_sentence", "contrastive")


def loss_counts(batch) -> dict[str, Tensor]:
    """What each loss of this batch is averaged over.

    caption: supervised tokens; emotion: supervised names; vad: values of known words; vad_sentence: values of texts
    whose explanation has a known word; contrastive: texts with a negative.

    Known before the forward pass, because an accumulated step must be normalised before its first backward pass.
    """
    negatives = find_negatives(batch.text_image, batch.emotion, len(batch.frames))
    return {
        "caption": (batch.labels[:, 1:] != -100).sum(),
        "emotion": _emotion_mask(batch).any(dim=1).sum(),
        "vad": _vad_mask(batch).sum() * 3,
        "vad_sentence": _explained(batch).any(dim=1).sum() * 3,
        "contrastive": (negatives >= 0).any(dim=1).sum(),
    }


def loss_sums(output: CaptionerOutput, batch, *, emotion_tokens: Tensor | None = None) -> dict[str, Tensor]:
    """Summed loss of each part that is switched on, in float32.

    Args:
        emotion_tokens: (C,) first token of each label. Then the first token of an emotion's name is trained on what the
            image's annotators said, wherever it is known, and not on this text's emotion alone: h_c being their shares,
            its loss is −Σ h_c · log p(first token of c). Labels that share this token add their shares; which of them
            it is, the later tokens tell, which are trained on the text as ever.
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
        words = _explained(batch)
        errors = (output.vad_sentence.float() - span_mean(batch.vad, words)).square().sum(dim=-1)
        sums["vad_sentence"] = (errors * words.any(dim=1)).sum()
    if output.contrastive is not None:
        scores = output.contrastive.float()  # −inf where there is no negative; a row without any contributes 0
        sums["contrastive"] = (torch.logsumexp(scores, dim=1) - scores[:, 0]).sum()
    return sums


def _with_shares(tokens: Tensor, next_word: NextWord, batch, emotion_tokens: Tensor) -> Tensor:
    """The losses `tokens` (M,), with those of the first tokens of emotions replaced; see loss_sums."""
    shares = batch.histogram[batch.text_image]
    supervised = batch.labels[:, 1:] != -100
    first = supervised & (_index(supervised) == batch.emotion_start[:, None] - 1) & (shares > 0).any(dim=1)[:, None]
    chosen = first[supervised]  # at most one of a row, in the order of the rows
    log_probs = next_word.logits(chosen).log_softmax(dim=-1)[:, emotion_tokens]
    return tokens.masked_scatter(chosen, -(shares[first.any(dim=1)] * log_probs).sum(dim=-1))


def _index(mask: Tensor) -> Tensor:
    """(1, L): 0, 1, …"""
    return torch.arange(mask.shape[1], device=mask.device)[None, :]


def _emotion_mask(batch) -> Tensor:
    """(N, L−1): the next token is a supervised one of the emotion's name."""
    named = (batch.emotion_start >= 0)[:, None] & (batch.segment[:, 1:] == 0)
    named = named & (_index(named) >= batch.emotion_start[:, None] - 1)
    return named & (batch.labels[:, 1:] != -100)


def _explained(batch) -> Tensor:
    """(N, L): this token completes a word of known VAD of the explanation."""
    return batch.vad_target & (_index(batch.vad_target) >= batch.explanation_start[:, None])


def _vad_mask(batch) -> Tensor:
    """(N, L−1): the next token completes a word of known VAD, inside the supervised part."""
    return batch.vad_target[:, 1:] & (batch.labels[:, 1:] != -100)
