"""Guidance against the network without the picture, and the probability of whole texts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import GPT2LMHeadModel

from model.decoding import scoring
from model.decoding.generation import Decoding, generate
from model.decoding.reader import CachedReader, Reader, prompt_text
from model.decoding.scoring import text_log_probs
from tests.helpers.tiny import GPT2, make_aligner, make_batch, make_captioner, video_batch

STRATEGIES = [
    Decoding(strategy="greedy", max_length=10),
    Decoding(strategy="nucleus", max_length=10, top_p=0.9, seed=3),
    Decoding(strategy="beam", max_length=10, beam_width=3),
]


@pytest.fixture(scope="module")
def captioner(template):
    return make_captioner(template, gates=0.9, seed=5, text__config={**GPT2, "initializer_range": 0.35})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, template, captioner):
    return make_batch(tmp_path_factory.mktemp("pictures"), template, captioner, count=4)


@pytest.fixture(scope="module", params=["pictures", "clips"])
def batch(request, pictures):
    return pictures if request.param == "pictures" else video_batch(pictures, [2, 4, 1, 3])


@torch.no_grad()
def look(captioner, batch):
    return captioner.look(batch.frames, batch.frame_mask)


def write(captioner, visual, template, decoding):
    prompts, counts = zip(*(template.explanation_prompt(emotion) for emotion in (0, 8, 2, 4)), strict=True)
    return generate(
        captioner, visual, prompts, explanation_tokens=counts, eos_id=template.eos_id, vad=make_aligner(template),
        decoding=decoding,
    )  # fmt: skip


def guided(decoding, guidance, **changes):
    return dataclasses.replace(decoding, guidance=guidance, **changes)


@pytest.mark.parametrize("decoding", STRATEGIES, ids=lambda d: d.strategy)
def test_guided_texts_are_equal_with_and_without_cache(captioner, batch, template, decoding):
    visual = look(captioner, batch)
    cached = write(captioner, visual, template, guided(decoding, 1.5))
    uncached = write(captioner, visual, template, guided(decoding, 1.5, use_cache=False))
    assert [text.tokens for text in cached] == [text.tokens for text in uncached]
    assert [text.log_prob for text in cached] == pytest.approx([text.log_prob for text in uncached], abs=1e-4)
    plain = write(captioner, visual, template, decoding)
    assert [text.tokens for text in plain] != [text.tokens for text in cached], "guidance must change texts"
    assert write(captioner, visual, template, guided(decoding, 0.0)) == plain


@pytest.mark.parametrize("decoding", STRATEGIES, ids=lambda d: d.strategy)
def test_guidance_against_itself_changes_nothing(captioner, template, pictures, decoding):
    """With the pictures taken from both readers, the guided distribution is the plain one."""
    blind = look(captioner, pictures).without_picture()
    plain, pushed = (write(captioner, blind, template, guided(decoding, g)) for g in (0.0, 2.0))
    assert [text.tokens for text in pushed] == [text.tokens for text in plain]
    assert [text.log_prob for text in pushed] == pytest.approx([text.log_prob for text in plain], abs=1e-4)


@torch.no_grad()
def test_greedy_token_maximizes_the_formula(captioner, pictures, template):
    visual, vad = look(captioner, pictures), make_aligner(template)
    prompts, counts = zip(*(template.explanation_prompt(emotion) for emotion in (0, 8, 2, 4)), strict=True)
    prompt = prompt_text(prompts, counts, vad, visual.prefix.device)
    seen, blind = (
        Reader(captioner, view, prompt, None).start().log_softmax(dim=-1) for view in (visual, visual.without_picture())
    )
    for guidance in (0.5, 4.0):
        expected = ((1 + guidance) * seen - guidance * blind).argmax(dim=1).tolist()
        found = write(captioner, visual, template, Decoding(max_length=1, guidance=guidance))
        assert [text.tokens[0] if text.tokens else template.eos_id for text in found] == expected


@torch.no_grad()
@pytest.mark.parametrize("kind", [Reader, CachedReader])
def test_without_picture_and_gates_shut_it_is_the_plain_language_model(template, pictures, kind):
    captioner = make_captioner(template, seed=2, text__config={**GPT2, "initializer_range": 0.3})
    visual, lm = look(captioner, pictures), captioner.language.lm
    plain = GPT2LMHeadModel(lm.config).eval()
    plain.load_state_dict({k.replace(".lm_block.", "."): v for k, v in lm.state_dict().items() if "xattn" not in k})
    prompt, count = template.explanation_prompt(2)
    text = prompt_text([prompt] * 4, [count] * 4, make_aligner(template), visual.prefix.device)
    expected = plain(torch.tensor([prompt])).logits[:, -1].expand(4, -1)
    found = kind(captioner, visual.without_picture(), text, None).start()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(kind(captioner, visual, text, None).start(), expected, atol=1e-3), "the prefix counts"


@torch.no_grad()
@pytest.mark.parametrize("sight", ["with the picture", "without"])
def test_log_prob_of_a_text_is_the_sum_over_single_steps(captioner, batch, template, sight, monkeypatch):
    visual, aligner = look(captioner, batch), make_aligner(template)
    visual = visual if sight == "with the picture" else visual.without_picture()
    found = text_log_probs(captioner, visual.rows(batch.text_image), batch)
    for row, image in enumerate(batch.text_image):
        ids = batch.input_ids[row][batch.attention_mask[row]].tolist()
        start = int(batch.explanation_start[row])
        text = prompt_text([ids[:start]], [len(template.because)], aligner, visual.prefix.device)
        reader = CachedReader(captioner, visual.rows(image[None]), text, aligner.start([ids[:start]], image.device))
        logits, total = reader.start(), 0.0
        for token in ids[start:]:
            total += float(logits.log_softmax(dim=-1)[0, token])
            logits = reader.step(torch.tensor([token]))
        assert ids[-1] == template.eos_id and float(found[row]) == pytest.approx(total, abs=1e-3)
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 1000)  # three positions at a time
    torch.testing.assert_close(text_log_probs(captioner, visual.rows(batch.text_image), batch), found)


def test_a_network_that_sees_later_words_gives_no_probability(template, pictures):
    captioner = make_captioner(template, vad__encoder="bidirectional")
    with pytest.raises(ValueError, match="later words"):
        text_log_probs(captioner, look(captioner, pictures).rows(pictures.text_image), pictures)
    texts = write(captioner, look(captioner, pictures), template, Decoding(max_length=4, guidance=1.0))
    assert all(text.log_prob < 0 for text in texts), "but it can be guided"
