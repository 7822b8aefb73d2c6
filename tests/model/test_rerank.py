"""Contrastive scores of whole texts against training's forward pass on the same texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.collate import Item, TextItem, collate
from model.captioner import Text
from model.contrastive import find_negatives
from model.decoding.scoring import contrastive_scores
from model.losses import loss_sums
from tests.helpers.tiny import GPT2, make_aligner, make_batch, make_captioner, make_dataset, make_samples, video_batch

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def captioner(template):
    """Large random weights, so that scores differ between texts."""
    return make_captioner(template, gates=0.9, seed=5, text__config={**GPT2, "initializer_range": 0.2})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, template, captioner):
    return make_batch(tmp_path_factory.mktemp("pictures"), template, captioner, count=4)


@pytest.fixture(params=["pictures", "clips"])
def batch(request, pictures):
    return pictures if request.param == "pictures" else video_batch(pictures, [2, 5, 1, 3])


def scores(captioner, batch):
    visual = captioner.look(batch.frames, batch.frame_mask)
    return contrastive_scores(captioner, visual.rows(batch.text_image), batch)


@torch.no_grad()
def test_scores_equal_those_of_training(captioner, batch):
    found = scores(captioner, batch)
    torch.testing.assert_close(found, captioner(batch).contrastive[:, 0], **CLOSE)
    assert found.std() > 1e-3, "scores must differ for this test"


@torch.no_grad()
def test_false_explanation_is_read_after_this_image_and_emotion(tmp_path, template, captioner, batch):
    """Against texts built from this row's emotion and the other row's words."""
    found = captioner(batch).contrastive
    negatives = find_negatives(batch.text_image, batch.emotion, len(batch.frames))
    visual, aligner = captioner.look(batch.frames, batch.frame_mask), make_aligner(template)
    rows = [row[mask].tolist() for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    for (row, column), other in np.ndenumerate(negatives.numpy()):
        if other < 0:
            assert found[row, 1 + column] == float("-inf")
            continue
        words = template.decode(rows[other][batch.explanation_start[other] :])
        emotion = int(batch.emotion[row])
        text = template.encode(words, emotion)
        sample = make_samples(tmp_path / f"{row}{column}", 1)[0]
        item = Item(sample, batch.frames[:1, 0], [TextItem(text, emotion, *aligner.align(text.input_ids))])
        expected = contrastive_scores(captioner, visual.rows(batch.text_image[[row]]), collate([item]))
        torch.testing.assert_close(found[[row], 1 + column], expected, **CLOSE)


@torch.no_grad()
def test_read_negatives_changes_only_scores_of_false_explanations(captioner, pictures):
    read = captioner(pictures).contrastive
    captioner.read_negatives = False
    try:
        states = captioner(pictures).contrastive
    finally:
        captioner.read_negatives = True
    assert torch.equal(read[:, 0], states[:, 0])
    assert torch.equal(read.isfinite(), states.isfinite())
    assert (read - states)[:, 1:][read[:, 1:].isfinite()].abs().max() > 1e-3


def test_only_the_head_is_trained_with_read_negatives(template, pictures):
    """With negatives=states, as in SEVLM, the whole network gets gradients."""
    for read in (True, False):
        captioner = make_captioner(template, gates=0.9, contrastive__negatives="read" if read else "states")
        loss_sums(captioner(pictures), pictures)["contrastive"].backward()
        reached = {n.split(".")[0] for n, p in captioner.named_parameters() if p.grad is not None and p.grad.any()}
        assert reached == {"contrastive"} if read else reached > {"contrastive", "resampler", "language"}


def test_exchanged_text_is_truncated():
    """Text 0 is 'a b | c d e', text 1 'a | c'."""
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]])
    mask = ids > 0
    text = Text(ids, ids, ids[..., None].expand(-1, -1, 3).float(), mask, mask, right_padded=True)
    start, rows, others = torch.tensor([2, 1]), torch.tensor([0, 1, 0]), torch.tensor([1, 0, 0])
    for longest, expected in ((9, [[1, 2, 7], [6, 3, 4, 5], [1, 2, 3, 4, 5]]), (3, [[1, 2, 7], [6, 3, 4], [1, 2, 3]])):
        found = text.exchanged(start, rows, others, longest=longest)
        assert [row[mask].tolist() for row, mask in zip(found.input_ids, found.attention_mask, strict=True)] == expected
        assert torch.equal(found.vad[..., 0][found.attention_mask], found.input_ids[found.attention_mask].float())


@torch.no_grad()
def test_scores_do_not_depend_on_the_batch(tmp_path, template, captioner):
    dataset = make_dataset(tmp_path, template, captioner, 4)
    items = [dataset[0, i] for i in range(4)]
    together = scores(captioner, collate(items))
    alone = torch.cat([scores(captioner, collate([item])) for item in items])
    torch.testing.assert_close(together, alone, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("what", ["image", "emotion", "explanation"])
def test_scores_depend_on_image_emotion_and_explanation(captioner, pictures, what):
    visual = captioner.look(pictures.frames, pictures.frame_mask)
    before = contrastive_scores(captioner, visual.rows(pictures.text_image), pictures)
    images, changed = pictures.text_image, video_batch(pictures, [1] * 4)  # a copy
    if what == "image":
        images = images.flip(0)
    else:
        span = pictures.attention_mask & (pictures.segment == (what == "explanation"))
        changed.input_ids = torch.where(span, changed.input_ids.roll(2, dims=0), changed.input_ids)
    after = contrastive_scores(captioner, visual.rows(images), changed)
    assert (before - after).abs().max() > 1e-3


def test_network_without_the_head_is_refused(template, pictures):
    plain = make_captioner(template, contrastive__enabled=False)
    with pytest.raises(ValueError, match="contrastive head"):
        scores(plain, pictures)
