from __future__ import annotations

import math

import pytest
import torch

from common.errors import UserError
from data.emotions import EMOTIONS, INDEX
from model.text_emotion import build_text_emotion
from trainer.metrics.alignment import alignment_scores
from trainer.metrics.emotions import RULES
from trainer.text_emotion.text_classifier import TextClassifier, Vocabulary, load_classifier

SIGNS = ["funny", "vast", "calm", "thrilling", "unfair", "rotten", "dark", "lonely", "odd"]  # one word per emotion
SURE = 4.0  # logit of the emotion whose word is there


@pytest.fixture
def classifier() -> TextClassifier:
    """A real network with weights by hand: the logit of an emotion is SURE where its word is in the text, else 0."""
    words = ["<pad>", "<unk>", *SIGNS]
    sizes = dict.fromkeys(("embedding_dim", "word_dim", "hidden_dim", "head_dim"), 9)
    network = build_text_emotion({"name": "lstm", "vocabulary": len(words), "classes": 9, **sizes})
    one = torch.eye(9)
    state = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    state["embedding.weight"][2:] = one
    state["words.1.weight"] = state["words.4.weight"] = state["head.0.weight"] = one
    state["head.1.weight"] = state["head.1.running_var"] = torch.ones(9)
    candidates = torch.cat([torch.zeros(18, 9), one, torch.zeros(9, 9)])  # gates in torch's order: i, f, g, o
    state["rnn.weight_ih_l0"] = candidates * 50  # a word's cell becomes 1 …
    state["rnn.bias_ih_l0"] = torch.cat(
        [torch.full((9,), 50.0), torch.full((9,), -50.0), torch.zeros(9), torch.full((9,), 50.0)]
    )
    state["head.4.weight"] = one * SURE / math.tanh(1)  # … and its state tanh(1)
    network.load_state_dict(state)
    settings = {"network": {"name": "lstm"}, "embeddings": "by hand", "source": "trained"}
    return TextClassifier(network.eval(), Vocabulary(words), settings)


def votes(**counts: float) -> list[float]:
    return [counts.get(name.replace(" ", "_"), 0.0) for name in EMOTIONS]


TEXTS = {
    "a": "so vast and vast",  # awe
    "b": "dark",  # fear
    "c": "dark",
    "d": "lonely",  # sadness
    "e": "",
    "f": "odd",  # something else
}
HISTOGRAMS = {
    "a": votes(awe=0.6, fear=0.4),  # awe by both rules, right
    "b": votes(fear=2, sadness=1, anger=1),  # fear by at least half only, right
    "c": votes(awe=3, fear=2),  # awe by both, wrong
    "d": votes(sadness=1, awe=1),  # tied
    "e": votes(awe=1),  # awe by both; no word, so wrong
    "f": None,
}


def test_scores_by_hand(classifier):
    section, each = alignment_scores(TEXTS, HISTOGRAMS, classifier)
    assert section["rule"] == "more_than_half"
    assert (section["accuracy"], section["count"], section["total"]) == (pytest.approx(1 / 3), 3, 6)
    assert section["rules"]["more_than_half"] == {"accuracy": pytest.approx(1 / 3), "count": 3, "total": 6}
    assert section["rules"]["at_least_half"] == {"accuracy": pytest.approx(1 / 2), "count": 4, "total": 6}
    assert [each[image]["alignment"] for image in TEXTS] == [1, None, 0, None, 0, None]
    assert [each[image]["alignment_at_least_half"] for image in TEXTS] == [1, 1, 0, None, 0, None]
    assert [each[image]["text_emotion"] for image in TEXTS] == [
        "awe",
        "fear",
        "fear",
        "sadness",
        None,
        "something else",
    ]


def test_cross_entropy_by_hand(classifier):
    section, each = alignment_scores(TEXTS, HISTOGRAMS, classifier)
    normal = math.log(math.exp(SURE) + 8)
    expected = {
        "a": 0.6 * (normal - SURE) + 0.4 * normal,
        "b": 0.5 * (normal - SURE) + 0.5 * normal,
        "c": 0.4 * (normal - SURE) + 0.6 * normal,
        "d": 0.5 * (normal - SURE) + 0.5 * normal,
        "e": math.log(9),  # no word: uniform
    }
    assert {i: v["alignment_cross_entropy"] for i, v in each.items() if i != "f"} == pytest.approx(expected, abs=1e-4)
    assert each["f"]["alignment_cross_entropy"] is None
    assert section["cross_entropy"] == pytest.approx(sum(expected.values()) / 5, abs=1e-4)
    assert section["cross_entropy_count"] == 5


