"""Read every token once with transformers' own cache, for any language model but GPT-2, which has a faster reader.

Axes: N texts, W branches of a text (beams), R = N·W rows, C continuations, L tokens, S tokens so far, D width.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor
from transformers import DynamicCache

from model.captioner import Captioner, Text, token_positions
from model.decoding.reader import CachedReader, Reader


class TransformersReader(Reader):
    """As CachedReader. The branches of a text share its image's keys and values, but not the cache."""

    def __init__(self, *args, room: int = 0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.visible = torch.cat([self.visual.prefix_mask, self.text.attention_mask], dim=1)  # (R, S)
        self.positions = token_positions(self.visible)
        self.plain = bool(self.visible.all())
        self.cache = DynamicCache(config=self.captioner.language.lm.config)

    def read_branches(self, text: Text) -> Tensor:
        """Return hidden states (N·C, L, D) of C continuations of every prompt, read at once and not kept in the cache.

        text: (N·C, L) tokens, the continuations of a text next to each other, padded on the right; its VAD and masks
        are (N·C, S + L).
        """
        kept, width = (self.cache, self.visible, self.positions), len(text.input_ids) // len(self.visible)
        self.cache = copy.deepcopy(self.cache)
        self.cache.batch_repeat_interleave(width)
        new = torch.ones_like(text.input_ids, dtype=torch.bool)
        self.visible = torch.cat([self.visible.repeat_interleave(width, dim=0), new], dim=1)
        self.positions = self.positions.repeat_interleave(width, dim=0) + new.cumsum(dim=1)
        self.text = text
        hidden = self._read(self.captioner.embed(text))
        self.cache, self.visible, self.positions = kept
        return hidden

    def _with_new(self, so_far: Tensor, new: Tensor) -> Tensor:
        return new

    def _read_prompt(self) -> Tensor:
        embeddings = self.captioner.embed(self.text)
        hidden = self._read(torch.cat([self.visual.prefix.to(embeddings.dtype), embeddings], dim=1))
        self.positions = self.positions[:, -1:]
        return self._logits(hidden[:, -1])

    def _read_tokens(self) -> Tensor:
        self.positions = self.positions + 1
        self.visible = torch.cat([self.visible, self.visible.new_ones(len(self.visible), 1)], dim=1)
        return self._logits(self._read(self.captioner.embed(self.text))[:, -1])

    def _read(self, embeddings: Tensor) -> Tensor:
        return self.captioner.language(
            embeddings,
            visual=self.visual.keys_values,
            attention_mask=None if self.plain else self.visible.long(),
            position_ids=self.positions,
            entry=None if self.captioner.fusion is None else partial(self.captioner.fuse, text=self.text),
            cache=self.cache,
        )

    def _branch(self, rows: Tensor) -> None:
        self.cache.batch_repeat_interleave(self.width)
        self.positions, self.visible = self.positions[rows], self.visible[rows]

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.cache.reorder_cache(rows)
        self.visible = self.visible[rows]

    def _keep(self, texts: Tensor, rows: Tensor) -> None:
        super()._keep(texts, texts)
        self.cache.batch_select_indices(rows)
        self.positions, self.visible = self.positions[rows], self.visible[rows]


def cached_reader(captioner: Captioner) -> type[CachedReader | TransformersReader]:
    """Return the class of reader that reads each token once."""
    return CachedReader if captioner.language.is_gpt2 else TransformersReader
