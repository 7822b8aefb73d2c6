"""Collating items into a batch: padding, text order, ragged clips, empty batches."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from data.collate import Item, TextItem, collate
from data.schema import Batch, Sample, Skipped
from data.text import IGNORED, EncodedText


def text_item(length: int, *, emotion: int = 0, first: int = 7) -> TextItem:
    """Return a text of `length` tokens in which no value equals the padding."""
    ids = list(range(first, first + length))
    encoded = EncodedText(
        ids, [IGNORED, *ids[1:]], [1] * length, emotion_start=emotion, explanation_start=length, truncated=False
    )
    known = torch.ones(length, dtype=torch.bool)
    return TextItem(encoded, emotion, torch.full((length, 3), 0.5), known, known.clone())


def item(name: str, *, frames: int = 1, lengths: tuple[int, ...] = (4,), histogram=None) -> Item:
    sample = Sample(name, Path(f"/{name}.png"), ("x",) * len(lengths), (), histogram)
    return Item(sample, torch.full((frames, 3, 4, 5), 1.0), [text_item(n, emotion=i) for i, n in enumerate(lengths)])


@pytest.fixture
def ragged() -> Batch:
    shares = (0.5, 0.5, *[0.0] * 7)
    return collate([item("a", lengths=(3, 6), histogram=shares), item("b", lengths=(4,)), item("c", lengths=(5, 2, 3))])


def test_positions_are_text_or_padding(ragged):
    lengths = torch.tensor([3, 6, 4, 5, 2, 3])
    real = torch.arange(6) < lengths[:, None]
    assert torch.equal(ragged.attention_mask, real)
    for name, padding in (("input_ids", 0), ("labels", IGNORED), ("segment", 0), ("vad_known", 0), ("vad_target", 0)):
        tensor = getattr(ragged, name)
        assert tensor.shape == (6, 6)
        assert (tensor[~real] == padding).all(), name
        assert (tensor[real] != padding).any(), name
    assert (ragged.vad[real] == 0.5).all() and (ragged.vad[~real] == 0).all()
    for row, length in enumerate(lengths.tolist()):
        assert ragged.input_ids[row, :length].tolist() == list(range(7, 7 + length))
        assert ragged.labels[row, :length].tolist() == [IGNORED, *range(8, 7 + length)]


def test_texts_are_in_image_order(ragged):
    assert ragged.text_image.tolist() == [0, 0, 1, 2, 2, 2]
    assert ragged.emotion.tolist() == ragged.emotion_start.tolist() == [0, 1, 0, 0, 1, 2]
    assert ragged.explanation_start.tolist() == [3, 6, 4, 5, 2, 3]
    assert ragged.ids == ["a", "b", "c"]


def test_missing_histogram_is_a_row_of_zeros(ragged):
    assert ragged.histogram[0].tolist() == [0.5, 0.5] + [0.0] * 7
    assert not ragged.histogram[1:].any()


def test_clips_are_padded_to_the_longest():
    batch = collate([item("a", frames=2), item("b", frames=5), item("c", frames=1)])
    assert batch.frames.shape == (3, 5, 3, 4, 5)
    assert batch.frame_mask.tolist() == [[t < n for t in range(5)] for n in (2, 5, 1)]
    assert (batch.frames[batch.frame_mask] == 1).all() and (batch.frames[~batch.frame_mask] == 0).all()


def test_skipped_items_leave_no_gap():
    broken = Skipped("b", Path("/b.png"), "it is damaged")
    batch = collate([item("a", lengths=(3,)), broken, item("c", lengths=(4, 5))])
    assert batch.ids == ["a", "c"] and batch.skipped == [broken]
    assert len(batch.frames) == 2 and batch.text_image.tolist() == [0, 1, 1]


def test_batch_of_skipped_images_only():
    batch = collate([Skipped(str(i), Path(f"/{i}.png"), "the file is empty") for i in range(3)])
    assert batch.ids == [] and len(batch.skipped) == 3
    assert len(batch.frames) == len(batch.frame_mask) == len(batch.input_ids) == len(batch.histogram) == 0
    for name in DTYPES:
        assert getattr(batch, name).dtype == DTYPES[name], name


def test_batch_without_texts_has_images():
    batch = collate([item("a", lengths=()), item("b", lengths=())])
    assert batch.frames.shape == (2, 1, 3, 4, 5) and batch.frame_mask.all()
    assert batch.input_ids.shape == (0, 0) and batch.vad.shape == (0, 0, 3)


DTYPES = {
    "frames": torch.float32, "frame_mask": torch.bool, "input_ids": torch.int64, "labels": torch.int64,
    "attention_mask": torch.bool, "segment": torch.int64, "emotion_start": torch.int64,
    "explanation_start": torch.int64, "text_image": torch.int64, "vad": torch.float32, "vad_known": torch.bool,
    "vad_target": torch.bool, "emotion": torch.int64, "histogram": torch.float32,
}  # fmt: skip


def with_tokens(name: str, *, frames: int = 1) -> Item:
    """Return an item as with a feature cache: frames without pixels."""
    tokens = torch.full((frames, 2, 6), 1.0, dtype=torch.float16)
    return Item(Sample(name, Path(f"/{name}.png"), ("x",)), torch.empty(frames, 3, 0, 0), [text_item(4)], tokens)


def test_tokens_replace_pixels():
    broken = Skipped("x", Path("/x.png"), "it is damaged")
    batch = collate([with_tokens("a", frames=2), broken, with_tokens("b", frames=3), with_tokens("c")])
    assert batch.ids == ["a", "b", "c"] and batch.frames.shape == (3, 3, 3, 0, 0)
    assert batch.tokens.shape == (3, 3, 2, 6) and batch.tokens.dtype == torch.float16
    assert batch.frame_mask.tolist() == [[True, True, False], [True] * 3, [True, False, False]]
    assert (batch.tokens[batch.frame_mask] == 1).all() and (batch.tokens[~batch.frame_mask] == 0).all()
    assert batch.to("meta").tokens.device.type == "meta"
    assert collate([broken]).tokens is None


def test_dtypes(ragged):
    assert {f.name for f in fields(Batch)} == {
        *DTYPES,
        "ids",
        "languages",
        "tokens",
        "skipped",
    } and ragged.tokens is None
    for name, dtype in DTYPES.items():
        assert getattr(ragged, name).dtype == dtype, name


def test_to_moves_every_tensor_and_keeps_the_rest(ragged):
    ragged.skipped.append(Skipped("z", Path("/z.png"), "x"))
    moved = ragged.to("meta")
    assert all(getattr(moved, name).device.type == "meta" for name in DTYPES)
    assert moved.ids == ragged.ids and moved.skipped == ragged.skipped
    assert ragged.frames.device.type == "cpu"


def test_loader_pins_every_tensor(ragged, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.to("meta"))  # pinning needs a GPU
    pinned = pin_memory(ragged)
    assert all(getattr(pinned, name).device.type == "meta" for name in DTYPES) and pinned.ids == ragged.ids


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU to pin memory for")
def test_pinned_batch_is_equal(ragged):
    pinned = pin_memory(ragged)
    assert all(
        getattr(pinned, name).is_pinned() and torch.equal(*(getattr(b, name) for b in (pinned, ragged)))
        for name in DTYPES
    )
