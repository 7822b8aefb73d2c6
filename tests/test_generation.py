"""Writing: cached = uncached, batch = one by one, beam 1 = greedy, transformers' generate = ours on plain GPT-2."""

from __future__ import annotations

import collections
import dataclasses

import pytest
import torch
from transformers import GenerationConfig, GPT2LMHeadModel

from errors import UserError
from model.generation import Decoding, generate
from tests.tiny import GPT2, make_aligner, make_batch, make_captioner

STRATEGIES = [
    Decoding(strategy="greedy", max_length=14),
    Decoding(strategy="nucleus", max_length=14, top_p=0.9, temperature=0.8, top_k=40, seed=3),
    Decoding(strategy="beam", max_length=14, beam_width=3),
]


@pytest.fixture(scope="module")
def captioner(template):
    """Wild weights, so that texts differ from picture to picture."""
    return make_captioner(template, gates=0.9, seed=5, text__config={**GPT2, "initializer_range": 0.35})


@pytest.fixture(scope="module")
def visual(tmp_path_factory, template, captioner):
    batch = make_batch(tmp_path_factory.mktemp("pictures"), template, captioner, count=5)
    with torch.no_grad():
        return captioner.look(batch.frames, batch.frame_mask)


@pytest.fixture(scope="module")
def eos(captioner, visual, template):
    """A token that greedy texts really hold, taken as the end, so that texts end at different steps."""
    texts = [w.tokens for w in write(captioner, visual, template, Decoding(max_length=14))]
    tokens = sorted({token for text in texts for token in text})
    return max(tokens, key=lambda t: len({text.index(t) if t in text else 14 for text in texts}))


def write(captioner, visual, template, decoding, rows=range(5), eos=None):
    emotions = [0, 2, 8, 1, 2]  # labels of different lengths
    prompts = [template.explanation_prompt(emotions[i]) for i in rows]
    return generate(
        captioner,
        visual.rows(torch.tensor(list(rows))),
        [ids for ids, _ in prompts],
        explanation_tokens=[said for _, said in prompts],
        eos_id=template.eos_id if eos is None else eos,
        vad=make_aligner(template),
        decoding=decoding,
        keys=[str(i) for i in rows],
    )


@pytest.mark.parametrize("decoding", STRATEGIES, ids=lambda d: d.strategy)
def test_cached_equals_uncached(captioner, visual, template, decoding, eos):
    cached = write(captioner, visual, template, decoding, eos=eos)
    uncached = write(captioner, visual, template, dataclasses.replace(decoding, use_cache=False), eos=eos)
    assert [w.tokens for w in cached] == [w.tokens for w in uncached]
    assert [w.log_prob for w in cached] == pytest.approx([w.log_prob for w in uncached], abs=1e-4)
    assert len({tuple(w.tokens) for w in cached}) > 1, "all texts alike would prove nothing"


@pytest.mark.parametrize("decoding", STRATEGIES, ids=lambda d: d.strategy)
def test_a_batch_equals_one_by_one(captioner, visual, template, decoding, eos):
    together = write(captioner, visual, template, decoding, eos=eos)
    alone = [write(captioner, visual, template, decoding, rows=[i], eos=eos)[0] for i in range(5)]
    assert [w.tokens for w in together] == [w.tokens for w in alone]


def test_beam_of_one_is_greedy(captioner, visual, template):
    greedy = write(captioner, visual, template, Decoding(max_length=14))
    beam = write(captioner, visual, template, Decoding(strategy="beam", beam_width=1, max_length=14))
    assert [w.tokens for w in beam] == [w.tokens for w in greedy]
    assert [w.log_prob for w in beam] == pytest.approx([w.log_prob for w in greedy], abs=1e-5)


def test_beams_find_likelier_texts_than_greedy(captioner, visual, template):
    greedy = write(captioner, visual, template, Decoding(max_length=14))
    beam = write(captioner, visual, template, Decoding(strategy="beam", beam_width=6, max_length=14))
    assert sum(w.log_prob for w in beam) > sum(w.log_prob for w in greedy)


