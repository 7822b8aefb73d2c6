"""Reading in pieces equals one pass: growing, branching and dropped rows."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from model.decoding.kv_cache import KeyValueCache, read_cached
from model.language import LanguageModel
from tests.helpers.tiny import GPT2

XATTN = {"dim_head": 8, "heads": 2, "ff_mult": 1, "activation": "gelu", "gate_init": 0.8}
KINDS = {
    "in front": {"xattn": {**XATTN, "freq": 2}},
    "inside": {"xattn": None, "inside": True},
    "none": {"xattn": None},
}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def language(kind, **changes):
    torch.manual_seed(1)
    lm = GPT2LMHeadModel(GPT2Config(**{**GPT2, "initializer_range": 0.3, **changes}, vocab_size=50))
    return LanguageModel(lm, pretrained=False, dim_visual=32, **KINDS[kind]).eval()


def read(model, ids, cache, *, visual, start, visible=None):
    positions = start + torch.arange(ids.shape[1])
    return read_cached(
        model, model.embed(ids), cache, positions=positions, visual=visual, visible=visible, entry=lambda hidden: hidden
    )


def in_pieces(model, ids, lengths, *, visual):
    """Return the hidden states of the texts, read in pieces of these lengths."""
    cache, start, hidden = KeyValueCache(model, len(ids), room=1), 0, []
    for part in ids.split(lengths, dim=1):
        visible = causal(part.shape[1], after=start)
        hidden.append(read(model, part, cache, visual=visual, start=start, visible=visible))
        start += part.shape[1]
    return torch.cat(hidden, dim=1)


def causal(count, *, after=0):
    return torch.ones(1, count, after + count, dtype=torch.bool).tril(after)


def ids_and_visual(model, count=3, length=9):
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 50, (count, length), generator=generator)
    return ids, model.keys_values(torch.randn(count, 5, 32, generator=generator))


@pytest.mark.parametrize("changes", [{}, {"activation_function": "relu"}, {"scale_attn_weights": False}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_reading_in_pieces_equals_one_pass(kind, changes):
    model = language(kind, **changes)
    ids, visual = ids_and_visual(model)
    whole, cache = model(model.embed(ids), visual=visual), KeyValueCache(model, 3, room=4)  # too small, so it must grow
    pieces, start = [], 0
    for part in ids.split([4, 1, 1, 3], dim=1):
        visible = causal(part.shape[1], after=start) if part.shape[1] > 1 else None
        pieces.append(read(model, part, cache, visual=visual, start=start, visible=visible))
        start += part.shape[1]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, **CLOSE)
    assert cache.length == 9 <= cache.buffer.shape[4]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_branches_attend_to_the_prompt_and_themselves(kind):
    """Two continuations of one prompt, token by token, against two whole texts."""
    model = language(kind)
    ids, visual = ids_and_visual(model, count=2)
    prompt, continuations = ids[:, :3], torch.stack([ids[:, 3:6], ids[:, 6:9]], dim=1)  # (N, W, 3)
    cache = KeyValueCache(model, 2, room=9)
    read(model, prompt, cache, visual=visual, start=0, visible=causal(3))
    visible, hidden = torch.ones(1, 2, 3, dtype=torch.bool), []
    for step, tokens in enumerate(continuations.unbind(2)):
        visible = torch.cat([visible, torch.eye(2, dtype=torch.bool)[None]], dim=2)
        positions = torch.full((2, 2), 3 + step)
        hidden.append(
            read_cached(
                model, model.embed(tokens), cache, positions=positions, visual=visual, visible=visible,
                entry=lambda entering: entering,
            )
        )  # fmt: skip
    for way in range(2):
        whole = model(model.embed(torch.cat([prompt, continuations[:, way]], dim=1)), visual=visual)[:, 3:]
        torch.testing.assert_close(torch.stack([h[:, way] for h in hidden], dim=1), whole, **CLOSE)


def test_room_doubles_or_is_what_is_needed():
    cache = KeyValueCache(language("in front"), 3, room=4)
    for needed, room in ((4, 4), (5, 8), (40, 40)):
        cache.reserve(needed)
        assert cache.buffer.shape[4] == room


@torch.no_grad()
def test_kept_texts_continue_unchanged():
    model = language("in front")
    ids, visual = ids_and_visual(model)
    whole, cache = model(model.embed(ids), visual=visual), KeyValueCache(model, 3, room=20)
    read(model, ids[:, :6], cache, visual=visual, start=0, visible=causal(6))
    rows = torch.tensor([2, 0])
    cache.keep(rows)
    kept = [kv and (kv[0][rows], kv[1][rows]) for kv in visual]
    seen = read(model, ids[rows, 6:], cache, visual=kept, start=6, visible=causal(3, after=6))
    torch.testing.assert_close(seen, whole[rows, 6:], **CLOSE)
