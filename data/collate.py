"""Collate items of a data set into a Batch, padded to its longest text and its longest clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data.emotions import EMOTIONS
from data.schema import Batch, Sample, Skipped
from data.text import IGNORED, EncodedText, Template
from data.vad.align import VadAligner
from data.vad.pieces import PieceAligner


@dataclass(slots=True)
class TextItem:
    encoded: EncodedText
    emotion: int  # -1: no emotion
    vad: Tensor  # (L, 3)
    vad_known: Tensor  # (L,)
    vad_target: Tensor  # (L,)


@dataclass(slots=True)
class Item:
    sample: Sample
    frames: Tensor  # (T, 3, H, W); (T, 3, 0, 0) if there are tokens
    texts: list[TextItem]
    tokens: Tensor | None = None  # (T, P, Dv), for all items of a batch or none


def collate(items: Sequence[Item | Skipped], *, labels: int = len(EMOTIONS)) -> Batch:
    """Return a batch of the readable items, the others in `batch.skipped`; it may have no image at all.

    Args:
        labels: size of the label set, C.
    """
    skipped = [item for item in items if isinstance(item, Skipped)]
    good = [item for item in items if isinstance(item, Item)]
    texts = [text for item in good for text in item.texts]
    encoded = [text.encoded for text in texts]
    lengths = torch.tensor([len(item.frames) for item in good])
    frames = pad_sequence([item.frames for item in good], batch_first=True) if good else torch.empty(0, 0, 3, 0, 0)
    tokens = [item.tokens for item in good if item.tokens is not None]
    shares = [item.sample.histogram or (0.0,) * labels for item in good]
    return Batch(
        ids=[item.sample.id for item in good],
        frames=frames,
        frame_mask=torch.arange(frames.shape[1])[None, :] < lengths[:, None],
        input_ids=_pad([text.input_ids for text in encoded], 0),
        labels=_pad([text.labels for text in encoded], IGNORED),
        attention_mask=_pad([[True] * len(text.input_ids) for text in encoded], False),
        segment=_pad([text.segment for text in encoded], 0),
        emotion_start=torch.tensor([text.emotion_start for text in encoded], dtype=torch.long),
        explanation_start=torch.tensor([text.explanation_start for text in encoded], dtype=torch.long),
        text_image=torch.tensor([i for i, item in enumerate(good) for _ in item.texts], dtype=torch.long),
        vad=pad_sequence([text.vad for text in texts], batch_first=True) if texts else torch.empty(0, 0, 3),
        vad_known=_pad([text.vad_known for text in texts], False),
        vad_target=_pad([text.vad_target for text in texts], False),
        emotion=torch.tensor([text.emotion for text in texts], dtype=torch.long),
        histogram=torch.tensor(shares, dtype=torch.float32).view(len(good), labels),
        languages=[item.sample.language for item in good],
        tokens=pad_sequence(tokens, batch_first=True) if tokens else None,
        skipped=skipped,
    )


def collate_texts(
    texts: Sequence[str],
    emotions: Sequence[int | None],
    languages: Sequence[str] | None = None,
    *,
    template: Template,
    aligner: VadAligner | PieceAligner,
) -> Batch:
    """Return whole texts, encoded as in training, as a batch without images; languages: "" for the template's own."""
    items = []
    for text, emotion, language in zip(texts, emotions, languages or [""] * len(texts), strict=True):
        encoded = template.encode(text, emotion, language=language)
        item = TextItem(encoded, -1 if emotion is None else emotion, *aligner.align(encoded.input_ids))
        items.append(Item(Sample("", Path(), ()), torch.empty(0, 3, 0, 0), [item]))
    return collate(items)


def _pad(rows: Sequence, value: int | bool) -> Tensor:
    dtype = torch.bool if isinstance(value, bool) else torch.long
    if not rows:
        return torch.empty(0, 0, dtype=dtype)
    return pad_sequence([torch.as_tensor(row, dtype=dtype) for row in rows], batch_first=True, padding_value=value)
