"""VAD of the reaction, predicted from the prompt, against training's forward pass over the whole text."""

from __future__ import annotations

import pytest
import torch

from model.decoding.scoring import sentence_vad
from tests.helpers.tiny import GPT2, make_aligner, make_batch, make_captioner, video_batch


@pytest.fixture(scope="module")
def captioner(template):
    large_weights = {**GPT2, "initializer_range": 0.2}
    return make_captioner(template, gates=0.9, seed=5, vad__sentence=True, text__config=large_weights)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, template, captioner):
    return make_batch(tmp_path_factory.mktemp("pictures"), template, captioner, count=4)


def predict(captioner, template, batch):
    visual = captioner.look(batch.frames, batch.frame_mask).rows(batch.text_image)
    prompts, counts = zip(*map(template.explanation_prompt, batch.emotion.tolist()), strict=True)
    return sentence_vad(captioner, visual, prompts, explanation_tokens=counts, vad=make_aligner(template))


@torch.no_grad()
@pytest.mark.parametrize("clips", [False, True], ids=["pictures", "clips"])
def test_prediction_from_the_prompt_equals_training(captioner, template, pictures, clips):
    """Prompts of different lengths are padded on the left; later words must not matter."""
    batch = video_batch(pictures, [2, 5, 1, 3]) if clips else pictures
    found, trained = predict(captioner, template, batch), captioner(batch).vad_sentence
    assert len({len(template.label_ids[i]) for i in batch.emotion.tolist()}) > 1
    torch.testing.assert_close(found, trained.clamp(-1, 1), rtol=0, atol=1e-5)
    assert found.std(dim=0).min() > 1e-3, "values must differ for this test"


@torch.no_grad()
def test_values_are_clipped_to_the_scale(template, captioner, pictures):
    with torch.no_grad():
        captioner.vad_sentence_head.bias.copy_(torch.tensor([9.0, -9.0, 0.0]))
    try:
        found = predict(captioner, template, pictures)
    finally:
        captioner.vad_sentence_head.bias.data.zero_()
    assert (found[:, 0] == 1).all() and (found[:, 1] == -1).all() and (found[:, 2].abs() < 1).all()


def test_network_without_the_head_is_refused(template, pictures):
    plain = make_captioner(template)
    with pytest.raises(ValueError, match="no head"):
        predict(plain, template, pictures)
