"""SEVLM (Zhang et al., ECCV 2024, arXiv 2403.11150) as published, built from this project's parts.

This file holds all differences from `Captioner`; the format of the texts is in data/sevlm_text.py, training and
decoding are in preset/sevlm.yaml.

    here                                                    Captioner
    no visual prefix                                        one vector per frame in front of the text
    cross-attention inside every block, straight to all     resampled to latents, gated, in front of the blocks
      patch tokens; GPT-2 fully trained                       of a frozen GPT-2
    segments are rows of the word embedding                 a separate embedding of segments
    VAD of pieces, through an encoder over the whole text,  VAD of words, from the tokens to their left
      padding included
    VAD and hidden state through one linear layer, for      added to words that have a value, through a gate
      all tokens from 6 on
    pooled: tokens 0–5 and 6–29, padding included           the tokens of emotion and explanation

Since the encoder attends to later words, the training loss is too low: the state that predicts a word is fused with
features of that word's own VAD, which are not available in generation. Padding, too, is attended to in training only.
Irrelevant numerical differences from the published code: masked attention scores are −∞ instead of −10000, and the
contrastive loss is a log-softmax instead of a guarded ratio of exponentials, which overflowed.
Axes as in model/captioner.py; Lp = 30, the length to which every text is padded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.captioner import Captioner, Text, Visual, token_positions
from model.contrastive import span_mean

EMOTION_TOKENS = 6  # "<bos> the emotion is E because", where E is one piece


class SevlmCaptioner(Captioner):
    """Captioner with SEVLM's differences.

    Args:
        pad_id: padding token, which is embedded and attended to.
        segment_ids: tokens whose word embeddings mark the segments of emotion and explanation.
        length: Lp; shorter texts are padded to it in training.
        parts: those of Captioner, without mapper, resampler and segments.
    """

    def __init__(self, *, pad_id: int, segment_ids: tuple[int, int], length: int = 30, **parts: nn.Module | None):
        super().__init__(**parts)
        self.pad_id, self.length = pad_id, length
        self.register_buffer("segment_ids", torch.tensor(segment_ids), persistent=False)

    def look(self, frames: Tensor, frame_mask: Tensor, tokens: Tensor | None = None) -> Visual:
        """As in Captioner, for one frame per image (T = 1) and without a prefix."""
        tokens = self.encode(frames) if tokens is None else tokens.detach().to(self.language.dtype)
        patches = tokens.flatten(1, 2).contiguous()
        nothing = patches.new_empty(len(patches), 0, self.language.dim)
        return Visual(patches.mean(dim=1), nothing, frame_mask[:, :0], self.language.keys_values(patches))

    def embed(self, text: Text) -> Tensor:
        return self.language.embed(text.input_ids) + self.language.embed(self.segment_ids[text.segment])

    def text_of(self, batch) -> Text:
        """Return the batch's texts padded to Lp; padding is not masked."""
        padding = max(self.length - batch.input_ids.shape[1], 0)
        segment = batch.segment.masked_fill(~batch.attention_mask, 1)
        return Text(
            F.pad(batch.input_ids.masked_fill(~batch.attention_mask, self.pad_id), (0, padding), value=self.pad_id),
            F.pad(segment, (0, padding), value=1),
            F.pad(batch.vad, (0, 0, 0, padding)),
            F.pad(batch.vad_known, (0, padding)),
            attention_mask=None,
        )

    def fused(self, text: Text) -> Tensor:
        """All from token 6 on; padding on the left of a batch of prompts does not count."""
        mask = torch.ones_like(text.vad_known) if text.attention_mask is None else text.attention_mask
        return (token_positions(mask) >= EMOTION_TOKENS)[:, -text.input_ids.shape[1] :]

    def pooled(self, hidden: Tensor, batch) -> tuple[Tensor, Tensor]:
        """hidden (N, Lp, D) → mean states of tokens 0–5 and of all others."""
        explanation = torch.arange(hidden.shape[1], device=hidden.device) >= EMOTION_TOKENS
        return tuple(span_mean(hidden, span.expand(hidden.shape[:2])) for span in (~explanation, explanation))
