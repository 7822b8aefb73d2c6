"""No state depends on later tokens: texts are changed from some word on, and states before it must be equal.

In networks that attend to later words, the same test must find differences.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.collate import Item, TextItem, collate
from data.schema import Batch, Sample
from data.text import IGNORED, Template
from data.vad.align import VadAligner
from data.vad.lexicon import Lexicon
from model.captioner import Captioner, Text
from model.decoding.beam import GeneratedText
from model.decoding.generation import Decoding, generate
from tests.helpers.sevlm_parts import make_pieces, make_sevlm, make_sevlm_template
from tests.helpers.tiny import GPT2, WORDS, make_captioner

TEXTS, IMAGES = 300, 10
ROUNDING = 5e-6  # for batches of different shapes
# (fusion, encoder, frames per image); with several frames, padding is masked.
CAUSAL = [(fusion, encoder, 1) for fusion in ("gated", "concat") for encoder in ("none", "causal")]
CAUSAL += [("concat", "causal", 3)]


@pytest.fixture(scope="module")
def aligner(template):
    """Every word has a value, so a changed word has changed values."""
    rng = random.Random(5)
    return VadAligner(
        Lexicon({word: tuple(rng.uniform(-1, 1) for _ in range(3)) for word in WORDS if word.isalpha()}),
        template.tokenizer,
    )


@dataclass(frozen=True)
class Pair:
    """A text, and a copy that is changed from some word on."""

    emotion: int
    text: str
    changed: str

    def is_cut_off(self, template: Template) -> bool:
        """Return whether the change is lost by truncation."""
        return template.encode(self.text, self.emotion) == template.encode(self.changed, self.emotion)


def make_pairs(count: int = TEXTS) -> list[Pair]:
    """Change, in turn, one word; all words from there on; all words from there on and their number."""
    rng = random.Random(7)
    pairs = []
    for i in range(count):
        words = rng.choices(WORDS, k=rng.randint(2, 6))
        at = rng.randrange(len(words))
        another = rng.choice([word for word in WORDS if word != words[at]])
        left = len(words) - at - 1
        rest = words[at + 1 :] if i % 3 == 0 else rng.choices(WORDS, k=left)
        if i % 3 == 2:
            rest = rng.choices(WORDS, k=rng.choice([k for k in range(7 - at) if k != left]))
        pairs.append(Pair(rng.randrange(9), " ".join(words), " ".join([*words[:at], another, *rest])))
    return pairs


def make_batch(pairs: Sequence[tuple[str, int]], template: Template, aligner) -> Batch:
    """Return (text, emotion) pairs as in training, distributed over the images."""
    texts = []
    for text, emotion in pairs:
        encoded = template.encode(text, emotion)
        texts.append(TextItem(encoded, emotion, *aligner.align(encoded.input_ids)))
    shares = [texts[i * len(texts) // IMAGES : (i + 1) * len(texts) // IMAGES] for i in range(IMAGES)]
    samples = [Sample(str(i), Path("picture.png"), ()) for i in range(IMAGES)]
    return collate([Item(*parts) for parts in zip(samples, pictures(), shares, strict=True)])


def pictures(frames: int = 1) -> Tensor:
    return torch.randn(IMAGES, frames, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def widened(batch: Batch, width: int) -> Batch:
    more = width - batch.input_ids.shape[1]
    padding = {"input_ids": 0, "labels": IGNORED, "segment": 0} | dict.fromkeys(
        ("attention_mask", "vad_known", "vad_target"), False
    )
    new = {name: F.pad(getattr(batch, name), (0, more), value=value) for name, value in padding.items()}
    return replace(batch, **new, vad=F.pad(batch.vad, (0, 0, 0, more)))


@dataclass(frozen=True)
class Batches:
    before: Batch
    after: Batch
    wider: Batch  # `after` with more padding
    first: Tensor  # (N,) index of the first token that differs

    @classmethod
    def make(cls, pairs: Sequence[Pair], template: Template, aligner) -> Batches:
        before = make_batch([(pair.text, pair.emotion) for pair in pairs], template, aligner)
        after = make_batch([(pair.changed, pair.emotion) for pair in pairs], template, aligner)
        width = max(before.input_ids.shape[1], after.input_ids.shape[1])
        before, after = widened(before, width), widened(after, width)
        differ = (before.input_ids != after.input_ids) | (before.attention_mask != after.attention_mask)
        assert differ.any(dim=1).all()
        return cls(before, after, widened(after, width + 7), differ.int().argmax(dim=1))

    def of(self, frames: Tensor) -> Batches:
        """Return the same texts with other frames."""
        mask = torch.ones(frames.shape[:2], dtype=torch.bool)
        batches = (replace(batch, frames=frames, frame_mask=mask) for batch in (self.before, self.after, self.wider))
        return Batches(*batches, self.first)


@pytest.fixture(scope="module")
def batches(template, aligner) -> Batches:
    return Batches.make(make_pairs(), template, aligner)


@torch.no_grad()
def inside(captioner: Captioner, batch: Batch) -> dict[str, Tensor]:
    """Return values, features, states and outputs by token (N, L, …), and `sentence` (N, 1, 3)."""
    found: dict[str, Tensor] = {"values": batch.vad}

    def keep(name: str):
        def hook(module, inputs, output) -> None:
            found.setdefault(name, output)  # of the texts themselves, which are read before false ones

        return hook

    parts = {"features": captioner.vad_encoder, "fused": captioner.fusion}
    hooks = [part.register_forward_hook(keep(name)) for name, part in parts.items() if part is not None]
    output = captioner(batch)
    for hook in hooks:
        hook.remove()
    logits = captioner.language.logits(output.hidden)
    supervised = batch.labels[:, 1:] != IGNORED
    assert float((output.logits - logits[:, :-1][supervised]).abs().max()) < 2e-5
    found |= {"hidden": output.hidden, "logits": logits, "vad": output.vad}
    if output.vad_sentence is not None:
        assert (batch.explanation_start > 0).all()
        found["sentence"] = output.vad_sentence[:, None]
    return found


def differences(a: dict[str, Tensor], b: dict[str, Tensor], first: Tensor) -> dict[str, Tensor]:
    """Return the largest difference (N,) before the token `first`; "changed": of the states from there on."""
    found = {}
    for name, value in a.items():
        width = min(value.shape[1], b[name].shape[1])
        by_token = (value[:, :width] - b[name][:, :width]).abs().amax(dim=2)
        earlier = torch.arange(width) < first[:, None]
        found[name] = (by_token * earlier).amax(dim=1)
        if name == "hidden":
            found["changed"] = (by_token * ~earlier).amax(dim=1)
    return found


def opened(template: Template, **changes) -> Captioner:
    """All parts on, all gates open, and weights large enough for every word to have an effect."""
    config = {**GPT2, "n_layer": 2, "initializer_range": 0.2}
    captioner = make_captioner(template, gates=0.7, vad__sentence=True, text__config=config, **changes)
    perturb(captioner)
    return captioner


def perturb(captioner: Captioner) -> None:
    """Move fusion and segments away from their initial identity and zero."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in captioner.named_parameters():
        if name.startswith(("fusion.linear.", "segments.")):
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(("fusion", "encoder", "frames"), CAUSAL)
def test_states_do_not_depend_on_later_tokens(template, batches, fusion, encoder, frames):
    """Bitwise for batches of equal shape; up to rounding if one is wider."""
    captioner = opened(template, vad__fusion=fusion, vad__encoder=encoder)
    assert captioner.causal
    texts = batches.of(pictures(frames)) if frames > 1 else batches
    assert (texts.first >= texts.before.explanation_start).all(), "otherwise the sentence VAD may change"
    before = inside(captioner, texts.before)
    same = differences(before, inside(captioner, texts.after), texts.first)
    assert ("features" in same) == (encoder == "causal") and "sentence" in same
    assert (same.pop("changed") > 1e-3).float().mean() > 0.99, "the change must have an effect"
    assert {name: float(d.max()) for name, d in same.items()} == dict.fromkeys(same, 0.0)
    wider = differences(before, inside(captioner, texts.wider), texts.first)
    del wider["changed"]
    assert max(float(d.max()) for d in wider.values()) < ROUNDING, {name: float(d.max()) for name, d in wider.items()}


