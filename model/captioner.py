"""EmoScribe's network.

    frames → vision → tokens → mapper    → visual prefix ─────────────┐     (tokens may come from a cache on disk)
                             └ resampler → latents → keys and values  │
    text   → embeddings (+ segment, + VAD of the words) ──────────────┴→ language model with cross-attention → hidden
    hidden → next-token logits · VAD of the next word · VAD of the reaction · score of (image, emotion, explanation)

model/sevlm.py builds the published SEVLM from the same parts.

Axes: B images or videos, T frames, P tokens of a frame, Q latents, N texts, L tokens of a text, S tokens of a text so
far, V vocabulary, Dv width of the vision encoder, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from model.contrastive import ContrastiveHead, find_negatives, span_mean
from model.gated_xattn import KeysValues
from model.language import LanguageModel
from model.lora import lora_layers
from model.mapper import Mapper
from model.next_word import NextWord
from model.resampler import Resampler
from model.vad import ConcatFusion, GatedFusion, VadEncoder, VadHead
from model.vision import VisionEncoder


@dataclass(slots=True)
class Visual:
    """Inputs of the language model that come from the images; computed once per image."""

    mean: Tensor  # (B, Dv) mean token
    prefix: Tensor  # (B, T, D)
    prefix_mask: Tensor  # (B, T) bool
    keys_values: Sequence[KeysValues | None]  # per block, each (B, h, Q, d); empty without cross-attention
    bridge: Mapping[str, Tensor] = field(default_factory=dict)  # trained outputs: prefix (B, T, D), latents (B, Q, Dv)

    def rows(self, text_image: Tensor) -> Visual:
        """One row per text instead of one per image: B becomes N."""
        return Visual(
            mean=self.mean[text_image],
            prefix=self.prefix[text_image],
            prefix_mask=self.prefix_mask[text_image],
            keys_values=[kv and (kv[0][text_image], kv[1][text_image]) for kv in self.keys_values],
        )

    def without_picture(self) -> Visual:
        """The input of the language model alone: no prefix and no cross-attention, as with all gates shut."""
        return Visual(torch.zeros_like(self.mean), self.prefix[:, :0], self.prefix_mask[:, :0], ())


@dataclass(slots=True)
class Text:
    """N texts. In generation, L counts the tokens to read now, and S those read before as well."""

    input_ids: Tensor  # (N, L)
    segment: Tensor  # (N, L)
    vad: Tensor  # (N, S, 3), S >= L
    vad_known: Tensor  # (N, S) bool
    attention_mask: Tensor | None  # (N, S) bool; None = no padding
    right_padded: bool = False  # padding is on the right only, so the language model needs no mask

    def rows(self, rows: Tensor) -> Text:
        """The texts of these rows, in this order."""
        tensors = (self.input_ids, self.segment, self.vad, self.vad_known, self.attention_mask)
        return Text(*(None if tensor is None else tensor[rows] for tensor in tensors), self.right_padded)

    def exchanged(self, start: Tensor, rows: Tensor, others: Tensor, *, longest: int) -> Text:
        """Return M texts, padded on the right: the beginning of text `rows[m]`, then the explanation of `others[m]`.

        Args:
            start: (N,) first token of each text's explanation; a word begins there, so the VAD of words stays valid.
            rows, others: (M,) indices of texts.
            longest: texts are truncated to this number of tokens.
        """
        begin = start[rows, None]
        shift = start[others, None] - begin
        ends = self.attention_mask.sum(dim=1)[others, None] - shift  # (M, 1)
        places = torch.arange(min(int(ends.max()), longest), device=start.device)[None]
        beginning = places < begin
        row = torch.where(beginning, rows[:, None], others[:, None])
        column = torch.where(beginning, places, places + shift).clamp(max=self.input_ids.shape[1] - 1)
        inside = places < ends
        texts = (tensor[row, column] for tensor in (self.input_ids, self.segment, self.vad, self.vad_known))
        return Text(*texts, attention_mask=inside, right_padded=True)


@dataclass(slots=True)
class CaptionerOutput:
    hidden: Tensor  # (N, L, D) after the language model's final norm
    next_word: NextWord  # of the M positions whose next token is supervised, row by row
    vad: Tensor | None = None  # (N, L, 3): position t predicts the word that token t+1 completes
    vad_sentence: Tensor | None = None  # (N, 3): mean VAD of the explanation, predicted before its first word
    contrastive: Tensor | None = None  # (N, 3) scores: true, same image's other text, other image's text
    bridge: Mapping[str, Tensor] = field(default_factory=dict)  # of the images, as in Visual

    @property
    def logits(self) -> Tensor:  # (M, V); the losses do without
        return self.next_word.logits()


class Captioner(nn.Module):
    """The network. Parts that are None are switched off; frozen parts stay in eval mode.

    read_negatives: a false explanation is read in place of the true one, after the image and emotion that it is
        compared with, and only the contrastive head is trained on it. Otherwise, as in SEVLM, its state comes from its
        own text, read with its own image and emotion, and the whole network is trained on it.
    """

    def __init__(
        self,
        *,
        vision: VisionEncoder,
        language: LanguageModel,
        mapper: Mapper | None = None,
        resampler: Resampler | None = None,
        vad_encoder: VadEncoder | None = None,
        fusion: GatedFusion | ConcatFusion | None = None,
        vad_head: VadHead | None = None,
        vad_sentence_head: VadHead | None = None,
        contrastive: ContrastiveHead | None = None,
        read_negatives: bool = False,
        segments: bool = False,
    ) -> None:
        super().__init__()
        self.vision, self.mapper, self.resampler, self.language = vision, mapper, resampler, language
        self.vad_encoder, self.fusion = vad_encoder, fusion
        self.vad_head, self.vad_sentence_head, self.contrastive = vad_head, vad_sentence_head, contrastive
        self.read_negatives = read_negatives
        self.segments = nn.Embedding(2, language.dim) if segments else None
        if self.segments is not None:
            nn.init.zeros_(self.segments.weight)  # so that a pretrained language model starts unchanged

    @property
    def causal(self) -> bool:
        """True if no state depends on later tokens; otherwise a growing text must be read again at each token."""
        return self.vad_encoder is None or self.vad_encoder.causal

    def train(self, mode: bool = True) -> Captioner:
        """Keep frozen parts in eval mode: their dropout would only be noise."""
        super().train(mode)
        for part in (self.vision, self.mapper, self.resampler):
            if part is not None and not is_trained(part):
                part.eval()
        if self.language.is_frozen:
            self.language.eval()
            trained = (part for block in self.language.blocks for part in block.conditioning)
            for part in (*trained, *(layer.lora_dropout for layer in lora_layers(self.language))):
                part.train(mode)
        return self

    def look(self, frames: Tensor, frame_mask: Tensor, tokens: Tensor | None = None) -> Visual:
        """Return all inputs that depend on the images alone: frames (B, T, 3, H, W), frame_mask (B, T) bool.

        tokens: (B, T, P, Dv), cached output of the vision encoder; it replaces `frames`, which may be empty then.
        """
        tokens = self.encode(frames) if tokens is None else tokens.detach().to(self.language.dtype)
        frame_mean = tokens.mean(dim=2)
        prefix = self.mapper(tokens, frame_mask) if self.mapper is not None else frame_mean * frame_mask[..., None]
        bridge = {"prefix": prefix} if self.mapper is not None else {}
        keys_values: Sequence[KeysValues | None] = ()
        if self.resampler is not None:
            bridge["latents"] = self.resampler(tokens, frame_mask)
            keys_values = self.language.keys_values(bridge["latents"])
        return Visual(span_mean(frame_mean, frame_mask), prefix, frame_mask, keys_values, bridge)

    def encode(self, frames: Tensor) -> Tensor:
        """Return the vision encoder's tokens (B, T, P, Dv)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained(self.vision)):
            return self.vision(frames)

    def forward(self, batch, visual: Visual | None = None) -> CaptionerOutput:
        """batch: a data.schema.Batch, or an object with its fields; visual: the result of `look`, if there is one."""
        visual = visual or self.look(batch.frames, batch.frame_mask, batch.tokens)
        bridge, visual = visual.bridge, visual.rows(batch.text_image)
        text = self.text_of(batch)
        hidden = self.read(visual, text)
        states = hidden[:, : batch.input_ids.shape[1]]  # SEVLM pads its texts further
        supervised = batch.labels[:, 1:] != -100
        next_word = self.language.next_word(states[:, :-1][supervised])
        output = CaptionerOutput(hidden=states, next_word=next_word, bridge=bridge)
        if self.vad_head is not None:
            output.vad = self.vad_head(states)
        if self.vad_sentence_head is not None:
            rows = torch.arange(len(states), device=states.device)
            output.vad_sentence = self.vad_sentence_head(states[rows, batch.explanation_start - 1])
        if self.contrastive is not None:
            output.contrastive = self._contrastive_scores(visual, text, hidden, batch)
        return output

    def _contrastive_scores(self, visual: Visual, text: Text, hidden: Tensor, batch) -> Tensor:
        """Return scores (N, 3) of the true explanation and two false ones; see `read_negatives`."""
        negatives = find_negatives(batch.text_image, batch.emotion, len(batch.frames))
        emotion, explanation = self.pooled(hidden, batch)
        if not self.read_negatives:
            return self.contrastive.scores(visual.mean, emotion, explanation, negatives)
        scores = torch.full((len(negatives), 3), float("-inf"), device=hidden.device)
        scores[:, 0] = self.contrastive(visual.mean.detach(), emotion.detach(), explanation.detach())
        row, column = (negatives >= 0).nonzero(as_tuple=True)
        if len(row):
            longest = self.language.max_positions - visual.prefix.shape[1]
            text = text.exchanged(batch.explanation_start, row, negatives[row, column], longest=longest)
            with torch.no_grad():
                false = visual.rows(row)
                states = self.pooled(self.read(false, text), text)
            scores[row, 1 + column] = self.contrastive(false.mean, *states).float()
        return scores / self.contrastive.temperature

    def text_of(self, batch) -> Text:
        return Text(batch.input_ids, batch.segment, batch.vad, batch.vad_known, batch.attention_mask, right_padded=True)

    def read(self, visual: Visual, text: Text) -> Tensor:
        """Return the language model's hidden states (N, L, D) of whole texts after their prefix; padding is masked.

        model.decoding.reader reads growing texts, each token once.
        """
        embeddings = self.embed(text)
        embeddings = torch.cat([visual.prefix.to(embeddings.dtype), embeddings], dim=1)
        positions = {}
        one_frame = visual.prefix.shape[1] <= 1
        if text.attention_mask is not None and not (text.right_padded and one_frame):
            visible = torch.cat([visual.prefix_mask, text.attention_mask], dim=1)
            positions = {"attention_mask": visible.long(), "position_ids": token_positions(visible)}
        hidden = self.language(
            embeddings,
            visual=visual.keys_values,
            entry=partial(self.fuse, text=text) if self.fusion is not None else None,
            **positions,
        )
        return hidden[:, -text.input_ids.shape[1] :]

    def embed(self, text: Text) -> Tensor:
        """Return word embeddings (N, L, D), plus those of the segments."""
        embeddings = self.language.embed(text.input_ids)
        return embeddings if self.segments is None else embeddings + self.segments(text.segment)

    def fuse(self, entering: Tensor, *, text: Text) -> Tensor:
        """Return the input of the first block, (N, prefix + L, D), with the VAD of the words added."""
        count = text.input_ids.shape[1]
        prefix, words = entering[:, :-count], entering[:, -count:]
        features = text.vad
        if self.vad_encoder is not None:
            features = self.vad_encoder(features, text.attention_mask)
        words = self.fusion(words, features[:, -count:], self.fused(text))
        return torch.cat([prefix, words], dim=1)

    def fused(self, text: Text) -> Tensor:
        """Return a mask (N, L) of the tokens that get VAD: those with a value, or all if there is a VAD encoder."""
        known = text.vad_known[:, -text.input_ids.shape[1] :]
        return known if self.vad_encoder is None else torch.ones_like(known)

    def pooled(self, hidden: Tensor, texts) -> tuple[Tensor, Tensor]:
        """hidden (N, L, D) → mean states (N, D) of the emotion and of the explanation, without padding.

        texts: a data.schema.Batch or a Text.
        """
        segments = (texts.attention_mask & (texts.segment == segment) for segment in (0, 1))
        return tuple(span_mean(hidden, mask) for mask in segments)


def is_trained(part: nn.Module) -> bool:
    return any(p.requires_grad for p in part.parameters())


def token_positions(visible: Tensor) -> Tensor:
    """(N, S) bool → position of each visible token, counted from 0 without padding."""
    return (visible.long().cumsum(dim=1) - 1).clamp(min=0)
