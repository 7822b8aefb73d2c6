"""Generation: cached = uncached, batch = one by one, beam 1 = greedy, plain GPT-2 = transformers' generate."""

from __future__ import annotations

import collections
import dataclasses
import random

import pytest
import torch
from transformers import GenerationConfig, GPT2LMHeadModel

from common.errors import UserError
from data.vad.align import VadAligner
from data.vad.lexicon import Lexicon
from model.captioner import Text
from model.decoding.generation import Decoding, generate
from tests.helpers.tiny import GPT2, make_aligner, make_batch, make_captioner

STRATEGIES = [
    Decoding(strategy="greedy", max_length=14),
    Decoding(strategy="nucleus", max_length=14, top_p=0.9, temperature=0.8, top_k=40, seed=3),
    Decoding(strategy="beam", max_length=14, beam_width=3),
]
EMOTIONS = [0, 2, 8, 1, 2]  # of the five texts; labels of different lengths


@pytest.fixture(scope="module")
def captioner(template):
    """Large random weights, so that texts differ between pictures."""
    return make_captioner(template, gates=0.9, seed=5, text__config={**GPT2, "initializer_range": 0.35})


@pytest.fixture(scope="module")
def visual(tmp_path_factory, template, captioner):
    batch = make_batch(tmp_path_factory.mktemp("pictures"), template, captioner, count=5)
    with torch.no_grad():
        return captioner.look(batch.frames, batch.frame_mask)


@pytest.fixture(scope="module")
def eos(captioner, visual, template):
    """A token that occurs in greedy texts, used as <eos> so that texts end at different steps."""
    texts = [w.tokens for w in write(captioner, visual, template, Decoding(max_length=14))]
    tokens = sorted({token for text in texts for token in text})
    return max(tokens, key=lambda t: len({text.index(t) if t in text else 14 for text in texts}))


def write(captioner, visual, template, decoding, rows=range(5), eos=None, vad=None):
    prompts = [template.explanation_prompt(EMOTIONS[i]) for i in rows]
    return generate(
        captioner,
        visual.rows(torch.tensor(list(rows))),
        [ids for ids, _ in prompts],
        explanation_tokens=[count for _, count in prompts],
        eos_id=template.eos_id if eos is None else eos,
        vad=vad or make_aligner(template),
        decoding=decoding,
        keys=[str(i) for i in rows],
    )


@pytest.mark.parametrize("decoding", STRATEGIES, ids=lambda d: d.strategy)
def test_cached_equals_uncached(captioner, visual, template, decoding, eos):
    cached = write(captioner, visual, template, decoding, eos=eos)
    uncached = write(captioner, visual, template, dataclasses.replace(decoding, use_cache=False), eos=eos)
    assert [w.tokens for w in cached] == [w.tokens for w in uncached]
    assert [w.log_prob for w in cached] == pytest.approx([w.log_prob for w in uncached], abs=1e-4)
    assert len({tuple(w.tokens) for w in cached}) > 1, "texts must differ for this test"


class RealigningVad:
    """VAD of words, by aligning every text from its first token again at each step."""

    def __init__(self, aligner: VadAligner) -> None:
        self.align = aligner.align
        self.known: list[bool] = []

    def start(self, prompts, device):
        self.texts = [list(prompt) for prompt in prompts]
        return self

    def step(self, tokens):
        self.texts = [[*text, token] for text, token in zip(self.texts, tokens.tolist(), strict=True)]
        vad, known, _ = zip(*(self.align(text) for text in self.texts), strict=True)
        self.known += [bool(flags[-1]) for flags in known]
        return torch.stack([values[-1] for values in vad]), torch.stack([flags[-1] for flags in known])

    def reorder(self, rows):
        self.texts = [self.texts[row] for row in rows.tolist()]


def syllables(template) -> VadAligner:
    """Return an aligner whose lexicon has pieces and pairs of pieces, so that words of random text have values."""
    rng = random.Random(0)
    pieces = [word for i in range(len(template.tokenizer)) if (word := template.decode([i])).isalpha()]
    words = [*pieces, *(rng.choice(pieces) + rng.choice(pieces) for _ in range(5000))]
    return VadAligner(
        Lexicon({word: tuple(rng.uniform(-1, 1) for _ in range(3)) for word in words}), template.tokenizer
    )


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("decoding", STRATEGIES, ids=lambda d: d.strategy)
def test_vad_of_words_equals_that_of_realigned_texts(captioner, visual, template, decoding, use_cache):
    aligner, decoding = syllables(template), dataclasses.replace(decoding, use_cache=use_cache)
    reference = RealigningVad(aligner)
    expected = write(captioner, visual, template, decoding, vad=reference)
    assert write(captioner, visual, template, decoding, vad=aligner) == expected
    assert 0.1 < sum(reference.known) / len(reference.known) < 1, "both known and unknown words must occur"
    without = write(captioner, visual, template, decoding, vad=VadAligner(None, template.tokenizer))
    assert without != expected, "the values must affect the texts for this test"


