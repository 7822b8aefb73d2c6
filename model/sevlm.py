"""SEVLM (Zhang et al., ECCV 2024, arXiv 2403.11150) as published, of this project's own parts.

All that sets its network apart from `Captioner` is in this file; what its texts look like is in data/sevlm_text.py, its
training and decoding in preset/sevlm.yaml.

    here                                                    Captioner
    no visual prefix                                        one vector per frame in front of the text
    cross-attention inside every block, straight to all     resampled to latents, gated, in front of the blocks
      patch tokens; GPT-2 fully trained                       of a frozen GPT-2
    segments are rows of the word embedding                 an embedding of their own
    VAD of pieces, through an encoder that sees all of      VAD of words, each from what stands to its left
      the text, padding included
    VAD and hidden state through one linear map, from       added to words that have a value, through a gate
      token 6 on, whatever stands there
    pooled: tokens 0–5 and 6–29, padding included           the tokens that say emotion and explanation

That the encoder sees later words flatters training: the state that predicts a word was fused with features that hold
the VAD of that very word, so the loss of words and of VAD falls below what any model could reach that writes from left
to right, as this one must when it is used. It also sees padding in training and none in generation.
The image's vector in the contrastive head is the mean patch, as there. Numerics that differ and do not matter: masked
attention scores are −∞ instead of −10000, and the contrastive loss is a log-softmax instead of a guarded ratio of
exponentials, which overflowed.
Axes as in model/captioner.py; Lp = 30, the length to which every text is padded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.captioner import Captioner, Text, Visual, counted
from model.contrastive import ContrastiveHead, span_mean
from model.language import LanguageModel
from model.vad import ConcatFusion, GatedFusion, VadEncoder, VadHead
from model.vision import VisionEncoder

EMOTION_TOKENS = 6  # "<bos> the emotion is E because", where E is one piece


class SevlmCaptioner(Captioner):
    """See the top of this file.

    Args:
        pad_id: token of the padding, which is embedded and seen.
        segment_ids: tokens whose word embeddings stand for the segments of emotion and explanation.
        length: Lp; shorter texts are padded to it in training.
    """

    def __init__(
        self,
        *,
        vision: VisionEncoder,
        language: LanguageModel,
        pad_id: int,
        segment_ids: tuple[int, int],
        vad_encoder: VadEncoder | None = None,
        fusion: GatedFusion | ConcatFusion | None = None,
        vad_head: VadHead | None = None,
        vad_sentence_head: VadHead | None = None,
        contrastive: ContrastiveHead | None = None,
        length: int = 30,
    ) -> None:
        super().__init__(
            vision=vision,
            language=language,
            vad_encoder=vad_encoder,
            fusion=fusion,
            vad_head=vad_head,
            vad_sentence_head=vad_sentence_head,
            contrastive=contrastive,
        )
        self.pad_id, self.length = pad_id, length
        self.register_buffer("segment_ids", torch.tensor(segment_ids), persistent=False)

    def look(self, frames: Tensor, frame_mask: Tensor, tokens: Tensor | None = None) -> Visual:
        """One picture each: frames (B, 1, 3, H, W), frame_mask (B, 1); no prefix."""
        tokens = self.encode(frames) if tokens is None else tokens.detach().to(self.language.dtype)
        patches = tokens.flatten(1, 2).contiguous()
        nothing = patches.new_empty(len(patches), 0, self.language.dim)
        return Visual(patches.mean(dim=1), nothing, frame_mask[:, :0], self.language.keys_values(patches))

    def embed(self, text: Text) -> Tensor:
        return self.language.embed(text.input_ids) + self.language.embed(self.segment_ids[text.segment])

    def text_of(self, batch) -> Text:
        """The batch's texts padded to Lp, by tokens that are seen like any other."""
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
        """From token 6 on. In a batch of prompts padded on the left, padding is no token."""
        mask = text.attention_mask
        if mask is None:
            mask = torch.ones_like(text.vad_known)
        return (counted(mask) >= EMOTION_TOKENS)[:, -text.input_ids.shape[1] :]

    def pooled(self, hidden: Tensor, batch) -> tuple[Tensor, Tensor]:
        """hidden (N, Lp, D) → means of tokens 0–5 and of all others."""
        explanation = torch.arange(hidden.shape[1], device=hidden.device) >= EMOTION_TOKENS
        return tuple(span_mean(hidden, span.expand(hidden.shape[:2])) for span in (~explanation, explanation))
