"""Details of single parts: segments, tokens that get VAD, random numbers, truncation."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from model.decoding.generation import Decoding, _Nucleus
from model.resampler import Resampler
from tests.helpers.tiny import make_captioner


@pytest.fixture(scope="module")
def captioner(template):
    return make_captioner(template)


def test_pooled_returns_the_emotion_before_the_explanation(captioner):
    hidden = torch.tensor([[[1.0], [2.0], [3.0], [9.0]]])
    mask, segment = torch.tensor([[True, True, True, False]]), torch.tensor([[0, 0, 1, 1]])
    emotion, explanation = captioner.pooled(hidden, SimpleNamespace(attention_mask=mask, segment=segment))
    assert (emotion.item(), explanation.item()) == (1.5, 3.0)


def test_all_tokens_get_vad_with_an_encoder_and_else_those_with_a_value(captioner, monkeypatch):
    text = SimpleNamespace(vad_known=torch.tensor([[True, False, True]]), input_ids=torch.zeros(1, 2))
    monkeypatch.setattr(captioner, "vad_encoder", None)
    assert captioner.fused(text).tolist() == [[False, True]]
    monkeypatch.setattr(captioner, "vad_encoder", torch.nn.Identity())
    assert captioner.fused(text).tolist() == [[True, True]]


def test_every_step_draws_another_random_number():
    sampler = _Nucleus(Decoding(strategy="nucleus", max_length=20), ["a"], torch.device("cpu"))
    assert len({sampler(torch.zeros(1, 10_000), step).item() for step in range(20)}) > 15


@pytest.mark.parametrize("frames", [2, 3])
def test_latents_do_not_depend_on_padding_frames(frames):
    torch.manual_seed(0)
    sizes = {"depth": 1, "dim_head": 4, "heads": 2, "num_latents": 3, "num_time_embeds": 4, "ff_mult": 1}
    resampler = Resampler(8, **sizes, activation="gelu")
    tokens, mask = torch.randn(1, frames, 5, 8), torch.tensor([[True] + [False] * (frames - 1)])
    torch.testing.assert_close(resampler(tokens, mask), resampler(tokens[:, :1], mask[:, :1]))


def test_a_text_of_the_greatest_length_is_whole_and_one_token_more_is_truncated(template):
    longest = template.max_length
    cut = template.encode("sky " * 200, 0)
    assert cut.truncated and len(cut.input_ids) == longest and cut.input_ids[-1] == template.eos_id
    texts = [template.encode(" ".join(["a"] * count), 0) for count in range(1, longest)]
    whole = [text for text in texts if not text.truncated]
    assert max(len(text.input_ids) for text in whole) == longest
    assert sum(len(text.input_ids) == longest for text in whole) == 1, "each word is a token"
