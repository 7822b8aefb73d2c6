"""The published generation loops in benchmarks/published.py give the texts of model.decoding.generation."""

from __future__ import annotations

import pytest
import torch

from benchmarks.published import perceiver_beam, sevlm_greedy
from data.vad.align import VadAligner
from model.build import SpecialTokens, build_captioner
from model.decoding.generation import Decoding, generate
from tests.helpers.tiny import GPT2, make_captioner, model_config

STEPS = 10
LARGE_WEIGHTS = {**GPT2, "initializer_range": 0.35}
PROMPT, SAID = [7, 40, 41, 42, 50, 60], 1


@torch.no_grad()
def ours(captioner, visual, prompt, decoding, **settings):
    count = len(visual.prefix)
    return [
        text.tokens
        for text in generate(
            captioner, visual, [prompt] * count, eos_id=-1, vad=VadAligner(None, None), decoding=decoding, **settings
        )
    ]


@pytest.mark.parametrize("width", [1, 4])
@torch.no_grad()
def test_perceiver_captioner_loop(template, width):
    captioner = make_captioner(template, gates=0.9, seed=5, text__config=LARGE_WEIGHTS)
    frames, mask = torch.randn(3, 1, 3, 32, 32), torch.ones(1, 1, dtype=torch.bool)
    visual = captioner.look(frames, mask.expand(3, 1))
    decoding = Decoding(strategy="greedy" if width == 1 else "beam", beam_width=width, max_length=STEPS)
    texts = ours(captioner, visual, PROMPT, decoding, explanation_tokens=[SAID] * 3)
    for picture, text in zip(frames, texts, strict=True):
        tokens = captioner.vision(picture[None])
        seen = captioner.mapper(tokens, mask), captioner.resampler(tokens, mask)
        assert perceiver_beam(captioner, *seen, PROMPT, said=SAID, steps=STEPS, width=width) == text
    assert len(set(map(tuple, texts))) > 1


@torch.no_grad()
def test_sevlm_loop(template):
    """Without a lexicon, since pieces are looked up in different ways."""
    torch.manual_seed(4)
    config = model_config(
        architecture="sevlm", text__config=LARGE_WEIGHTS, vision__tokens="patches", contrastive__enabled=False
    )
    config["vad"] |= {"fusion": "concat", "encoder": "bidirectional"}
    vocabulary = len(template.tokenizer) + 4
    special = SpecialTokens(vocabulary - 4, (vocabulary - 2, vocabulary - 1))
    captioner = build_captioner(config, vocab_size=vocabulary, eos_id=0, special=special).eval()
    frames = torch.randn(4, 1, 3, 32, 32)
    visual = captioner.look(frames, torch.ones(4, 1, dtype=torch.bool))
    decoding = Decoding(max_length=STEPS)
    because = ours(captioner, visual, PROMPT[:4], decoding, explanation_tokens=[0] * 4)[0][2]  # a frequent token
    texts = ours(captioner, visual, PROMPT[:4], decoding, explanation_tokens=[0] * 4, switch=because)
    theirs = sevlm_greedy(
        captioner, captioner.vision(frames)[:, 0], PROMPT[:4], because=because, steps=STEPS, pieces=[""] * vocabulary,
        lexicon={},
    )  # fmt: skip
    assert theirs == texts and len(set(map(tuple, texts))) > 1