def test_sampling_is_decided_by_the_seed(captioner, visual, template):
    decoding = STRATEGIES[1]
    first = [w.tokens for w in write(captioner, visual, template, decoding)]
    torch.manual_seed(99)  # the global generator has no say
    assert first == [w.tokens for w in write(captioner, visual, template, decoding)]
    other = dataclasses.replace(decoding, seed=decoding.seed + 1)
    assert first != [w.tokens for w in write(captioner, visual, template, other)]


def test_a_narrow_nucleus_is_greedy(captioner, visual, template):
    narrow = Decoding(strategy="nucleus", top_p=1e-6, max_length=14)
    greedy = write(captioner, visual, template, Decoding(max_length=14))
    assert [w.tokens for w in write(captioner, visual, template, narrow)] == [w.tokens for w in greedy]


@pytest.mark.parametrize("decoding", STRATEGIES, ids=lambda d: d.strategy)
def test_texts_end_at_eos_or_at_the_length(captioner, visual, template, decoding, eos):
    whole = [w.tokens for w in write(captioner, visual, template, decoding)]
    cut = [w.tokens for w in write(captioner, visual, template, decoding, eos=eos)]
    assert max(map(len, whole)) <= 14 and len(set(map(len, cut))) > 1
    assert all(eos not in text for text in cut)
    if decoding.strategy == "greedy":
        assert cut == [text[: text.index(eos)] if eos in text else text for text in whole]


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("sharpness", [1.0, 2.0, 4.0])
def test_plain_gpt2_writes_what_transformers_generate_writes(template, width, sharpness):
    config = {**GPT2, "initializer_range": 0.1 * sharpness}
    captioner = make_captioner(template, seed=11, vad__enabled=False, text__segments=False, text__config=config)
    lm = captioner.language.lm
    plain = GPT2LMHeadModel(lm.config).eval()
    plain.load_state_dict({k.replace(".lm_block.", "."): v for k, v in lm.state_dict().items() if "xattn" not in k})
    prompts = torch.randint(1, len(template.tokenizer), (6, 5), generator=torch.Generator().manual_seed(2))
    visual = captioner.look(torch.randn(6, 1, 3, 32, 32), torch.ones(6, 1, dtype=torch.bool))
    visual.prefix, visual.prefix_mask = visual.prefix[:, :0], visual.prefix_mask[:, :0]
    decoding = Decoding(strategy="greedy" if width == 1 else "beam", beam_width=width, max_length=12)

    def ours(eos: int) -> list[list[int]]:
        written = generate(
            captioner, visual, prompts.tolist(), explanation_tokens=[0] * 6, eos_id=eos,
            vad=make_aligner(template), decoding=decoding,
        )  # fmt: skip
        return [w.tokens for w in written]

    common = collections.Counter(token for text in ours(template.eos_id) for token in text[2:]).most_common(1)[0][0]
    for eos in (template.eos_id, common):  # rarely, and often, chosen as the end
        settings = GenerationConfig(
            num_beams=width, max_new_tokens=12, do_sample=False, length_penalty=1.0, early_stopping=False,
            pad_token_id=eos, eos_token_id=eos, bos_token_id=eos,
        )  # fmt: skip
        mask = torch.ones_like(prompts)
        expected = plain.generate(prompts, attention_mask=mask, generation_config=settings)[:, 5:].tolist()
        assert ours(eos) == [row[: row.index(eos)] if eos in row else row for row in expected]


def test_too_long_a_text_names_the_setting(captioner, visual, template):
    with pytest.raises(UserError, match=r"trainer\.test\.max_length=200"):
        write(captioner, visual, template, Decoding(max_length=200))


def test_an_unknown_strategy_is_named(captioner, visual, template):
    with pytest.raises(UserError, match="greedy, nucleus, beam"):
        write(captioner, visual, template, Decoding(strategy="oracle"))