@pytest.mark.parametrize("decoding", STRATEGIES, ids=lambda d: d.strategy)
def test_log_prob_equals_that_of_one_forward_pass(captioner, visual, template, decoding, eos):
    """One pass over prompt and text, with the VAD of words as in training."""
    aligner = syllables(template)
    for row, text in enumerate(write(captioner, visual, template, decoding, eos=eos, vad=aligner)):
        prompt, count = template.explanation_prompt(EMOTIONS[row])
        targets = [*text.tokens, eos][: decoding.max_length]
        ids = torch.tensor([[*prompt, *targets[:-1]]])
        vad, known, _ = aligner.align(ids[0])
        segment = (torch.arange(ids.shape[1]) >= len(prompt) - count).long()[None]
        with torch.no_grad():
            text_read = Text(ids, segment, vad[None], known[None], None)
            hidden = captioner.read(visual.rows(torch.tensor([row])), text_read)
            log_probs = captioner.language.logits(hidden)[0, len(prompt) - 1 :].log_softmax(dim=-1)
        assert text.log_prob == pytest.approx(log_probs[range(len(targets)), targets].mean().item(), abs=1e-4)


@pytest.mark.parametrize("decoding", STRATEGIES, ids=lambda d: d.strategy)
def test_results_do_not_depend_on_the_batch(captioner, visual, template, decoding, eos):
    together = write(captioner, visual, template, decoding, eos=eos)
    alone = [write(captioner, visual, template, decoding, rows=[i], eos=eos)[0] for i in range(5)]
    assert [w.tokens for w in together] == [w.tokens for w in alone]


def test_beam_of_one_is_greedy(captioner, visual, template):
    greedy = write(captioner, visual, template, Decoding(max_length=14))
    beam = write(captioner, visual, template, Decoding(strategy="beam", beam_width=1, max_length=14))
    assert [w.tokens for w in beam] == [w.tokens for w in greedy]
    assert [w.log_prob for w in beam] == pytest.approx([w.log_prob for w in greedy], abs=1e-5)


def test_beams_find_more_likely_texts_than_greedy(captioner, visual, template):
    greedy = write(captioner, visual, template, Decoding(max_length=14))
    beam = write(captioner, visual, template, Decoding(strategy="beam", beam_width=6, max_length=14))
    assert sum(w.log_prob for w in beam) > sum(w.log_prob for w in greedy)


def test_sampling_depends_only_on_the_seed(captioner, visual, template):
    decoding = STRATEGIES[1]
    first = [w.tokens for w in write(captioner, visual, template, decoding)]
    torch.manual_seed(99)  # the global generator must not matter
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
def test_plain_gpt2_generates_the_tokens_of_transformers(template, width, sharpness):
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
    for eos in (template.eos_id, common):  # a rare and a frequent <eos>
        settings = GenerationConfig(
            num_beams=width, max_new_tokens=12, do_sample=False, length_penalty=1.0, early_stopping=False,
            pad_token_id=eos, eos_token_id=eos, bos_token_id=eos,
        )  # fmt: skip
        mask = torch.ones_like(prompts)
        expected = plain.generate(prompts, attention_mask=mask, generation_config=settings)[:, 5:].tolist()
        assert ours(eos) == [row[: row.index(eos)] if eos in row else row for row in expected]


@pytest.mark.parametrize("decoding", STRATEGIES, ids=lambda d: d.strategy)
def test_ended_texts_are_not_read_further(captioner, visual, template, decoding, eos):
    read = []
    hook = captioner.language.lm.transformer.ln_f.register_forward_hook(lambda *_, **__: read.append(_[2].shape[0]))
    try:
        texts = write(captioner, visual, template, decoding, eos=eos)
    finally:
        hook.remove()
    ends = sorted(len(text.tokens) for text in texts)
    assert read[0] == 5 and read == sorted(read, reverse=True) and read[-1] < 5, (read, ends)


def test_host_rarely_waits_for_the_device(captioner, visual, template, monkeypatch):
    """Count transfers from device to host, each of which blocks; a lexicon would add one per token."""
    vad = VadAligner(None, template.tokenizer)
    transfers = []
    for name in ("__bool__", "__int__", "item", "tolist"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda x, real=real, name=name: transfers.append(name) or real(x))
    monkeypatch.setattr("model.decoding.generation.check_every", lambda device: 8)
    monkeypatch.setattr("model.decoding.beam.check_every", lambda device: 8)
    counts = {}
    for length in (14, 29):
        for decoding in STRATEGIES:
            transfers.clear()
            write(captioner, visual, template, dataclasses.replace(decoding, max_length=length), eos=-1, vad=vad)
            counts[decoding.strategy, length] = len(transfers)
    for decoding in STRATEGIES:
        assert counts[decoding.strategy, 29] - counts[decoding.strategy, 14] <= 4, counts


def test_error_for_too_long_texts_names_the_setting(captioner, visual, template):
    with pytest.raises(UserError, match=r"trainer\.test\.max_length=200"):
        write(captioner, visual, template, Decoding(max_length=200))


def test_unknown_strategy_is_refused(captioner, visual, template):
    with pytest.raises(UserError, match="greedy, nucleus, beam"):
        write(captioner, visual, template, Decoding(strategy="oracle"))