@dataclass(frozen=True)
class Leak:
    """Shares of texts in which a change affects states before it, and the prediction of the changed word."""

    states: float
    predictions: float

    @classmethod
    def measure(cls, captioner: Captioner, texts: Batches, *, threshold: float = 1e-3) -> Leak:
        before, after = inside(captioner, texts.before), inside(captioner, texts.after)
        differ = differences(before, after, texts.first)
        assert differ["values"].max() == 0, "the inputs do not depend on later words"
        rows, at = torch.arange(len(texts.first)), texts.first - 1
        predictions = (before["logits"][rows, at] - after["logits"][rows, at]).abs().amax(dim=1)
        return cls(*(float((d > threshold).float().mean()) for d in (differ["hidden"], predictions)))


@pytest.mark.parametrize("fusion", ["gated", "concat"])
def test_bidirectional_encoder_leaks_later_tokens(template, batches, fusion):
    captioner = opened(template, vad__fusion=fusion, vad__encoder="bidirectional")
    assert not captioner.causal
    before, padded = inside(captioner, batches.before), inside(captioner, widened(batches.before, 50))
    torch.testing.assert_close(before["hidden"], padded["hidden"][:, : before["hidden"].shape[1]], rtol=0, atol=1e-5)
    leak = Leak.measure(captioner, batches)
    assert leak.states > 0.95 and leak.predictions > 0.95


