"""Attention maps: what blurring a part of the picture does to each word."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.attention_maps import attention_maps, blurred_parts, has_attention
from model.captioner import Captioner, Text
from tests.helpers.tiny import make_captioner

LENGTH = 7


@pytest.fixture
def captioner(template) -> Captioner:
    return make_captioner(template, gates=0.7)


def text(captioner: Captioner) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, captioner.language.lm.config.vocab_size, (1, LENGTH), generator=generator)
    nothing = torch.zeros(1, LENGTH, dtype=torch.long)
    return {"input_ids": ids, "segment": nothing, "vad": torch.zeros(1, LENGTH, 3), "vad_known": nothing.bool()}


def frames(size: int = 32) -> torch.Tensor:
    return torch.randn(1, 1, 3, size, size, generator=torch.Generator().manual_seed(2))


WORDS = [[0], [2, 3], [5]]


def maps_of(captioner: Captioner, **changes) -> torch.Tensor:
    return attention_maps(captioner, frames(), **{**text(captioner), "words": WORDS, **changes})


def test_every_word_has_its_own_distribution_over_the_picture(captioner):
    maps = maps_of(captioner)
    assert maps.shape == (len(WORDS), 8, 8) and (maps >= 0).all()
    torch.testing.assert_close(maps.sum(dim=(1, 2)), torch.ones(len(WORDS)))
    assert not torch.allclose(maps[0], maps[1], atol=1e-3)


def test_a_map_is_made_of_what_each_part_adds_to_the_word(captioner):
    mask, words = torch.ones(1, 1, dtype=torch.bool), text(captioner)

    def log_prob(visual) -> float:
        states = captioner.read(visual, Text(**words, attention_mask=None))[0]
        scores = captioner.language.next_word(states).logits().log_softmax(dim=-1)
        return sum(float(scores[position, words["input_ids"][0, position + 1]]) for position in (2, 3))

    with torch.no_grad():
        whole = captioner.look(frames(), mask)
        copies, rows, columns = blurred_parts(frames()[0, 0])
        views = [replace(captioner.look(copy[None, None], mask), prefix=whole.prefix) for copy in copies]
        gains = torch.tensor([max(log_prob(whole) - log_prob(view), 0.0) for view in views])
    expected = (gains / gains.sum()).view(rows, columns)
    torch.testing.assert_close(maps_of(captioner)[1], expected, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(("size", "grid"), [((32, 32), (8, 8)), ((32, 64), (4, 8)), ((224, 224), (8, 8))])
def test_each_copy_is_blurred_in_one_cell_and_its_neighbors(size, grid):
    frame = torch.rand(3, *size)
    copies, rows, columns = blurred_parts(frame)
    assert (rows, columns) == grid and len(copies) == rows * columns
    changed = (copies != frame).any(dim=1).view(rows, columns, *size)
    high, wide = size[0] // rows, size[1] // columns
    expected = torch.zeros(size, dtype=torch.bool)
    expected[high : 4 * high, : 2 * wide] = True
    assert torch.equal(changed[2, 0], expected)
    assert all(torch.equal(copy, frame) for copy in blurred_parts(torch.ones(3, *size))[0] * frame)


def test_no_maps_without_cross_attention_or_with_gates_at_zero(template, captioner):
    assert has_attention(captioner)
    assert not has_attention(make_captioner(template, gates=0.0))
    assert not has_attention(make_captioner(template, gates=0.7, enable_resampler_xattn=False))
