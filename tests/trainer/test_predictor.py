"""Predictor: which explanations are generated and kept; results do not depend on the batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import GPT2Tokenizer

from common.errors import UserError
from data.collate import Item, TextItem, collate, collate_texts
from data.emotions import EMOTIONS
from data.loaders import CaptionDataset
from data.schema import Sample
from data.sevlm_text import SevlmTemplate
from model.build import SpecialTokens, build_captioner
from model.decoding.generation import Decoding, generate
from model.decoding.scoring import text_log_probs
from model.sevlm import SevlmCaptioner
from tests.helpers.tiny import GPT2, make_aligner, make_captioner, make_dataset, model_config, write_tokenizer
from trainer.prediction import predictor as module
from trainer.prediction.predictor import Prediction, Predictor, Reason

GREEDY = Decoding(strategy="greedy", max_length=8)
NUCLEUS = Decoding(strategy="nucleus", max_length=8, top_p=0.95, seed=3)
BEAM = Decoding(strategy="beam", max_length=8, beam_width=3)
LARGE_WEIGHTS = {**GPT2, "initializer_range": 0.35}


@pytest.fixture(scope="module")
def captioner(template):
    """Return a network with all heads and large random weights, so that texts differ between images."""
    return make_captioner(template, gates=0.9, seed=5, vad__sentence=True, text__config=LARGE_WEIGHTS)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, template, captioner):
    return make_dataset(tmp_path_factory.mktemp("pictures"), template, captioner, 4, texts_per_image=0)


@pytest.fixture(scope="module")
def batch(dataset):
    return collate([dataset[0, i] for i in range(4)])


@pytest.fixture
def make(captioner, template):
    def call(decoding: Decoding = GREEDY, **settings) -> Predictor:
        network = settings.pop("network", captioner)
        with_emotions = settings.pop("with_emotions", True)
        return Predictor(network, template, make_aligner(template), decoding, with_emotions, **settings)

    return call


def texts(predictions: list[Prediction]) -> list[str]:
    return [prediction.explanation for prediction in predictions]


def numbers(predictions: list[Prediction]) -> list[float]:
    found = []
    for p in predictions:
        found += [*p.distribution, p.log_prob, p.fit or 0.0, *p.vad]
        found += [value for r in p.reasons for value in (r.probability, r.log_prob, r.fit or 0.0, *r.vad)]
    return found


def reasons(predictions: list[Prediction]) -> list[tuple[int, str]]:
    return [(r.emotion, r.explanation) for p in predictions for r in p.reasons]


# --- emotions --------------------------------------------------------------------------------------------------------


def test_temperature_flattens_without_changing_emotion_or_reason(make, batch):
    own, flat = make()(batch), make(temperature=4.0)(batch)
    assert texts(own) == texts(flat) and [p.emotion for p in own] == [p.emotion for p in flat]
    for a, b in zip(own, flat, strict=True):
        expected = (torch.tensor(a.distribution).log() / 4).softmax(dim=0)
        assert b.distribution == pytest.approx(expected.tolist(), abs=1e-5)
        assert max(b.distribution) < max(a.distribution)


@torch.no_grad()
def test_log_probs_are_uncalibrated(make, batch, captioner):
    visual = captioner.look(batch.frames, batch.frame_mask)
    raw, hot = make().emotion_log_probs(visual), make(temperature=4.0)
    torch.testing.assert_close(hot.emotion_log_probs(visual), raw)
    torch.testing.assert_close(hot.emotions(visual), (raw / 4).softmax(dim=1))


# --- reasons for several emotions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoding", [GREEDY, NUCLEUS, BEAM], ids=lambda d: d.strategy)
def test_top_emotions_get_the_reasons_of_chosen_emotions(make, batch, decoding):
    """Texts and VAD depend neither on the other rows nor on how the emotion was chosen."""
    found = make(decoding, top_emotions=3)(batch)
    asked = {e: make(decoding)(batch, emotion=e) for e in {r.emotion for p in found for r in p.reasons}}
    for i, prediction in enumerate(found):
        order = sorted(range(9), key=lambda e: -prediction.distribution[e])
        assert [reason.emotion for reason in prediction.reasons] == order[:3]
        for reason in prediction.reasons:
            alone = asked[reason.emotion][i]
            assert reason.explanation == alone.explanation
            assert reason.probability == prediction.distribution[reason.emotion]
            assert (reason.log_prob, *reason.vad) == pytest.approx((alone.log_prob, *alone.vad), abs=1e-4)
    assert len({r.explanation for p in found for r in p.reasons}) > 4, "different texts, else the test is void"


def test_first_reason_equals_that_of_a_single_prediction(make, batch):
    several, one = make(top_emotions=3)(batch), make()(batch)
    assert texts(several) == texts(one) and all(prediction.reasons == () for prediction in one)
    for prediction in several:
        first = prediction.reasons[0]
        assert (first.emotion, first.explanation) == (prediction.emotion, prediction.explanation)
        assert (first.log_prob, first.vad) == (prediction.log_prob, prediction.vad)


def test_all_nine_emotions_can_be_explained(make, batch):
    for prediction in make(top_emotions=9)(batch):
        assert sorted(reason.emotion for reason in prediction.reasons) == list(range(9))


@pytest.mark.parametrize("settings", [{"top_emotions": 3, "best_of": 4}, {"top_emotions": 5}, {"best_of": 6}], ids=str)
def test_number_of_rows_at_once_changes_nothing(make, batch, monkeypatch, settings):
    at_once = make(NUCLEUS, **settings)(batch)
    monkeypatch.setattr(module, "MOST_ROWS", 1)
    in_parts = make(NUCLEUS, **settings)(batch)
    assert texts(at_once) == texts(in_parts) and reasons(at_once) == reasons(in_parts)
    assert numbers(at_once) == pytest.approx(numbers(in_parts), abs=1e-4)


@pytest.mark.parametrize(
    ("bound", "settings", "most"),
    [(6, {"top_emotions": 9}, 6), (1, {"top_emotions": 9}, 4), (6, {"best_of": 3}, 6), (99, {"best_of": 3}, 12)],
)
@torch.no_grad()
def test_rows_at_once_are_bounded(make, batch, captioner, monkeypatch, bound, settings, most):
    """The bound is MOST_ROWS, or the number of images in the batch if that is larger."""
    monkeypatch.setattr(module, "MOST_ROWS", bound)
    predictor, visual, rows = make(NUCLEUS, **settings), captioner.look(batch.frames, batch.frame_mask), []
    hook = captioner.language.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        predictor.emotions(visual)
        scoring = len(rows)
        predictor(batch, visual=visual)
    finally:
        hook.remove()
    assert max(rows[2 * scoring :]) == most


# --- the best of several reasons -------------------------------------------------------------------------------------


def draw(captioner, template, batch, emotions: list[int], keys: list[str]) -> list[str]:
    """Return nucleus samples of one emotion per image, by `generate` alone."""
    prompts, said = zip(*map(template.explanation_prompt, emotions), strict=True)
    visual = captioner.look(batch.frames, batch.frame_mask)
    written = generate(
        captioner, visual, prompts, explanation_tokens=said, eos_id=template.eos_id, vad=make_aligner(template),
        decoding=NUCLEUS, keys=keys,
    )  # fmt: skip
    return [template.decode(text.tokens) for text in written]


@torch.no_grad()
def trained_scores(captioner, template, dataset, emotions: list[int], explanations: list[str]) -> list[float]:
    """Return the contrastive scores in a training batch with these explanations as annotations."""
    samples = [
        Sample(sample.id, sample.path, (text,), (emotion,))
        for sample, text, emotion in zip(dataset.samples, explanations, emotions, strict=True)
    ]
    training = CaptionDataset(
        samples, preprocess=captioner.vision.preprocess, template=template, aligner=make_aligner(template),
        texts_per_image=1, seed=0, max_frames=1,
    )  # fmt: skip
    return captioner(collate([training[0, i] for i in range(len(samples))])).contrastive[:, 0].tolist()


@torch.no_grad()
def test_best_of_keeps_the_draw_with_the_highest_score(make, captioner, template, dataset, batch):
    found = make(NUCLEUS, best_of=5)(batch)
    emotions = [prediction.emotion for prediction in found]
    drawn, scores = [], []
    for i in range(5):
        drawn.append(draw(captioner, template, batch, emotions, [f"{id}/{i}" if i else id for id in batch.ids]))
        scores.append(trained_scores(captioner, template, dataset, emotions, drawn[-1]))
    best = torch.tensor(scores).argmax(dim=0).tolist()
    assert texts(found) == [drawn[k][image] for image, k in enumerate(best)]
    assert [p.fit for p in found] == pytest.approx([scores[k][image] for image, k in enumerate(best)], abs=1e-5)
    assert len(set(best)) > 1 and texts(found) != drawn[0], "the head selects different draws"


def test_best_of_one_is_the_first_draw_without_score(make, captioner, template, batch):
    found = make(NUCLEUS)(batch)
    assert texts(found) == draw(captioner, template, batch, [p.emotion for p in found], batch.ids)
    assert all(prediction.fit is None for prediction in found)


def test_more_draws_never_lower_the_score(make, batch):
    two, six = make(NUCLEUS, best_of=2)(batch), make(NUCLEUS, best_of=6)(batch)
    assert all(b.fit >= a.fit - 1e-5 for a, b in zip(two, six, strict=True))
    assert any(b.fit > a.fit + 1e-3 for a, b in zip(two, six, strict=True))


def test_draws_depend_on_seed_and_image_only(make, dataset, batch):
    together = make(NUCLEUS, best_of=4)(batch)
    torch.manual_seed(99)  # the global generator is not used
    alone = [make(NUCLEUS, best_of=4)(collate([dataset[0, i]]))[0] for i in reversed(range(4))][::-1]
    assert texts(alone) == texts(together)
    other = make(dataclasses.replace(NUCLEUS, seed=4), best_of=4)(batch)
    assert texts(other) != texts(together)


def test_each_reason_is_the_best_of_its_draws(make, batch):
    found = make(NUCLEUS, best_of=3, top_emotions=2)(batch)
    for i, prediction in enumerate(found):
        for reason in prediction.reasons:
            alone = make(NUCLEUS, best_of=3)(batch, emotion=reason.emotion)[i]
            assert reason.explanation == alone.explanation
            assert reason.fit == pytest.approx(alone.fit, abs=1e-5)


@torch.no_grad()
def test_rank_by_picture_keeps_the_draw_that_the_picture_makes_likeliest(template, dataset, batch):
    """It needs no contrastive head; the value is log p(text | picture) − log p(text | no picture)."""
    network = make_captioner(template, gates=0.9, seed=5, contrastive__enabled=False, text__config=LARGE_WEIGHTS)
    predictor = Predictor(network, template, make_aligner(template), NUCLEUS, True, best_of=5, rank_by="picture")
    found, visual = predictor(batch), network.look(batch.frames, batch.frame_mask)
    emotions = [prediction.emotion for prediction in found]
    drawn, fits = [], []
    for i in range(5):
        drawn.append(draw(network, template, batch, emotions, [f"{id}/{i}" if i else id for id in batch.ids]))
        sentences = collate_texts(drawn[-1], emotions, template=template, aligner=make_aligner(template))
        seen, blind = (text_log_probs(network, view, sentences) for view in (visual, visual.without_picture()))
        fits.append((seen - blind).tolist())
    best = torch.tensor(fits).argmax(dim=0).tolist()
    assert texts(found) == [drawn[k][image] for image, k in enumerate(best)]
    assert [p.fit for p in found] == pytest.approx([fits[k][image] for image, k in enumerate(best)], abs=1e-4)
    assert len(set(best)) > 1, "different draws must win for this test"


# --- settings that exclude each other --------------------------------------------------------------------------------


@pytest.mark.parametrize("decoding", [GREEDY, BEAM], ids=lambda d: d.strategy)
def test_best_of_needs_sampling(make, decoding):
    with pytest.raises(
        UserError, match=rf"best_of=3 needs trainer\.test\.decoding_strategy=nucleus: {decoding.strategy}"
    ):
        make(decoding, best_of=3)


def test_best_of_needs_the_contrastive_head(make, template):
    plain = make_captioner(template, contrastive__enabled=False)
    with pytest.raises(
        UserError, match=r"trainer\.test\.best_of=3 .*model\.contrastive\.enabled=true.*rank_by=picture"
    ):
        make(NUCLEUS, network=plain, best_of=3)
    make(NUCLEUS, network=plain)


def test_rank_by_picture_needs_the_probability_of_a_text(make, template):
    plain = make_captioner(template, vad__encoder="bidirectional")
    with pytest.raises(UserError, match=r"rank_by=picture .*later words.*rank_by=contrastive"):
        make(NUCLEUS, network=plain, best_of=3, rank_by="picture")
    make(NUCLEUS, network=plain, rank_by="picture")


def test_top_emotions_need_emotions(make):
    with pytest.raises(UserError, match="top_emotions=2: this network was trained without emotions"):
        make(with_emotions=False, top_emotions=2)


def test_emotion_from_text_needs_sevlm(make):
    with pytest.raises(UserError, match=r"trainer\.test\.emotion_from=text .*model\.architecture=sevlm"):
        make(emotion_from="text")


# --- the emotion parsed from free text -------------------------------------------------------------------------------


def memorize(emotion: str, explanation: str, folder: Path) -> tuple[SevlmCaptioner, SevlmTemplate]:
    """Return a small SEVLM trained to write this sentence for every image."""
    template = SevlmTemplate(GPT2Tokenizer.from_pretrained(str(write_tokenizer(folder))), max_length=30)
    torch.manual_seed(0)
    sevlm = {"architecture": "sevlm", "text__trainable": True, "vad__fusion": "concat", "vad__encoder": "bidirectional"}
    sevlm["text__config"] = {**GPT2, "n_layer": 1}
    captioner = build_captioner(
        model_config(**sevlm, vision__tokens="patches", text__segments=False),
        vocab_size=len(template.tokenizer),
        eos_id=template.eos_id,
        special=SpecialTokens(template.pad_id, template.segment_ids),
    )
    encoded = template.encode(f" the emotion is {emotion} because {explanation}", None)
    head = encoded.input_ids.index(template.because[0])
    encoded = dataclasses.replace(encoded, segment=[int(i >= head) for i in range(len(encoded.input_ids))])
    text = TextItem(encoded, 0, *make_aligner(template).align(encoded.input_ids))
    batch = collate([Item(Sample("a", Path(), ()), torch.randn(1, 3, 32, 32), [text])])
    with torch.no_grad():
        visual = captioner.look(batch.frames, batch.frame_mask)
    optimizer = torch.optim.Adam(captioner.language.parameters(), lr=1e-2)
    labels = batch.labels[:, 1:]
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(captioner(batch, visual).logits, labels[labels != -100])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return captioner.eval(), template


@pytest.mark.parametrize("said", ["something else", "calm"])
def test_emotion_is_parsed_from_the_text(tmp_path, batch, said):
    captioner, template = memorize(said, "the tiny boat is lost", tmp_path)
    settings = {"emotion_from": "text", "decoding": Decoding(strategy="greedy", max_length=25)}
    predictor = Predictor(captioner, template, make_aligner(template), with_emotions=True, **settings)
    scored = predictor.emotions(captioner.look(batch.frames, batch.frame_mask))
    for prediction, shares in zip(predictor(batch), scored.tolist(), strict=True):
        row = prediction.row()
        assert row["emotion_text"] == said and row["explanation"] == "the tiny boat is lost"
        assert row["emotion"] == (said if said in EMOTIONS else None)
        assert row["text"] == f"the emotion is {said} because the tiny boat is lost"
        assert prediction.distribution == pytest.approx(shares, abs=1e-6), "scores are reported too"
    asked = predictor(batch, emotion=EMOTIONS.index("fear"))
    assert {p.row()["emotion"] for p in asked} == {"fear"} and all("emotion_text" not in p.row() for p in asked)


@pytest.mark.parametrize("settings", [{"top_emotions": 2}, {"decoding": NUCLEUS, "best_of": 2}], ids=str)
def test_emotion_from_text_allows_one_explanation(tmp_path, template, captioner, settings):
    reading = SevlmTemplate(GPT2Tokenizer.from_pretrained(str(write_tokenizer(tmp_path))), max_length=30)
    settings = {"decoding": GREEDY, **settings}
    with pytest.raises(UserError, match=r"needs trainer\.test\.emotion_from=scores"):
        Predictor(captioner, reading, make_aligner(reading), with_emotions=True, emotion_from="text", **settings)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_row_has_only_available_entries():
    bare = Prediction("a", 1, [0.1, 0.9] + [0.0] * 7, "the sky", -0.5)
    assert bare.row() == {
        "id": "a",
        "emotion": "awe",
        "emotion_distribution": [0.1, 0.9] + [0.0] * 7,
        "explanation": "the sky",
        "text": "the emotion is awe because the sky",
        "log_prob": -0.5,
    }
    vad = (0.123456, -0.5, 0.0)
    full = dataclasses.replace(bare, vad=vad, fit=1.23456789, reasons=[Reason(1, 0.9, "the sky", -0.5, vad, 2.0)])
    assert full.row() == bare.row() | {
        "vad": [0.1235, -0.5, 0.0],
        "fit": 1.234568,
        "reasons": [
            {"emotion": "awe", "probability": 0.9, "explanation": "the sky", "log_prob": -0.5}
            | {"vad": [0.1235, -0.5, 0.0], "fit": 2.0}
        ],
    }


def test_row_keeps_generated_emotion_outside_the_labels():
    said = Prediction("a", None, [1 / 9] * 9, "it is calm", -0.5, emotion_text="peace", text="the emotion is peace …")
    row = said.row()
    assert (row["emotion"], row["emotion_text"], row["text"]) == (None, "peace", "the emotion is peace …")
    assert len(row["emotion_distribution"]) == len(EMOTIONS)


def test_no_vad_without_the_head(make, template, batch):
    plain_network = make_captioner(template, gates=0.9, seed=5, text__config=LARGE_WEIGHTS)
    assert all(p.vad is None and "vad" not in p.row() for p in make(network=plain_network)(batch))


def test_without_emotions_there_are_text_and_vad(make, batch):
    for prediction in make(with_emotions=False)(batch):
        assert prediction.emotion is None and prediction.distribution is None and len(prediction.vad) == 3
        assert prediction.row()["text"] == prediction.explanation
