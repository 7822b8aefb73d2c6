"""Readers return the logits of the next token of growing texts.

Axes: N texts, W branches of a text (beams), R = N·W rows, those of a text next to each other, L prompt tokens,
S tokens so far, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from model.captioner import Captioner, Text, Visual, token_positions
from model.decoding.kv_cache import KeyValueCache, read_cached


class WordVad(Protocol):
    """VAD of words from their tokens; depends on no later tokens."""

    def align(self, input_ids: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """(L,) ids → vad (L, 3), known (L,) bool, target (L,) bool."""

    def start(self, prompts: Sequence[Sequence[int]], device: torch.device) -> WordState:
        """Return the state of N rows at the end of their prompts."""


class WordState(Protocol):
    """State of growing texts; at each token, results equal those of `align` for the whole text."""

    def step(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Append one token per row, (R,) → its vad (R, 3) and known (R,), on the device of the state."""

    def reorder(self, rows: Tensor) -> None:
        """Continue row r from row rows[r]; the number of rows may change."""


def prompt_text(
    prompts: Sequence[Sequence[int]], explanation_tokens: Sequence[int], vad: WordVad, device: torch.device
) -> Text:
    """Return prompts of any lengths as one batch, padded on the left so that all end at the same column.

    explanation_tokens: number of tokens at the end of each prompt that belong to the explanation segment.
    """
    count, width = len(prompts), max(map(len, prompts))
    input_ids, segment = torch.zeros(2, count, width, dtype=torch.long)
    known, mask = torch.zeros(2, count, width, dtype=torch.bool)
    values = torch.zeros(count, width, 3)
    for i, (prompt, explained) in enumerate(zip(prompts, explanation_tokens, strict=True)):
        start = width - len(prompt)
        input_ids[i, start:] = torch.tensor(prompt)
        segment[i, width - explained :] = 1
        values[i, start:], known[i, start:], _ = vad.align(prompt)
        mask[i, start:] = True
    return Text(*(tensor.to(device) for tensor in (input_ids, segment, values, known, mask)))


class Reader:
    """Recompute every text at each token: slow, for reference and for captioners that are not causal.

    Args:
        visual: a row per text.
        prompt: return value of prompt_text.
        words: state at the end of the prompts; None if `step` is not called.
        width: W.
        switch: token that begins the explanation segment if the prompt has not reached it; None = the segment stays
            that of the prompt's last token.
    """

    def __init__(
        self,
        captioner: Captioner,
        visual: Visual,
        prompt: Text,
        words: WordState | None,
        *,
        width: int = 1,
        switch: int | None = None,
    ) -> None:
        self.captioner, self.visual, self.text, self.words = captioner, visual, prompt, words
        self.width, self.switch = width, switch
        self.segment = prompt.segment[:, -1]

    def start(self) -> Tensor:
        """Read the prompts; return logits (N, V) of the first token, and give every text W equal branches."""
        logits = self._read_prompt()
        if self.width > 1:
            rows = torch.arange(len(logits), device=logits.device).repeat_interleave(self.width)
            self._reorder(rows)
            self._branch(rows)
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """Read a token per row, (R,); return logits (R, V), float32, of the next."""
        vad, known = self.words.step(tokens)
        if self.switch is not None:
            self.segment = torch.where(tokens == self.switch, 1, self.segment)
        so_far, ones = self.text, self.text.attention_mask.new_ones(len(tokens), 1)
        self.text = Text(
            self._with_new(so_far.input_ids, tokens[:, None]),
            self._with_new(so_far.segment, self.segment[:, None]),
            torch.cat([so_far.vad, vad[:, None]], dim=1),
            torch.cat([so_far.vad_known, known[:, None]], dim=1),
            torch.cat([so_far.attention_mask, ones], dim=1),
        )
        return self._read_tokens()

    def reorder(self, rows: Tensor) -> None:
        """Continue row r from row rows[r], which is of the same text."""
        self._reorder(rows)

    def keep(self, texts: Tensor) -> None:
        """Keep only these texts with all their branches, in this order."""
        branches = torch.arange(self.width, device=texts.device)
        rows = (texts[:, None] * self.width + branches).view(-1)
        self._reorder(rows)
        self._keep(texts, rows)

    def _reorder(self, rows: Tensor) -> None:
        self.text = self.text.rows(rows)
        self.words.reorder(rows)
        self.segment = self.segment[rows]

    def _with_new(self, so_far: Tensor, new: Tensor) -> Tensor:
        return torch.cat([so_far, new], dim=1)

    def _read_prompt(self) -> Tensor:
        return self._read_tokens()

    def _read_tokens(self) -> Tensor:
        return self._logits(self.captioner.read(self.visual, self.text)[:, -1])

    def _branch(self, rows: Tensor) -> None:
        self.visual = self.visual.rows(rows)

    def _keep(self, texts: Tensor, rows: Tensor) -> None:
        self.visual = self.visual.rows(rows)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.captioner.language.logits(hidden).float()


