"""EmoScribe's network, whole: read this file and you know it.

    frames → vision → tokens → mapper    → visual prefix ─────────────┐     (tokens may come from a cache on disk)
                             └ resampler → latents → keys and values  │
    text   → embeddings (+ VAD of the words, + segment) ──────────────┴→ GPT-2 with gated cross-attention → hidden
    hidden → next-token logits · VAD of the next word · score of (image, emotion, explanation)

Axes: B images or videos, T frames, P tokens of a frame, Q latents, N texts, L tokens of a text, V vocabulary,
Dv width of the vision encoder, D width of GPT-2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Cache

from model.contrastive import ContrastiveHead, find_negatives, span_mean
from model.gated_xattn import KeysValues
from model.language import LanguageModel
from model.mapper import Mapper
from model.resampler import Resampler
from model.vad import VadFusion, VadHead
from model.vision import VisionEncoder


@dataclass(slots=True)
class Visual:
    """What the text needs of its images; computed once per image."""

    mean: Tensor  # (B, Dv) mean token
    prefix: Tensor  # (B, T, D)
    prefix_mask: Tensor  # (B, T) bool
    keys_values: Sequence[KeysValues | None]  # per GPT-2 block, each (B, h, Q, d); empty without cross-attention

    def rows(self, text_image: Tensor) -> Visual:
        """One row per text instead of one per image: B becomes N."""
        return Visual(
            mean=self.mean[text_image],
            prefix=self.prefix[text_image],
            prefix_mask=self.prefix_mask[text_image],
            keys_values=[kv and (kv[0][text_image], kv[1][text_image]) for kv in self.keys_values],
        )


@dataclass(slots=True)
class CaptionerOutput:
    hidden: Tensor  # (N, L, D) after GPT-2's final norm
    logits: Tensor  # (M, V) for the M positions whose next token is supervised, row by row
    vad: Tensor | None = None  # (N, L, 3): position t predicts the word that token t+1 completes
    contrastive: Tensor | None = None  # (N, 3) scores: true, same image's other text, other image's text


class Captioner(nn.Module):
    """See the top of this file. Parts that are None are switched off; a part that is frozen stays in eval mode."""

    def __init__(
        self,
        *,
        vision: VisionEncoder,
        language: LanguageModel,
        mapper: Mapper | None = None,
        resampler: Resampler | None = None,
        fusion: VadFusion | None = None,
        vad_head: VadHead | None = None,
        contrastive: ContrastiveHead | None = None,
        segments: bool = False,
    ) -> None:
        super().__init__()
        self.vision = vision
        self.mapper = mapper
        self.resampler = resampler
        self.language = language
        self.fusion = fusion
        self.vad_head = vad_head
        self.contrastive = contrastive
        self.segments = nn.Embedding(2, language.dim) if segments else None
        if self.segments is not None:
            nn.init.zeros_(self.segments.weight)  # at the start GPT-2 sees what it was trained on

    def train(self, mode: bool = True) -> Captioner:
        """Frozen parts stay in eval mode: their dropout would only be noise."""
        super().train(mode)
        for part in (self.vision, self.mapper, self.resampler):
            if part is not None and not is_trained(part):
                part.eval()
        if not is_trained(self.language.lm.transformer.wpe):
            self.language.eval()
            for gated in self.language.cross_attention:
                gated.train(mode)
        return self

    def look(self, frames: Tensor, frame_mask: Tensor, tokens: Tensor | None = None) -> Visual:
        """Everything that depends on the images alone: frames (B, T, 3, H, W), frame_mask (B, T) bool.

        tokens: (B, T, P, Dv), what the vision encoder gave for these frames before; then it does not run again, and
            the frames may be empty.
        """
        if tokens is None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained(self.vision)):
                tokens = self.vision(frames)
        else:
            tokens = tokens.detach().float()
        frame_mean = tokens.mean(dim=2)
        prefix = self.mapper(tokens, frame_mask) if self.mapper is not None else frame_mean * frame_mask[..., None]
        keys_values: Sequence[KeysValues | None] = ()
        if self.resampler is not None:
            keys_values = self.language.keys_values(self.resampler(tokens, frame_mask))
        return Visual(span_mean(frame_mean, frame_mask), prefix, frame_mask, keys_values)

    def embed(self, input_ids: Tensor, segment: Tensor, vad: Tensor, vad_known: Tensor) -> Tensor:
        """Word embeddings (N, L, D) with the VAD of the words and the segment in them."""
        embeddings = self.language.embed(input_ids)
        if self.fusion is not None:
            embeddings = self.fusion(embeddings, vad, vad_known)
        if self.segments is not None:
            embeddings = embeddings + self.segments(segment)
        return embeddings

    def forward(self, batch, visual: Visual | None = None) -> CaptionerOutput:
        """batch: a data.schema.Batch, or anything with its fields; visual: what `look` gave, if called before."""
        visual = (visual or self.look(batch.frames, batch.frame_mask, batch.tokens)).rows(batch.text_image)
        embeddings = self.embed(batch.input_ids, batch.segment, batch.vad, batch.vad_known)
        still = visual.prefix.shape[1] == 1  # one frame each, so texts are padded on the right only
        hidden = self.read(visual, embeddings, None if still else batch.attention_mask)
        supervised = batch.labels[:, 1:] != -100
        output = CaptionerOutput(hidden=hidden, logits=self.language.logits(hidden[:, :-1][supervised]))
        if self.vad_head is not None:
            output.vad = self.vad_head(hidden)
        if self.contrastive is not None:
            output.contrastive = self._contrast(visual, hidden, batch)
        return output

    def read(
        self, visual: Visual, embeddings: Tensor, attention_mask: Tensor | None, cache: Cache | None = None
    ) -> Tensor:
        """GPT-2 over [prefix; text]: the text's hidden states (N, L, D); padded frames and tokens are not seen.

        attention_mask: (N, L) bool; None where nothing is padded but the right end, which nothing before it sees.
        """
        positions = {}
        if attention_mask is not None:
            positions = visible_positions(torch.cat([visual.prefix_mask, attention_mask], dim=1))
        hidden = self.language(
            torch.cat([visual.prefix.to(embeddings.dtype), embeddings], dim=1),
            visual=visual.keys_values,
            cache=cache,
            **positions,
        )
        return hidden[:, visual.prefix.shape[1] :]

    def _contrast(self, visual: Visual, hidden: Tensor, batch) -> Tensor:
        said = batch.attention_mask & (batch.segment == 1)
        emotion = span_mean(hidden, batch.attention_mask & (batch.segment == 0))
        negatives = find_negatives(batch.text_image, batch.emotion, len(batch.frames))
        return self.contrastive.scores(visual.mean, emotion, span_mean(hidden, said), negatives)


def is_trained(part: nn.Module) -> bool:
    return any(p.requires_grad for p in part.parameters())


def visible_positions(visible: Tensor) -> dict[str, Tensor]:
    """GPT-2's mask and positions where padding, wherever it stands, neither is seen nor counts: visible (N, S) bool."""
    visible = visible.long()
    return {"attention_mask": visible, "position_ids": (visible.cumsum(dim=1) - 1).clamp(min=0)}
