"""The distribution over emotions against a slow reference that reads every label separately."""

from __future__ import annotations

import functools

import pytest
import torch

from common.errors import UserError
from data.vad.align import VadAligner
from data.vad.lexicon import Lexicon
from model.build import SpecialTokens, build_captioner
from model.captioner import Text
from model.decoding.scoring import MODES, emotion_log_probs
from model.losses import loss_counts, loss_sums
from tests.helpers.tiny import GPT2, make_batch, make_captioner, model_config, video_batch

LENGTHS = [2, 5, 3, 1]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LARGE_WEIGHTS = {**GPT2, "initializer_range": 0.2}  # so that scores depend on the images
APART = [[5], [9, 4], [7, 7, 7], [300, 1, 2, 3, 4, 5]]  # labels that differ in their first token
NETWORKS = {
    "gated": {},
    "causal encoder": {"vad__encoder": "causal", "vad__fusion": "concat"},
    "bidirectional encoder": {"vad__encoder": "bidirectional"},
    "sevlm": {"architecture": "sevlm", "vad__encoder": "bidirectional", "vad__fusion": "concat"},
}


def sensitive_captioner(template, **changes):
    """Return a network with open gates and large weights, whose scores depend on VAD."""
    if changes.get("architecture") == "sevlm":
        torch.manual_seed(5)
        special = SpecialTokens(pad=1, segments=(2, 3))
        config = model_config(**changes, text__config=LARGE_WEIGHTS)
        captioner = build_captioner(config, vocab_size=len(template.tokenizer), eos_id=template.eos_id, special=special)
    else:
        captioner = make_captioner(template, gates=0.9, seed=5, text__config=LARGE_WEIGHTS, **changes)
    if changes.get("vad__fusion") == "concat":
        torch.nn.init.normal_(captioner.fusion.linear.weight, std=0.2)
    return captioner.eval()


@pytest.fixture(scope="module", params=NETWORKS, ids=[name.replace(" ", "-") for name in NETWORKS])
def network(request, template):
    return sensitive_captioner(template, **NETWORKS[request.param])


@pytest.fixture(scope="module")
def captioner(template):
    return sensitive_captioner(template)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, template, captioner):
    return make_batch(tmp_path_factory.mktemp("pictures"), template, captioner, count=len(LENGTHS))


@pytest.fixture(scope="module", params=["pictures", "clips"])
def batch(request, pictures):
    return pictures if request.param == "pictures" else video_batch(pictures, LENGTHS)


@functools.cache
def words_of_labels(template) -> VadAligner:
    """Return an aligner whose lexicon has every prefix of a label, so that all tokens have VAD."""
    known = {}
    for label in template.label_ids:
        for end in range(1, len(label) + 1):
            known |= {word: (0.9, -0.8, 0.1 * end) for word in template.decode(label[:end]).split()}
    return VadAligner(Lexicon(known), template.tokenizer)


def look(captioner, batch, rows=slice(None)):
    with torch.no_grad():
        return captioner.look(batch.frames[rows], batch.frame_mask[rows])


def score(captioner, visual, template, labels=None, mode="sequence"):
    labels = template.label_ids if labels is None else labels
    words = words_of_labels(template)
    return emotion_log_probs(captioner, visual, prompt=template.prompt, labels=labels, vad=words, mode=mode)


@torch.no_grad()
def reference_scores(captioner, batch, template, labels, mode="sequence"):
    """Score one image and one label at a time, without cache and padding."""
    rows = []
    for i, mask in enumerate(batch.frame_mask):
        visual = captioner.look(batch.frames[i : i + 1, mask], batch.frame_mask[i : i + 1, mask])
        following = functools.cache(lambda *prefix, visual=visual: next_token(captioner, visual, template, prefix))
        scores = []
        for label in labels:
            read = label[:1] if mode == "first_token" else label
            scores.append(sum(following(*label[:k])[token] for k, token in enumerate(read)))
        rows.append(torch.stack(scores).log_softmax(dim=0))
    return torch.stack(rows)


def next_token(captioner, visual, template, label):
    """Return log-probabilities (V,) of the token after the prompt and these tokens of a label."""
    ids = [*template.prompt, *label]
    vad, known, _ = words_of_labels(template).align(ids)
    tokens = torch.tensor([ids])
    text = Text(tokens, torch.zeros_like(tokens), vad[None], known[None], torch.ones_like(tokens, dtype=torch.bool))
    return captioner.language.logits(captioner.read(visual, text))[0, -1].log_softmax(dim=-1)


def clips(network, pictures):
    """Return clips if the network supports several frames."""
    return pictures if network.mapper is None else video_batch(pictures, LENGTHS)


@pytest.mark.parametrize("labels", [None, APART], ids=["emotions", "differing in the first token"])
def test_scores_equal_those_of_texts_read_alone(network, pictures, template, labels):
    batch, labels = clips(network, pictures), labels or template.label_ids
    assert {len(label) for label in labels} != {1}, "some labels must have several tokens"
    ours = score(network, look(network, batch), template, labels)
    torch.testing.assert_close(ours, reference_scores(network, batch, template, labels), **CLOSE)
    assert ours.std(dim=0).max() > 1e-3, "scores must depend on the image"