@pytest.mark.parametrize("rule", RULES)
def test_accuracy_is_the_mean_over_labelled_images(classifier, rule):
    section, each = alignment_scores(TEXTS, HISTOGRAMS, classifier)
    labelled = [v[f"alignment_{rule}"] for v in each.values() if v[f"alignment_{rule}"] is not None]
    found = section["rules"][rule]
    assert found["accuracy"] == sum(labelled) / len(labelled) and found["count"] == len(labelled)


def test_image_order_does_not_matter(classifier):
    section, each = alignment_scores(TEXTS, HISTOGRAMS, classifier)
    backwards, each_backwards = alignment_scores(dict(reversed(TEXTS.items())), HISTOGRAMS, classifier)
    assert each == each_backwards
    assert backwards["accuracy"] == section["accuracy"]
    assert backwards["cross_entropy"] == pytest.approx(section["cross_entropy"])


@pytest.mark.parametrize("text", ["", "   ", "?!", "…"])
def test_text_without_words_is_wrong_even_if_the_first_emotion_is_the_label(classifier, text):
    """argmax of uniform probabilities would be the first emotion, amusement."""
    section, each = alignment_scores({"x": text}, {"x": votes(amusement=1)}, classifier)
    assert (section["accuracy"], section["empty"], each["x"]["text_emotion"]) == (0.0, 1, None)
    assert any("without a word" in note for note in section["notes"])


def test_counts_and_shares_give_the_same(classifier):
    shares = {i: h and [v / sum(h) for v in h] for i, h in HISTOGRAMS.items()}
    counts = alignment_scores(TEXTS, HISTOGRAMS, classifier)[0]
    assert alignment_scores(TEXTS, shares, classifier)[0]["cross_entropy"] == pytest.approx(counts["cross_entropy"])


@pytest.mark.parametrize("histograms", [{}, {"x": None}, {"x": votes()}])
def test_no_histogram_gives_none_and_a_note(classifier, histograms):
    section, each = alignment_scores({"x": "dark"}, histograms, classifier)
    assert section["accuracy"] is None and section["cross_entropy"] is None and section["notes"]
    assert each["x"]["alignment"] is None and each["x"]["text_emotion"] == "fear"


def test_section_reports_unknown_words_and_classifier(classifier):
    section, _ = alignment_scores({"x": "dark dark zeppelin dark"}, {"x": votes(fear=1)}, classifier)
    assert section["unknown_words"] == 0.25
    assert section["classifier"]["network"] == "lstm" and section["classifier"]["words"] == 11


def test_saved_classifier_gives_the_same_scores(classifier, tmp_path):
    classifier.settings["network"] = {
        "name": "lstm", "vocabulary": 11, "classes": 9,
        **dict.fromkeys(("embedding_dim", "word_dim", "hidden_dim", "head_dim"), 9),
    }  # fmt: skip
    classifier.save(tmp_path / "classifier")
    again = load_classifier(tmp_path / "classifier", device="cpu")
    assert alignment_scores(TEXTS, HISTOGRAMS, again) == alignment_scores(TEXTS, HISTOGRAMS, classifier)


def test_invalid_input_is_refused(classifier):
    with pytest.raises(UserError, match="empty"):
        alignment_scores({}, {}, classifier)
    with pytest.raises(UserError, match="nine numbers"):
        alignment_scores({"x": "dark"}, {"x": [1.0]}, classifier)


def test_every_emotion_is_recognized(classifier):
    texts = {name: sign for name, sign in zip(EMOTIONS, SIGNS, strict=True)}
    section, _ = alignment_scores(texts, {name: votes(**{name.replace(" ", "_"): 1}) for name in EMOTIONS}, classifier)
    assert section["accuracy"] == 1.0 and INDEX["something else"] == 8
