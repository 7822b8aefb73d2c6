"""Attention maps: they equal finite differences, and the only patch that differs is found."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from model.attention_maps import attention_biases, attention_maps, has_attention, patch_grid
from model.captioner import Captioner, Text
from tests.helpers.tiny import RESNET, VISION, make_captioner

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


def test_every_word_has_its_own_distribution_over_the_patches(captioner):
    maps = maps_of(captioner)
    assert maps.shape == (len(WORDS), 2, 2) and (maps >= 0).all() and not maps.requires_grad
    torch.testing.assert_close(maps.sum(dim=(1, 2)), torch.ones(len(WORDS)))
    assert not torch.allclose(maps[0], maps[1], atol=1e-3)


def log_prob(captioner: Captioner, word: list[int], *, layer: int, place: tuple[int, ...], step: float) -> float:
    """Return the word's log-probability with `step` added to one logit of the resampler's attention."""
    attention, words = captioner.resampler.layers[layer][0], text(captioner)

    def add(_, args):
        media, latents, _ = args
        bias = torch.zeros(1, attention.heads, latents.shape[1], media.shape[1] + latents.shape[1], dtype=media.dtype)
        bias[place] = step
        return media, latents, bias

    handle = attention.register_forward_pre_hook(add)
    with torch.no_grad():
        visual = captioner.look(frames().double(), torch.ones(1, 1, dtype=torch.bool))
        states = captioner.read(visual, Text(**words | {"vad": words["vad"].double()}, attention_mask=None))[0]
    handle.remove()
    scores = captioner.language.next_word(states).logits().log_softmax(dim=-1)
    return sum(float(scores[position, words["input_ids"][0, position + 1]]) for position in word)


def test_a_map_is_made_of_what_each_logit_of_the_attention_adds(captioner):
    """Compare with finite differences, in double precision."""
    captioner.double()
    vad, word = text(captioner)["vad"].double(), [2, 3]
    found = attention_maps(captioner, frames().double(), **{**text(captioner), "vad": vad, "words": [word]})[0]
    expected = torch.zeros(4, dtype=torch.float64)
    for layer, (attention, _) in enumerate(captioner.resampler.layers):
        for head, latent, patch in product(range(attention.heads), range(4), range(4)):
            at = {"layer": layer, "place": (0, head, latent, 1 + patch)}
            change = log_prob(captioner, word, step=1e-4, **at) - log_prob(captioner, word, step=-1e-4, **at)
            expected[patch] += max(change, 0.0)
    torch.testing.assert_close(found.flatten().double(), expected / expected.sum(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("patch", [0, 3])
def test_the_only_patch_that_differs_is_found(captioner, patch):
    tokens = torch.zeros(1, 1, captioner.vision.num_tokens, VISION["width"])
    tokens[0, 0, 1 + patch] = torch.randn(VISION["width"], generator=torch.Generator().manual_seed(3)) * 5
    for found in maps_of(captioner, tokens=tokens).flatten(1):
        others = found[[i for i in range(4) if i != patch]]
        torch.testing.assert_close(others, others[:1].expand(3), atol=1e-5, rtol=1e-3)
        assert (found[patch] - others[0]).abs() > 0.01


def test_the_hooks_change_nothing_and_are_removed(captioner):
    mask = torch.ones(1, 1, dtype=torch.bool)
    with torch.no_grad():
        before = captioner.look(frames(), mask).bridge["latents"]
        with attention_biases(captioner) as biases:
            during = captioner.look(frames(), mask).bridge["latents"]
    torch.testing.assert_close(during, before)
    assert [bias.shape for bias in biases] == [(1, 2, 4, 5 + 4)] * 2
    with pytest.raises(RuntimeError, match="stop"), attention_biases(captioner):
        raise RuntimeError("stop")
    assert not any(module._forward_pre_hooks for module in captioner.modules())


def test_no_maps_without_cross_attention_or_with_gates_at_zero(template, captioner):
    assert has_attention(captioner)
    assert not has_attention(make_captioner(template, gates=0.0))
    assert not has_attention(make_captioner(template, gates=0.7, enable_resampler_xattn=False))


@pytest.mark.parametrize(
    ("config", "grid"),
    [
        (VISION, (1, 2, 2)),
        (VISION | {"image_size": 48, "patch_size": 8}, (1, 6, 6)),
        (VISION | {"image_size": [32, 64]}, (1, 2, 4)),
        (RESNET, (0, 2, 2)),
    ],
)
def test_patch_grid_has_the_aspect_ratio_of_the_picture(template, config, grid):
    captioner = make_captioner(template, gates=0.7, vision__config=config)
    assert patch_grid(captioner.vision) == grid
