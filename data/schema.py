"""What every reader gives (`Sample`) and what every batch holds (`Batch`).

Axes: B images or videos, T frames, N texts (N >= B), L tokens of the longest text, C labels (names of emotions).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the readers and what prepares data for them need no torch, which takes seconds to load
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sample:
    """One image (or video) with what people said of it."""

    id: str
    path: Path  # absolute, inside its visual_dir
    texts: tuple[str, ...]  # explanations or captions; empty texts where an emotion is named without a reason
    emotions: tuple[int, ...] = ()  # index into the labels, one per text; empty where the data has none
    histogram: tuple[float, ...] | None = None  # the annotators' share of each label, summing to 1


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that could not be used, and why; it travels where its sample would have."""

    id: str
    path: Path
    reason: str


@dataclass(slots=True)
class Batch:
    """B images and their N texts; text_image says which image a text belongs to, so an image is encoded once."""

    ids: list[str]  # B
    frames: Tensor  # (B, T, 3, H, W) float; of height and width 0 where there are tokens
    frame_mask: Tensor  # (B, T) bool, True for a real frame
    input_ids: Tensor  # (N, L) int64, padded on the right
    labels: Tensor  # (N, L) int64, -100 outside the supervised part
    attention_mask: Tensor  # (N, L) bool
    segment: Tensor  # (N, L) int64: 0 prompt and emotion, 1 from "because" on
    emotion_start: Tensor  # (N,) int64: index of the first token of the emotion's name, -1 where there is none
    explanation_start: Tensor  # (N,) int64: index of the first token of the explanation
    text_image: Tensor  # (N,) int64, ascending
    vad: Tensor  # (N, L, 3) float in -1..1, 0 where unknown
    vad_known: Tensor  # (N, L) bool: the value of the word so far is known
    vad_target: Tensor  # (N, L) bool: known, and this piece ends its word (what the VAD head is trained on)
    emotion: Tensor  # (N,) int64, -1 where the data has none
    histogram: Tensor  # (B, C) float, rows of zeros where the data has none
    tokens: Tensor | None = None  # (B, T, P, Dv) float16, of a cache: what the vision encoder gives for the frames
    skipped: list[Skipped] = field(default_factory=list)

    def to(self, device: torch.device | str) -> Batch:
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """What a loader of torch asks for, so that copies to a GPU need not be waited for."""
        return self._changed(lambda tensor: tensor.pin_memory())

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Batch:
        from torch import Tensor

        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if isinstance(value, Tensor)})

    @property
    def supervised_tokens(self) -> int:
        return int((self.labels[:, 1:] != -100).sum())
