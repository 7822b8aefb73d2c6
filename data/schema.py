"""Types of the data: `Sample` comes from a reader, `Batch` goes to the model.

Axes: B images or clips, T frames, N texts (N >= B), L tokens of the longest text, C labels, P tokens of a frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:  # torch is slow to load, and readers do not need it
    import torch
    from torch import Tensor


class Ratings(NamedTuple):
    """Mean ratings of a picture by people, on a scale from `low` to `high`; NaN for a dimension that was not rated."""

    valence: float
    arousal: float
    dominance: float
    low: float
    high: float

    @property
    def vad(self) -> tuple[float, float, float]:
        """The ratings mapped to −1..1."""
        return tuple(2 * (value - self.low) / (self.high - self.low) - 1 for value in self[:3])


@dataclass(frozen=True, slots=True)
class Sample:
    """One image or clip with its annotations."""

    id: str
    path: Path  # absolute, inside its visual_dir
    texts: tuple[str, ...]  # explanations or captions; "" for an emotion without explanation
    emotions: tuple[int, ...] = ()  # label index of each text; empty without emotions
    histogram: tuple[float, ...] | None = None  # share of annotators per label, sum 1
    language: str = ""  # of the texts, as data.languages.language_name; "" if the data set does not name it
    ratings: Ratings | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """An unusable image and the reason, in place of its item."""

    id: str
    path: Path
    reason: str


class Movable:
    """Base of batches, dataclasses whose tensors move together."""

    __slots__ = ()

    def to(self, device: torch.device | str) -> Self:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Called by DataLoader; makes copies to the GPU asynchronous."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        from torch import Tensor
        from torch.utils._pytree import tree_map_only

        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **tree_map_only(Tensor, change, values))


@dataclass(slots=True)
class Batch(Movable):
    """B images with N texts; an image is encoded once for all its texts."""

    ids: list[str]  # B
    frames: Tensor  # (B, T, 3, H, W) float32; H = W = 0 if there are tokens
    frame_mask: Tensor  # (B, T) bool, False for padding
    input_ids: Tensor  # (N, L) int64, right-padded
    labels: Tensor  # (N, L) int64, -100 where not supervised
    attention_mask: Tensor  # (N, L) bool
    segment: Tensor  # (N, L) int64: 0 prompt and emotion, 1 from "because" on
    emotion_start: Tensor  # (N,) int64: index of the first token of the emotion, or -1
    explanation_start: Tensor  # (N,) int64: index of the first token of the explanation
    text_image: Tensor  # (N,) int64: image of each text, ascending
    vad: Tensor  # (N, L, 3) float32 in -1..1, 0 where unknown
    vad_known: Tensor  # (N, L) bool: the word up to this token has a value
    vad_target: Tensor  # (N, L) bool: known, and the word ends here; target of the VAD head
    emotion: Tensor  # (N,) int64: label index, or -1
    histogram: Tensor  # (B, C) float32, a row of zeros if missing
    languages: list[str] = field(default_factory=list)  # B; as Sample.language
    tokens: Tensor | None = None  # (B, T, P, Dv) float16: cached output of the vision encoder
    skipped: list[Skipped] = field(default_factory=list)
