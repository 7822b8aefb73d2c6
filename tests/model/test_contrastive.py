"""The contrastive head: negatives against brute force over random layouts, masked means, and scores."""

from __future__ import annotations

import random

import pytest
import torch

from model.contrastive import ContrastiveHead, find_negatives, span_mean


def random_layout(rng: random.Random) -> tuple[list[int], list[int], int]:
    """(image of each text, emotion of each text, images) with 1 to 4 texts an image and few emotions."""
    images = rng.randint(1, 6)
    text_image = [i for i in range(images) for _ in range(rng.randint(1, 4))]
    return text_image, [rng.choice((-1, 0, 1, 2)) for _ in text_image], images


def test_negatives_equal_a_plain_search():
    rng = random.Random(0)
    seen = {"found": 0, "none": 0}
    for _ in range(400):
        text_image, emotion, images = random_layout(rng)
        found = find_negatives(torch.tensor(text_image), torch.tensor(emotion), images).tolist()
        for row, (same, other) in enumerate(found):
            candidates = [j for j, e in enumerate(emotion) if text_image[j] == text_image[row] and e != emotion[row]]
            assert same in candidates if candidates else same == -1
            seen["found" if candidates else "none"] += 1
            if images == 1:
                assert other == -1
            else:
                assert text_image[other] == (text_image[row] + 1) % images != text_image[row]
                place = row - text_image.index(text_image[row])
                theirs = text_image.count(text_image[other])
                assert other - text_image.index(text_image[other]) == min(place, theirs - 1)
    assert min(seen.values()) > 100, "both cases must occur"


@pytest.mark.parametrize("texts", [1, 2])
@pytest.mark.parametrize("images", range(2, 70))
def test_negatives_of_other_images_are_a_derangement(images, texts):
    text_image = torch.arange(images).repeat_interleave(texts)
    emotion = torch.arange(images * texts) % texts
    same, other = find_negatives(text_image, emotion, images).unbind(1)
    rows = torch.arange(images * texts)
    assert sorted(other.tolist()) == rows.tolist(), "every text is the negative of exactly one other"
    assert (text_image[other] != text_image).all()
    assert torch.equal(same, rows ^ 1) if texts == 2 else bool((same == -1).all())


def test_single_image_has_no_negatives_of_other_images():
    found = find_negatives(torch.tensor([0, 0, 0]), torch.tensor([4, 4, 5]), 1)
    assert found.tolist() == [[2, -1], [2, -1], [0, -1]]


def test_texts_without_emotions_have_no_negative_of_their_own_image():
    found = find_negatives(torch.tensor([0, 0, 1, 1]), torch.full((4,), -1), 2)
    assert found.tolist() == [[-1, 2], [-1, 3], [-1, 0], [-1, 1]]


def test_span_mean_ignores_unmasked_positions():
    hidden = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
    mean = span_mean(hidden, mask)
    torch.testing.assert_close(mean[0], hidden[0, :2].mean(0))
    torch.testing.assert_close(mean[1], hidden[1, [1, 3, 4]].mean(0))
    assert (mean[2] == 0).all()
    changed = torch.where(mask[..., None], hidden, torch.full_like(hidden, 1e4))
    torch.testing.assert_close(span_mean(changed, mask), mean)


@pytest.mark.parametrize(("hidden_dim", "depth", "linear"), [(None, 2, 3), (5, 1, 2), (5, 0, 1)])
def test_head_has_the_configured_size(hidden_dim, depth, linear):
    head = ContrastiveHead(6, 4, hidden_dim=hidden_dim, depth=depth)
    layers = [layer for layer in head.pred if isinstance(layer, torch.nn.Linear)]
    assert len(layers) == linear and layers[0].in_features == 4 + 2 * 6 and layers[-1].out_features == 1
    assert all(layer.out_features == (hidden_dim or 6) for layer in layers[:-1])


def test_scores_belong_to_the_indexed_explanations():
    torch.manual_seed(0)
    head = ContrastiveHead(6, 4, hidden_dim=None, depth=2)
    image, emotion, explanation = torch.randn(3, 4), torch.randn(3, 6), torch.randn(3, 6)
    scores = head.scores(image, emotion, explanation, torch.tensor([[1, 2], [-1, 0], [0, -1]]))
    torch.testing.assert_close(scores[:, 0], head(image, emotion, explanation))
    torch.testing.assert_close(scores[0, 1:], head(image[[0, 0]], emotion[[0, 0]], explanation[[1, 2]]))
    torch.testing.assert_close(scores[1, 2], head(image[1:2], emotion[1:2], explanation[0:1])[0])
    assert torch.isneginf(scores[1, 1]) and torch.isneginf(scores[2, 2])
    assert torch.isfinite(scores).sum() == 7


@pytest.mark.parametrize("temperature", [0.05, 1.0, 4.0])
def test_scores_are_divided_by_the_temperature(temperature):
    torch.manual_seed(0)
    inputs = torch.randn(3, 4), torch.randn(3, 6), torch.randn(3, 6), torch.tensor([[1, 2], [-1, 0], [0, -1]])
    head = ContrastiveHead(6, 4, hidden_dim=None, depth=1)
    other = ContrastiveHead(6, 4, hidden_dim=None, depth=1, temperature=temperature)
    other.load_state_dict(head.state_dict())
    torch.testing.assert_close(other.scores(*inputs) * temperature, head.scores(*inputs))
    assert torch.equal(other(*inputs[:3]), head(*inputs[:3])), "forward applies no temperature"


def test_a_low_temperature_does_not_overflow_in_half_precision():
    head = ContrastiveHead(6, 4, hidden_dim=None, depth=0, temperature=0.001).half()
    with torch.no_grad():
        head.pred[0].weight.fill_(10.0)
    inputs = torch.full((2, 4), 2.0).half(), torch.ones(2, 6).half(), torch.ones(2, 6).half()
    scores = head.scores(*inputs, torch.tensor([[1, -1], [0, -1]]))
    assert scores.dtype == torch.float32 and torch.isfinite(scores[:, :2]).all()
    assert (scores[:, :2] > torch.finfo(torch.float16).max).all()