def test_sevlm_leaks_later_tokens(tmp_path, aligner):
    template = make_sevlm_template(tmp_path / "tokenizer")
    pieces = make_pieces(template, {word: aligner.lexicon.lookup(word) for word in WORDS if word.isalpha()})
    pairs = [pair for pair in make_pairs(3 * TEXTS) if not pair.is_cut_off(template)][:TEXTS]
    assert len(pairs) == TEXTS
    captioner = make_sevlm(template, text__config={**GPT2, "n_layer": 2, "initializer_range": 0.2})
    perturb(captioner)
    batches = Batches.make(pairs, template, pieces)
    leak = Leak.measure(captioner, batches)
    assert leak.states > 0.9 and leak.predictions > 0.9
    differ = differences(inside(captioner, batches.before), inside(captioner, batches.after), batches.first)["hidden"]
    other_values = (batches.before.vad != batches.after.vad).flatten(1).any(dim=1)
    assert torch.equal(differ > 0, other_values), "exactly where a later piece has another value"


PROMPTED = [0, 2, 8, 1, 2]  # emotions of the images


def write(
    captioner: Captioner, template: Template, aligner, decoding: Decoding, rows: Sequence[int] = range(5)
) -> list[GeneratedText]:
    frames = pictures()[list(rows)]
    with torch.no_grad():
        visual = captioner.look(frames, torch.ones(frames.shape[:2], dtype=torch.bool))
    prompts, counts = zip(*(template.explanation_prompt(PROMPTED[row]) for row in rows), strict=True)
    return generate(
        captioner,
        visual,
        prompts,
        explanation_tokens=counts,
        eos_id=template.eos_id,
        vad=aligner,
        decoding=decoding,
        keys=[str(row) for row in rows],
    )


GREEDY, BEAM = Decoding(max_length=20), Decoding(strategy="beam", beam_width=3, max_length=20)
NUCLEUS = Decoding(strategy="nucleus", max_length=20)  # more varied than greedy texts


@torch.no_grad()
def mean_log_prob(captioner: Captioner, template: Template, aligner, row: int, written: GeneratedText) -> float:
    """Return that of a generated text in one pass, as in training."""
    prompt, count = template.explanation_prompt(PROMPTED[row])
    whole = [*prompt, *written.tokens, template.eos_id]
    ids = torch.tensor([whole[: len(prompt) + NUCLEUS.max_length]])
    segment = (torch.arange(ids.shape[1]) >= len(prompt) - count).long()[None]
    vad, known, _ = aligner.align(ids[0])
    frames = pictures()[row : row + 1]
    visual = captioner.look(frames, torch.ones(frames.shape[:2], dtype=torch.bool))
    hidden = captioner.read(visual, Text(ids, segment, vad[None], known[None], None))
    log_probs = captioner.language.logits(hidden)[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
    return float(log_probs.gather(1, ids[0, len(prompt) :, None]).mean())


@pytest.mark.parametrize("decoding", [GREEDY, BEAM], ids=lambda d: d.strategy)
@pytest.mark.parametrize("fusion", ["gated", "concat"])
def test_cached_generation_equals_uncached(template, aligner, fusion, decoding):
    captioner = opened(template, vad__fusion=fusion, vad__encoder="causal")
    cached, uncached = (write(captioner, template, aligner, replace(decoding, use_cache=u)) for u in (True, False))
    assert [w.tokens for w in cached] == [w.tokens for w in uncached]
    assert [w.log_prob for w in cached] == pytest.approx([w.log_prob for w in uncached], abs=1e-4)
    assert len({tuple(w.tokens) for w in cached}) > 1 and max(len(w.tokens) for w in cached) == 20


@pytest.mark.parametrize("encoder", ["causal", "bidirectional"])
def test_generated_texts_do_not_depend_on_the_batch(template, aligner, encoder):
    captioner = opened(template, vad__fusion="concat", vad__encoder=encoder)
    together = write(captioner, template, aligner, NUCLEUS)
    alone = [write(captioner, template, aligner, NUCLEUS, rows=[row])[0] for row in range(len(PROMPTED))]
    assert [w.tokens for w in together] == [w.tokens for w in alone]
    assert [w.log_prob for w in together] == pytest.approx([w.log_prob for w in alone], abs=1e-5)


@pytest.mark.parametrize("encoder", ["causal", "bidirectional"])
def test_log_prob_in_generation_equals_training_if_causal(template, aligner, encoder):
    """With a bidirectional encoder, training differs from generation."""
    captioner = opened(template, vad__fusion="concat", vad__encoder=encoder)
    written = write(captioner, template, aligner, NUCLEUS)
    read = [mean_log_prob(captioner, template, aligner, row, w) for row, w in enumerate(written)]
    gaps = [abs(w.log_prob - r) for w, r in zip(written, read, strict=True)]
    assert max(gaps) < 1e-5 if encoder == "causal" else max(gaps) > 1e-3