def test_first_token_scores_equal_those_of_the_prompt_read_alone(network, pictures, template):
    batch = clips(network, pictures)
    ours = score(network, look(network, batch), template, APART, mode="first_token")
    torch.testing.assert_close(ours, reference_scores(network, batch, template, APART, mode="first_token"), **CLOSE)
    whole = score(network, look(network, batch), template, APART)
    assert not torch.allclose(ours, whole, atol=0.1), "the modes must differ for this test"


def test_scores_depend_on_vad(network, pictures, template):
    visual = look(network, clips(network, pictures))
    unknown = VadAligner(Lexicon({}), template.tokenizer)
    without = emotion_log_probs(network, visual, prompt=template.prompt, labels=template.label_ids, vad=unknown)
    assert not torch.allclose(score(network, visual, template), without, atol=1e-3)


@pytest.mark.parametrize(
    "labels",
    [[[5], [9], [7]], [[5], [9, 4], [7]], [[5, 6, 7, 8], [9, 4], [7, 7, 7]], [[300, 1, 2, 3, 4, 5], [9]]],
    ids=["one token each", "one of two", "all of several", "a long one"],
)
def test_labels_of_any_lengths(captioner, batch, template, labels):
    ours = score(captioner, look(captioner, batch), template, labels)
    torch.testing.assert_close(ours, reference_scores(captioner, batch, template, labels), **CLOSE)


@pytest.mark.parametrize("mode", MODES)
def test_every_row_is_a_distribution(captioner, batch, template, mode):
    scores = score(captioner, look(captioner, batch), template, APART, mode)
    assert scores.shape == (len(LENGTHS), len(APART))
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(len(LENGTHS)))


def test_results_do_not_depend_on_the_batch(network, pictures, template):
    visual = look(network, clips(network, pictures))
    together = score(network, visual, template)
    for i in range(len(LENGTHS)):
        alone = score(network, visual.rows(torch.tensor([i])), template)
        torch.testing.assert_close(together[i : i + 1], alone, **CLOSE)


def test_scoring_does_not_change_visual_inputs(captioner, batch, template):
    visual = look(captioner, batch)
    prefix, keys = visual.prefix.clone(), visual.keys_values[0][0].clone()
    first = score(captioner, visual, template)
    assert torch.equal(visual.prefix, prefix) and torch.equal(visual.keys_values[0][0], keys)
    assert torch.equal(first, score(captioner, visual, template))


def test_scores_without_cross_attention_and_vad(template, pictures):
    switches = {"enable_resampler_xattn": False, "vad__enabled": False, "text__segments": False}
    captioner = make_captioner(template, seed=5, text__config=LARGE_WEIGHTS, **switches)
    ours = score(captioner, look(captioner, pictures), template)
    torch.testing.assert_close(ours, reference_scores(captioner, pictures, template, template.label_ids), **CLOSE)


def test_modes_agree_after_training(template, pictures):
    """If first tokens differ, the remaining tokens are nearly certain."""
    captioner = make_captioner(template, text__trainable=True).train()
    optimizer = torch.optim.Adam([p for p in captioner.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(40):
        sums, counts = loss_sums(captioner(pictures), pictures), loss_counts(pictures)
        (sums["emotion"] / counts["emotion"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    captioner.eval()
    shown = {emotion for emotion in pictures.emotion.tolist() if emotion >= 0}
    firsts = {template.label_ids[emotion][0]: template.label_ids[emotion] for emotion in shown}
    labels = list(firsts.values())
    assert len(labels) > 2 and {len(label) for label in labels} != {1}
    visual = look(captioner, pictures)
    sequence, first = (score(captioner, visual, template, labels, mode) for mode in MODES)
    assert torch.equal(sequence.argmax(dim=1), first.argmax(dim=1))
    assert len(set(sequence.argmax(dim=1).tolist())) > 1, "the emotion must depend on the picture"


@pytest.mark.parametrize("labels", [[[5], [5, 9]], [[7], [5, 9], [5]], [[5, 9], [7], [5, 9]]])
@pytest.mark.parametrize("mode", MODES)
def test_label_that_is_a_prefix_of_another_is_refused(captioner, pictures, template, labels, mode):
    with pytest.raises(UserError, match=r"dataset\.tokenizer.*use another tokenizer"):
        score(captioner, look(captioner, pictures), template, labels, mode)


def test_equal_first_tokens_are_refused(captioner, pictures, template):
    visual, labels = look(captioner, pictures), [[5, 6], [7], [5, 9]]
    with pytest.raises(UserError, match=r"2 of them begin with token 5; set trainer\.test\.emotion_scoring=sequence"):
        score(captioner, visual, template, labels, mode="first_token")
    assert torch.isfinite(score(captioner, visual, template, labels)).all()


def test_unknown_mode_is_refused(captioner, pictures, template):
    with pytest.raises(UserError, match="'last_token' is not one of sequence, first_token"):
        score(captioner, look(captioner, pictures), template, mode="last_token")
