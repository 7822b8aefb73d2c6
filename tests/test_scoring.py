"""The distribution over emotions against a slow reference: every label read in a full sentence of its own."""

from __future__ import annotations

import pytest
import torch

from data.lexicon import Lexicon
from data.vad_align import VadAligner
from model.scoring import emotion_log_probs
from tests.tiny import GPT2, make_batch, make_captioner, video_batch

LENGTHS = [2, 5, 3, 1]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def captioner(template):
    """Wild weights and every gate open, so that the images decide and VAD of the words is felt."""
    return make_captioner(template, gates=0.9, seed=5, text__config={**GPT2, "initializer_range": 0.2})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, template, captioner):
    return make_batch(tmp_path_factory.mktemp("pictures"), template, captioner, count=len(LENGTHS))


@pytest.fixture(scope="module", params=["pictures", "clips"])
def batch(request, pictures):
    return pictures if request.param == "pictures" else video_batch(pictures, LENGTHS)


def words_of_labels(template) -> VadAligner:
    """A lexicon that knows every label after each of its tokens, so that VAD is felt in all of them."""
    known = {}
    for label in template.label_ids:
        for end in range(1, len(label) + 1):
            known |= {word: (0.9, -0.8, 0.1 * end) for word in template.decode(label[:end]).split()}
    return VadAligner(Lexicon(known), template.tokenizer)


def look(captioner, batch, rows=slice(None)):
    with torch.no_grad():
        return captioner.look(batch.frames[rows], batch.frame_mask[rows])


def score(captioner, visual, template, labels=None):
    labels = template.label_ids if labels is None else labels
    return emotion_log_probs(captioner, visual, prompt=template.prompt, labels=labels, vad=words_of_labels(template))


@torch.no_grad()
def slowly(captioner, batch, template, labels):
    """One image, one label at a time, without cache and without padding."""
    rows = []
    for i, mask in enumerate(batch.frame_mask):
        visual = captioner.look(batch.frames[i : i + 1, mask], batch.frame_mask[i : i + 1, mask])
        scores = []
        for label in labels:
            ids = [*template.prompt, *label]
            vad, known, _ = words_of_labels(template).align(ids)
            tokens = torch.tensor([ids])
            embeddings = captioner.embed(tokens, torch.zeros_like(tokens), vad[None], known[None])
            hidden = captioner.read(visual, embeddings, torch.ones_like(tokens, dtype=torch.bool))
            log_probs = captioner.language.logits(hidden)[0].log_softmax(dim=-1)
            start = len(template.prompt) - 1
            scores.append(sum(log_probs[start + k, token] for k, token in enumerate(label)))
        rows.append(torch.stack(scores).log_softmax(dim=0))
    return torch.stack(rows)


def test_scores_are_those_of_whole_sentences(captioner, batch, template):
    assert {len(label) for label in template.label_ids} != {1}, "labels of several tokens must be among them"
    ours = score(captioner, look(captioner, batch), template)
    torch.testing.assert_close(ours, slowly(captioner, batch, template, template.label_ids), **CLOSE)
    assert ours.std(dim=0).max() > 1e-3, "scores that are alike for all images would prove nothing"


@pytest.mark.parametrize(
    "labels",
    [[[5], [9], [7]], [[5], [9, 4], [7]], [[5, 6, 7, 8], [9, 4], [7, 7, 7]], [[300, 1, 2, 3, 4, 5], [9]]],
    ids=["one token each", "one of two", "all of several", "a long one"],
)
def test_labels_of_any_lengths(captioner, batch, template, labels):
    ours = score(captioner, look(captioner, batch), template, labels)
    torch.testing.assert_close(ours, slowly(captioner, batch, template, labels), **CLOSE)


def test_every_row_is_a_distribution(captioner, batch, template):
    scores = score(captioner, look(captioner, batch), template)
    assert scores.shape == (len(LENGTHS), 9)
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(len(LENGTHS)))


def test_a_batch_equals_one_by_one(captioner, batch, template):
    visual = look(captioner, batch)
    together = score(captioner, visual, template)
    for i in range(len(LENGTHS)):
        alone = score(captioner, visual.rows(torch.tensor([i])), template)
        torch.testing.assert_close(together[i : i + 1], alone, **CLOSE)


def test_scoring_leaves_the_visual_side_as_it_was(captioner, batch, template):
    visual = look(captioner, batch)
    prefix, keys = visual.prefix.clone(), visual.keys_values[0][0].clone()
    first = score(captioner, visual, template)
    assert torch.equal(visual.prefix, prefix) and torch.equal(visual.keys_values[0][0], keys)
    assert torch.equal(first, score(captioner, visual, template))


def test_without_cross_attention_and_vad(template, pictures):
    switches = {"enable_resampler_xattn": False, "vad__enabled": False, "text__segments": False}
    captioner = make_captioner(template, seed=5, text__config={**GPT2, "initializer_range": 0.2}, **switches)
    ours = score(captioner, look(captioner, pictures), template)
    torch.testing.assert_close(ours, slowly(captioner, pictures, template, template.label_ids), **CLOSE)
