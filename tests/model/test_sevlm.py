"""SEVLM as published: outputs, losses and texts of imported weights equal those of sevlm_reference.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import GPT2Config, GPT2Tokenizer

from data.collate import Item, TextItem, collate
from data.emotions import EMOTIONS
from data.loaders import CaptionDataset, choose_texts
from data.schema import Batch, Sample
from data.vad.lexicon import Lexicon
from data.vad.pieces import PieceAligner
from model.blocks import InnerCrossAttention
from model.build import SpecialTokens, build_captioner, count_parameters
from model.captioner import Captioner, CaptionerOutput, Text, Visual
from model.contrastive import find_negatives
from model.decoding.beam import GeneratedText
from model.decoding.generation import Decoding, generate
from model.decoding.scoring import emotion_log_probs
from model.losses import loss_counts, loss_sums
from model.next_word import NextWord
from model.sevlm import EMOTION_TOKENS
from tests.helpers import sevlm_reference as reference
from tests.helpers.sevlm_parts import SWITCHES
from tests.helpers.tiny import LEXICON, make_samples, model_config, write_open_clip, write_tokenizer
from trainer.metrics.emotions import dominant_label
from trainer.prediction.build import build_predictor
from trainer.runs.checkpoint import find_checkpoint
from trainer.setup.import_checkpoint import main
from trainer.setup.parts import Parts, build_parts

HEADS, LAYERS, WIDTH, IMAGES = 2, 3, 32, 5
VAD = LEXICON | {"an": (0.2, -0.4, 0.6), "st": (-0.5, 0.1, 0.3), "boat": (0.3, 0.2, 0.4)}  # "st" as in "lo|st"
CLOSE = {"rtol": 0, "atol": 1e-5}
LOSSES = {"caption": "caption_loss", "vad": "vad_loss", "contrastive": "contrastive_loss"}


# --- what is compared -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Official:
    """Random weights, and the run that the import command created from them in the published layout."""

    state: reference.State
    emo: reference.State
    tokenizer: GPT2Tokenizer  # of the base vocabulary, without SEVLM's tokens
    config: DictConfig  # of the run
    parts: Parts

    @property
    def captioner(self) -> Captioner:
        return self.parts.captioner

    @property
    def because(self) -> int:
        return self.ids(" because")[0]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text).input_ids

    @property
    def eos(self) -> int:
        return self.tokenizer.eos_token_id

    def vad_of(self, ids: Sequence[int]) -> Tensor:
        """Return the VAD (L, 3) of every piece, without its leading space."""
        pieces = [self.tokenizer.decode([i]).lstrip() if i < len(self.tokenizer) else "" for i in ids]
        return torch.tensor([VAD.get(piece, (0.0, 0.0, 0.0)) for piece in pieces])

    @property
    def writer(self) -> reference.Writer:
        base = len(self.tokenizer)
        return reference.Writer(self.state, self.emo, self.vad_of, because=self.because, base=base, heads=HEADS)

    def prompt(self, emotion: int | None = None) -> list[int]:
        """Return the prompt for the emotion, or for the explanation of this emotion."""
        label = f" the emotion is {EMOTIONS[emotion]}" if emotion is not None else " the emotion is"
        return [self.eos, *self.ids(label), *([] if emotion is None else [self.because])]


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Official:
    folder = tmp_path_factory.mktemp("official")
    tokenizer = write_tokenizer(folder / "gpt2")
    base = GPT2Tokenizer.from_pretrained(str(tokenizer))
    generator = torch.Generator().manual_seed(0)
    sizes = {"n_layer": LAYERS, "d": WIDTH, "vocabulary": len(base) + len(reference.SPECIAL), "positions": 64}
    state, emo = reference.random_state(generator, **sizes), reference.random_vad_encoder(generator)
    prefer(state, base(" because").input_ids[0])
    reference.write_official(folder / "published", state, emo, tokenizer=tokenizer, heads=HEADS)
    vision, lexicon = write_open_clip(folder / "clip"), folder / "lexicon.tsv"
    rows = ["\t".join(map(str, (word, *values))) for word, values in VAD.items()]
    lexicon.write_text("\n".join(rows) + "\n", encoding="utf-8")
    asked = ["--out", folder / "run", "--vision", vision, "--lexicon", lexicon]
    assert main(["sevlm", str(folder / "published"), *map(str, asked)]) == 0
    checkpoint = find_checkpoint(str(folder / "run"), folder)
    parts = build_parts(checkpoint.config, checkpoint=checkpoint)
    parts.captioner.eval()
    return Official(state, emo, base, checkpoint.config, parts)


def prefer(state: reference.State, token: int, by: float = 2.0) -> None:
    """Add `by` to the logit of a token, which random weights would rarely generate."""
    word = state["transformer.wte.weight"][token]
    state["transformer.ln_f.bias"] = state["transformer.ln_f.bias"] + by * word / word.square().sum()


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> list[Sample]:
    return make_samples(tmp_path_factory.mktemp("pictures"), IMAGES)


@pytest.fixture(scope="module", params=["some are cut", "all are short"])
def samples(request, painted) -> list[Sample]:
    """Five pictures with their texts."""
    if request.param == "some are cut":
        return painted
    return [replace(sample, texts=tuple(f"storm {text.split()[0]}" for text in sample.texts)) for sample in painted]


def make_batch(official: Official, samples: Sequence[Sample], texts: int) -> Batch:
    dataset = CaptionDataset(
        samples,
        preprocess=official.captioner.vision.preprocess,
        template=official.parts.template,
        aligner=official.parts.aligner,
        texts_per_image=texts,
        seed=0,
        max_frames=1,
    )
    return collate([dataset[0, i] for i in range(len(samples))])


@pytest.fixture(scope="module")
def batch(official, samples) -> Batch:
    """Two texts of different emotions for each picture."""
    return make_batch(official, samples, 2)


@pytest.fixture(scope="module")
def framed(official, samples) -> reference.Framed:
    """The same texts, formatted by the reference."""
    texts = []
    for sample in samples:
        for i in choose_texts(sample, count=2, seed=0, epoch=0):
            named = official.ids(f" the emotion is {EMOTIONS[sample.emotions[i]]}")
            texts.append((named, official.ids(f" because {sample.texts[i]}")))
    return reference.frame(texts, eos=official.eos, base=len(official.tokenizer))


@pytest.fixture(scope="module")
def pictures(official, painted) -> Batch:
    """The pictures without texts."""
    return make_batch(official, painted, 0)


@pytest.fixture(scope="module")
def patches(official, pictures) -> Tensor:
    """G (B, P, D)."""
    with torch.no_grad():
        return official.captioner.vision(pictures.frames)[:, 0]


@pytest.fixture(scope="module")
def expected(official, framed, patches) -> reference.Outcome:
    vad = torch.stack([official.vad_of(row) for row in framed.ids.tolist()])
    rows = torch.arange(2 * IMAGES)
    images = patches.repeat_interleave(2, dim=0)
    partner, other = rows ^ 1, (rows + 2) % len(rows)
    return reference.outcome(official.state, official.emo, framed, images, vad, partner, other, heads=HEADS)


@pytest.fixture(scope="module")
def output(official, batch) -> CaptionerOutput:
    with torch.no_grad():
        return official.captioner(batch)


# --- training ---------------------------------------------------------------------------------------------------------


def test_texts_have_the_published_format(batch, framed):
    width = batch.input_ids.shape[1]
    assert torch.equal(batch.labels, framed.labels[:, :width]) and (framed.labels[:, width:] == reference.IGNORED).all()
    assert torch.equal(batch.input_ids[batch.attention_mask], framed.ids[:, :width][batch.attention_mask])
    assert (framed.labels[:, -1] == reference.IGNORED).any(), "there must be padding"


def test_hidden_states_and_logits_equal_the_reference(output, expected, batch):
    width = batch.input_ids.shape[1]
    torch.testing.assert_close(output.hidden, expected.hidden[:, :width], **CLOSE)
    supervised = batch.labels[:, 1:] != reference.IGNORED
    torch.testing.assert_close(output.logits, expected.logits[:, : width - 1][supervised], **CLOSE)
    assert supervised[:, :3].all(), "the prompt is supervised too"


def test_vad_of_the_next_word_equals_the_reference(output, expected, batch):
    torch.testing.assert_close(output.vad, expected.vad[:, : batch.input_ids.shape[1]], **CLOSE)


def test_contrastive_scores_equal_the_reference(output, expected):
    torch.testing.assert_close(output.contrastive, expected.scores, **CLOSE)


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_equals_the_reference(output, expected, batch, loss):
    assert loss_counts(batch)[loss] > 0
    ours = loss_sums(output, batch)[loss] / loss_counts(batch)[loss]
    torch.testing.assert_close(ours, getattr(expected, LOSSES[loss]), **CLOSE)


def test_weighted_total_equals_the_reference(official, output, expected, batch):
    weights, sums, counts = official.config.model.loss_weights, loss_sums(output, batch), loss_counts(batch)
    total = sum(weights[name] * value / counts[name] for name, value in sums.items())
    torch.testing.assert_close(total, expected.total, **CLOSE)


def test_every_weight_equals_the_published_one(official):
    ours = official.captioner.state_dict()
    names = {"language.lm.transformer.": "transformer.", ".lm_block": "", "fusion.linear": "transformer.VAD_linear"}
    names |= {"vad_head": "VAD_head", "contrastive": "sim_mlp"}
    published = official.state | {f"vad_encoder.{name}": value for name, value in official.emo.items()}
    for name in [
        name for name in ours if not name.startswith(("vision.", "language.lm.lm_head", "vad_encoder.decoder"))
    ]:
        theirs = name
        for old, new in names.items():
            theirs = theirs.replace(old, new)
        assert torch.equal(ours[name], published.pop(theirs)), name
    assert set(published) == {"vad_encoder.decoder.weight", "vad_encoder.decoder.bias"}, "these are unused"


def test_padding_and_later_words_are_attended_to_in_training(official, batch, output):
    """A text that is read alone or partly has other states than in the batch."""
    captioner, lengths = official.captioner, batch.attention_mask.sum(dim=1).tolist()
    row = lengths.index(min(lengths))
    visual = captioner.look(batch.frames, batch.frame_mask).rows(batch.text_image)
    text = captioner.text_of(batch)
    assert text.input_ids.shape[1] == reference.LENGTH and text.attention_mask is None
    for end in (lengths[row], lengths[row] - 2):
        part = Text(*(t[row : row + 1, :end] for t in (text.input_ids, text.segment, text.vad, text.vad_known)), None)
        with torch.no_grad():
            alone = captioner.read(visual.rows(torch.tensor([row])), part)[0]
        assert ((alone - output.hidden[row, :end]).abs().amax(dim=1)[EMOTION_TOKENS:] > 1e-3).all()
        torch.testing.assert_close(alone[:EMOTION_TOKENS], output.hidden[row, :EMOTION_TOKENS], **CLOSE)


@pytest.mark.parametrize("images", [1, 2, 3, 7, 69])
def test_negatives_are_a_derangement(images):
    """Negatives are the image's other text and the text of the same rank of another image, each exactly once."""
    text_image = torch.arange(images).repeat_interleave(2)
    emotion = torch.arange(2 * images) % 9
    partner, other = find_negatives(text_image, emotion, images).unbind(dim=1)
    rows = torch.arange(2 * images)
    assert torch.equal(partner, rows ^ 1)
    if images == 1:
        assert (other == -1).all(), "the published code would use the image itself"
        return
    assert (other // 2 != rows // 2).all() and torch.equal(other % 2, rows % 2)
    assert sorted(other.tolist()) == rows.tolist()


def test_vad_head_is_trained_on_24_states(official):
    """States 5 to 28 of 30 predict tokens 6 to 29, all of which have values here."""
    template = official.parts.template
    encoded = template.encode(" ".join(["enormous gloomy storm"] * 9), EMOTIONS.index("fear"))
    pieces = {official.tokenizer.decode([i]).strip() for i in encoded.input_ids[1:]}
    aligner = PieceAligner(
        Lexicon(dict.fromkeys(pieces, (0.1, 0.2, 0.3))), template.tokenizer, first_target=EMOTION_TOKENS
    )
    vad, known, target = aligner.align(encoded.input_ids)
    assert len(known) == reference.LENGTH and known[1:].all()
    sample = Sample("0", Path("picture.png"), ())
    one = collate([Item(sample, torch.zeros(1, 3, 32, 32), [TextItem(encoded, 6, vad, known, target)])])
    predicted = torch.zeros(1, reference.LENGTH, 3, requires_grad=True)
    nothing = NextWord(torch.zeros(reference.LENGTH - 1, 1), torch.zeros(len(template.tokenizer), 1))
    sums = loss_sums(CaptionerOutput(hidden=predicted, next_word=nothing, vad=predicted), one)
    sums["vad"].backward()
    assert loss_counts(one)["vad"] == 24 * 3
    assert predicted.grad[0].any(dim=1).nonzero().flatten().tolist() == [*range(5, 29)]


# --- writing ----------------------------------------------------------------------------------------------------------

GREEDY = Decoding(max_length=reference.STEPS)


@pytest.fixture(scope="module")
def visual(official, pictures) -> Visual:
    with torch.no_grad():
        return official.captioner.look(pictures.frames, pictures.frame_mask)


def likelihood(official: Official, image: Tensor, prompt: list[int], tokens: list[int]) -> Tensor:
    """Return Σ log p, each token predicted from earlier ones only."""
    steps = (official.writer.following(image, [*prompt, *tokens[:i]]) for i in range(len(tokens)))
    return sum(step.log_softmax(dim=-1)[token] for step, token in zip(steps, tokens, strict=True))


def upto(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


def write(official: Official, visual: Visual, decoding: Decoding) -> list[GeneratedText]:
    template = official.parts.template
    return generate(
        official.captioner,
        visual,
        [template.prompt] * IMAGES,
        explanation_tokens=[0] * IMAGES,
        eos_id=template.eos_id,
        vad=official.parts.aligner,
        decoding=decoding,
        switch=template.because[0],
    )


def test_greedy_tokens_equal_the_reference(official, visual, patches):
    texts = [official.writer.write(image, official.prompt()) for image in patches]
    assert [w.tokens for w in write(official, visual, GREEDY)] == [upto(text, official.eos) for text in texts]
    places = {text.index(official.because) if official.because in text else None for text in texts}
    assert len(places) > 2 and len({tuple(text) for text in texts}) == IMAGES, (places, texts)


def test_beam_log_probs_equal_the_reference(official, visual, patches):
    """Beams reach "because" at different positions and continue from each other."""
    steps = 12
    beams = write(official, visual, Decoding(strategy="beam", beam_width=6, max_length=steps))
    for image, beam in zip(patches, beams, strict=True):
        tokens = [*beam.tokens, official.eos][:steps]
        expected = likelihood(official, image, official.prompt(), tokens) / len(tokens)
        assert beam.log_prob == pytest.approx(float(expected), abs=1e-4)
    assert any(official.because in beam.tokens for beam in beams)


def test_predictions_are_parsed_as_in_the_reference(official, pictures, patches):
    predictor = build_predictor(official.config, official.parts)
    how = (predictor.emotion_from, predictor.decoding.strategy, predictor.decoding.max_length)
    assert how == ("text", "greedy", reference.STEPS)
    for image, prediction in zip(patches, predictor(pictures), strict=True):
        decode = lambda ids: official.tokenizer.decode(ids, clean_up_tokenization_spaces=False)  # noqa: E731
        emotion, explanation, full = reference.read(
            official.writer.write(image, official.prompt()), decode, eos=official.eos, base=len(official.tokenizer)
        )
        assert (prediction.emotion_text, prediction.explanation) == (emotion, explanation)
        assert prediction.text == f"the emotion is {full}"


def test_texts_after_given_emotions_equal_the_reference(official, visual, patches):
    """In one batch with prompts of different lengths."""
    template, emotions = official.parts.template, [8, 0, 1, 6, 2]
    prompts, counts = zip(*(template.explanation_prompt(emotion) for emotion in emotions), strict=True)
    assert len({len(prompt) for prompt in prompts}) > 2
    written = generate(
        official.captioner,
        visual,
        prompts,
        explanation_tokens=counts,
        eos_id=template.eos_id,
        vad=official.parts.aligner,
        decoding=GREEDY,
    )
    texts = [
        official.writer.write(image, official.prompt(emotion)) for image, emotion in zip(patches, emotions, strict=True)
    ]
    assert [w.tokens for w in written] == [upto(text, official.eos) for text in texts]


def test_emotion_scores_equal_the_reference(official, visual, patches):
    scores = torch.zeros(IMAGES, len(EMOTIONS))
    for row, image in enumerate(patches):
        for i, name in enumerate(EMOTIONS):
            scores[row, i] = likelihood(official, image, official.prompt(), official.ids(f" {name}"))
    template = official.parts.template
    ours = emotion_log_probs(
        official.captioner, visual, prompt=template.prompt, labels=template.label_ids, vad=official.parts.aligner
    )
    torch.testing.assert_close(ours, scores.log_softmax(dim=1), rtol=0, atol=1e-4)


# --- counts and rules -------------------------------------------------------------------------------------------------


def test_full_size_has_the_published_number_of_weights():
    config = model_config(**SWITCHES, contrastive__hidden_dim=None)
    config["text"]["config"] = {"n_layer": 6, "n_embd": 768, "n_head": 12}
    config["vision"]["config"] = {"image_size": 32, "patch_size": 16, "width": 768, "layers": 1, "head_width": 64}
    with torch.device("meta"):
        special = SpecialTokens(50257, (50259, 50260))
        captioner = build_captioner(config, vocab_size=50261, eos_id=50256, special=special)
    counts = {row.part: row for row in count_parameters(captioner)}
    encoder = counts.pop("vad_encoder")
    assert (encoder.trained, encoder.trained + encoder.frozen) == (17_847, 17_851)
    del counts["vision"]
    assert sum(row.trained for row in counts.values()) == 100_237_060
    assert sum(row.frozen for row in counts.values()) == 0
    published = (reference.decoder_shapes(), reference.vad_encoder_shapes())
    assert [sum(map(math.prod, shapes.values())) for shapes in published] == [100_237_060, 17_851]


@pytest.mark.parametrize(
    ("votes", "label"),
    [
        ([0, 1, 1, 0, 0, 0, 0, 0, 1], None),
        ([0, 0, 2, 1, 0, 0, 0, 0, 0], "contentment"),
        ([0, 2, 0, 1, 1, 0, 0, 0, 0], None),  # exactly half
        ([0, 51, 0, 49, 0, 0, 0, 0, 0], "awe"),
    ],
)
def test_dominant_label_needs_a_majority(votes, label):
    shares = [vote / sum(votes) for vote in votes]
    found = dominant_label(shares)
    assert (None if found is None else EMOTIONS[found]) == label


def test_cross_attention_drops_weights_in_training_only():
    torch.manual_seed(0)
    layer = InnerCrossAttention(GPT2Config(n_embd=8, n_head=2, n_layer=1, attn_pdrop=0.5, resid_pdrop=0.0))
    states, seen = torch.randn(1, 3, 8), layer.keys_values(torch.randn(1, 5, 8))
    once, twice = (layer.train()(states, encoder_hidden_states=seen)[0] for _ in range(2))
    assert not torch.equal(once, twice)
    once, twice = (layer.eval()(states, encoder_hidden_states=seen)[0] for _ in range(2))
    assert torch.equal(once, twice)