class GuidedReader:
    """Classifier-free guidance against the network without the picture (Ho and Salimans, 2022; Sanchez et al., 2023).

    The logits are (1 + g)·log p(token | picture) − g·log p(token | no picture).

    Args:
        readers: of the same prompts, with the pictures and without.
        guidance: g.
    """

    def __init__(self, *readers: Reader, guidance: float) -> None:
        self.readers, self.guidance = readers, guidance

    def start(self) -> Tensor:
        return self._guided(*(reader.start() for reader in self.readers))

    def step(self, tokens: Tensor) -> Tensor:
        return self._guided(*(reader.step(tokens) for reader in self.readers))

    def reorder(self, rows: Tensor) -> None:
        for reader in self.readers:
            reader.reorder(rows)

    def keep(self, texts: Tensor) -> None:
        for reader in self.readers:
            reader.keep(texts)

    def _guided(self, seen: Tensor, blind: Tensor) -> Tensor:
        seen, blind = seen.log_softmax(dim=-1), blind.log_softmax(dim=-1)
        return seen + self.guidance * (seen - blind)


class CachedReader(Reader):
    """Read every token once; the branches of a text share prompt and image.

    room: expected number of tokens.
    """

    def __init__(self, *args, room: int = 0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # Used for every token, so contiguous heads save time.
        self.keys_values = [kv and (kv[0].contiguous(), kv[1].contiguous()) for kv in self.visual.keys_values]
        visible = torch.cat([self.visual.prefix_mask, self.text.attention_mask], dim=1)  # (N, S)
        room = visible.shape[1] + room * self.width
        self.cache = KeyValueCache(self.captioner.language, len(visible), room=room)
        self.positions = token_positions(visible)
        self.visible: Tensor | None = visible[:, None]  # (N, W, S); None: every token attends to all earlier ones
        self.plain = self.width == 1 and bool(visible.all())

    def read_branches(self, text: Text) -> Tensor:
        """Return hidden states (N·C, L, D) of C continuations of every prompt, read at once and not kept in the cache.

        text: (N·C, L) tokens, the continuations of a text next to each other; its VAD and masks are (N·C, S + L).
        """
        texts, (rows, length) = len(self.positions), text.input_ids.shape
        index = torch.arange(rows // texts * length, device=text.input_ids.device)
        own = (index[:, None] // length == index // length) & (index[:, None] >= index)
        before = own.new_ones(texts, len(index), self.cache.length) if self.visible is None else self.visible
        visible = torch.cat([before.expand(-1, len(index), -1), own.expand(texts, -1, -1)], dim=2)
        positions = self.positions.repeat_interleave(rows // texts, dim=0) + 1 + index[:length]
        self.text = text
        hidden = self._read(self.captioner.embed(text), positions, visible)
        self.cache.length -= len(index)
        return hidden.view(rows, length, -1)

    def _with_new(self, so_far: Tensor, new: Tensor) -> Tensor:
        return new

    def _read_prompt(self) -> Tensor:
        size = self.visible.shape[2]
        embeddings = self.captioner.embed(self.text)
        embeddings = torch.cat([self.visual.prefix.to(embeddings.dtype), embeddings], dim=1)
        earlier = torch.ones(size, size, dtype=torch.bool, device=embeddings.device).tril()
        itself = torch.eye(size, dtype=torch.bool, device=embeddings.device)  # padding: attention to nothing is NaN
        hidden = self._read(embeddings, self.positions, (self.visible & earlier) | itself)
        self.positions = self.positions[:, -1:]
        if self.plain:
            self.visible = None
        return self._logits(hidden[:, -1])

    def _read_tokens(self) -> Tensor:
        self.positions = self.positions + 1
        if self.visible is not None:
            itself = torch.eye(self.width, dtype=torch.bool, device=self.positions.device)
            self.visible = torch.cat([self.visible, itself.expand(len(self.visible), -1, -1)], dim=2)
        hidden = self._read(self.captioner.embed(self.text), self.positions, self.visible)
        return self._logits(hidden.flatten(0, 1))

    def _read(self, embeddings: Tensor, positions: Tensor, visible: Tensor | None) -> Tensor:
        """embeddings (N, prefix + L, D) or (R, 1, D) → hidden (N, prefix + L, D) or (N, W, D)."""

        def enter(entering: Tensor) -> Tensor:
            if self.captioner.fusion is not None:
                entering = self.captioner.fuse(entering, text=self.text)
            return entering.view(self.cache.buffer.shape[2], -1, entering.shape[2])

        where = {"positions": positions, "visible": visible}
        return read_cached(
            self.captioner.language, embeddings, self.cache, visual=self.keys_values, entry=enter, **where
        )

    def _branch(self, rows: Tensor) -> None:
        self.positions = self.positions[rows]
        self.visible = self.visible.expand(-1, self.width, -1)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        if self.visible is not None:
            self.visible = self.visible.flatten(0, 1)[rows].view_as(self.visible)

    def _keep(self, texts: Tensor, rows: Tensor) -> None:
        self.keys_values = [kv and (kv[0][texts], kv[1][texts]) for kv in self.keys_values]
        self.cache.keep(texts)
        self.positions = self.positions[rows]
        if self.visible is not None:
            self.visible = self.visible[texts]
