"""What the contrastive head says of whole texts, against training's forward pass on the same texts."""

from __future__ import annotations

import pytest
import torch

from data.collate import collate
from model.rerank import contrastive_scores
from tests.tiny import GPT2, make_batch, make_captioner, make_dataset, video_batch

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def captioner(template):
    """Wild weights, so that scores differ from text to text."""
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
def test_scores_are_those_of_training(captioner, batch):
    found = scores(captioner, batch)
    torch.testing.assert_close(found, captioner(batch).contrastive[:, 0], **CLOSE)
    assert found.std() > 1e-3, "scores all alike would prove nothing"


@torch.no_grad()
def test_a_text_has_its_score_whatever_stands_beside_it(tmp_path, template, captioner):
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


def test_a_network_without_the_head_is_refused(template, pictures):
    plain = make_captioner(template, contrastive__enabled=False)
    with pytest.raises(ValueError, match="contrastive head"):
        scores(plain, pictures)
