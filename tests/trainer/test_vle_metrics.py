"""The scores of VLE's tasks against values by hand and other implementations, and their baselines."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from trainer.metrics.vle import (
    average_precision,
    commonest_answers,
    itm_scores,
    patches_in_boxes,
    pbc_scores,
    vcr_scores,
    vqa_accuracy,
)

NOISE = np.random.default_rng(0)


def question(kind: str, **answers: float) -> dict:
    return {"id": 0, "question": "?", "type": kind, "answers": answers}


def test_commonest_answer_has_the_highest_sum_of_scores() -> None:
    rows = [
        {"questions": [question("color", red=1.0), question("number", two=0.3, three=0.9)]},
        {"questions": [question("color", blue=0.6), question("color", blue=0.6), question("number", two=0.3)]},
        {"questions": []},
    ]
    assert commonest_answers(rows) == {"color": "blue", "number": "three", "": "blue"}


def test_accuracy_is_the_mean_soft_score_by_type() -> None:
    answers = [{"red": 1.0}, {"blue": 0.6, "green": 0.3}, {"two": 1.0}, {"two": 0.9}, {"sea": 1.0}]
    types = ["color", "color", "number", "number", "other"]
    found = vqa_accuracy(
        ["red", "green", "three", "two", "sea"],
        answers,
        types=types,
        pictures=["a", "a", "b", "c", "c"],
        commonest={"color": "blue", "number": "two", "": "sea"},
    )
    assert found["accuracy"] == pytest.approx((1 + 0.3 + 0 + 0.9 + 1) / 5)
    assert found["baseline"] == pytest.approx((0 + 0.6 + 1 + 0.9 + 1) / 5)
    assert found["gain"] == pytest.approx(found["accuracy"] - found["baseline"])
    assert found["types"]["color"] == pytest.approx({"accuracy": 0.65, "baseline": 0.3, "gain": 0.35, "questions": 2})
    assert found["types"]["number"] == pytest.approx({"accuracy": 0.45, "baseline": 0.95, "gain": -0.5, "questions": 2})
    low, high = found["intervals"]["types.number.gain"]
    assert low <= -0.5 <= high
    assert found["questions"] == 5


def test_questions_of_a_picture_are_drawn_together() -> None:
    """A hundred copies of each question leave the interval as wide; a hundred pictures more make it narrower."""

    def width(copies: int, pictures: int) -> float:
        right = [i % 2 for i in range(pictures) for _ in range(copies)]
        given = {"types": [""] * len(right), "pictures": [i for i in range(pictures) for _ in range(copies)]}
        found = vqa_accuracy(["yes"] * len(right), [{"yes": float(v)} for v in right], commonest={}, **given)
        low, high = found["intervals"]["accuracy"]
        return high - low

    assert width(100, 20) == pytest.approx(width(1, 20))
    assert width(1, 2000) < width(1, 20) / 5


def ranks_by_sorting(scores: np.ndarray, truth: list[int]) -> tuple[list[int], dict[int, int]]:
    of_text = [sorted(range(len(row)), key=lambda j, row=row: -row[j]).index(truth[i]) for i, row in enumerate(scores)]
    of_picture = {}
    for picture in sorted(set(truth)):
        order = sorted(range(len(scores)), key=lambda i, picture=picture: -scores[i, picture])
        of_picture[picture] = min(order.index(i) for i, true in enumerate(truth) if true == picture)
    return of_text, of_picture


def test_recall_is_that_of_sorted_candidates() -> None:
    truth = NOISE.integers(0, 9, 40).tolist()
    scores = NOISE.normal(size=(40, 12))
    scores[np.arange(40), truth] += 1.0
    found = itm_scores(scores, truth)
    of_text, of_picture = ranks_by_sorting(scores, truth)
    for k in (1, 5, 10):
        assert found["text_to_image"][f"R@{k}"] == pytest.approx(np.mean([rank < k for rank in of_text]))
        assert found["image_to_text"][f"R@{k}"] == pytest.approx(np.mean([rank < k for rank in of_picture.values()]))
        low, high = found["text_to_image"]["intervals"][f"R@{k}"]
        assert low <= found["text_to_image"][f"R@{k}"] <= high
    assert [found[way]["candidates"] for way in ("text_to_image", "image_to_text")] == [12, 40]


def test_chance_of_retrieval_is_what_random_scores_reach() -> None:
    truth = [0, 0, 0, 1, 2, 2, 3]
    found = [itm_scores(NOISE.random((7, 5)), truth) for _ in range(400)]
    for way, k in itertools.product(("text_to_image", "image_to_text"), (1, 5)):
        expected = found[0][way]["chance"][f"R@{k}"]
        assert np.mean([run[way][f"R@{k}"] for run in found]) == pytest.approx(expected, abs=0.04)
    assert found[0]["text_to_image"]["chance"] == pytest.approx({"R@1": 0.2, "R@5": 1.0, "R@10": 1.0})
    drawn = [math.comb(7 - own, 5) / math.comb(7, 5) for own in (3, 1, 2, 1)]
    assert found[0]["image_to_text"]["chance"]["R@5"] == pytest.approx(1 - np.mean(drawn))


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_equal_scores_find_nothing(value: float) -> None:
    found = itm_scores(np.full((20, 15), value), [*range(15), *range(5)])
    assert {found[way][f"R@{k}"] for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)} == {0.0}


def precision_by_thresholds(scores: np.ndarray, labels: np.ndarray) -> float:
    """Sum precision × gain in recall over all thresholds, from the highest."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        recall = (chosen & labels).sum() / labels.sum()
        total += (recall - before) * (chosen & labels).sum() / chosen.sum()
        before = recall
    return total


def test_average_precision_is_the_sum_over_thresholds() -> None:
    for _ in range(50):
        scores = NOISE.integers(0, 6, 30) / 5  # with ties
        labels = NOISE.random(30) < 0.4
        assert average_precision(scores, labels) == pytest.approx(precision_by_thresholds(scores, labels))
    assert average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True])) == pytest.approx(5 / 6)
    assert average_precision(np.zeros(4), np.array([True, False, False, False])) == 0.25
    assert average_precision(np.arange(3), np.zeros(3)) is None
    with pytest.raises(ValueError, match="NaN or infinite"):
        average_precision(np.array([np.nan, 1.0]), np.array([True, False]))


def test_patch_is_in_a_box_by_its_center() -> None:
    expected = [[0, 0, 0, 0], [0, 1, 0, 0]]  # 2 rows, 4 columns
    assert patches_in_boxes([[0.3, 0.5, 0.6, 1.0]], (2, 4)).reshape(2, 4).tolist() == expected
    both = patches_in_boxes([[0, 0, 0.5, 0.5], [0.25, 0, 0.75, 0.5]], (4, 4)).reshape(4, 4)
    assert both.sum(axis=1).tolist() == [3, 3, 0, 0]
    assert not patches_in_boxes([], (2, 2)).any()


def test_patch_scores_and_their_baselines() -> None:
    left, right, top = [0.0, 0.0, 0.5, 1.0], [0.75, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.25]
    boxes = [[left], [right], [left, top], []]
    inside = np.array([patches_in_boxes(named, (4, 4)) for named in boxes])
    scores = np.where(inside, 1.0, 0.0) + NOISE.random((4, 16)) / 10
    scores[1] = -scores[1]  # the highest patch is outside
    found = pbc_scores(scores, boxes, grid=(4, 4), pictures=["a", "a", "b", "b"])
    assert found["texts"] == 3
    assert found["pointing"] == pytest.approx(2 / 3)
    assert found["average_precision"] == pytest.approx((2 + average_precision(scores[1], inside[1])) / 3)
    assert found["positive_rate"] == found["pointing_random"] == pytest.approx((8 + 4 + 10) / 16 / 3)
    assert found["pointing_center"] == 0.0  # the left box ends at the center
    low, high = found["intervals"]["pointing"]
    assert low <= 2 / 3 <= high


def test_constant_patches_reach_the_baselines() -> None:
    boxes = [[[0.25, 0.0, 0.75, 1.0]], [[0.0, 0.0, 1.0, 0.25]]]
    found = pbc_scores(np.ones((2, 16)), boxes, grid=(4, 4), pictures=[0, 1])
    assert found["average_precision"] == found["positive_rate"] == pytest.approx((0.5 + 0.25) / 2)
    assert found["pointing"] == found["pointing_random"]
    assert found["pointing_center"] == 0.5


def test_other_labels_of_patches_are_taken() -> None:
    scores = np.array([[3.0, 2.0, 1.0, 0.0]])
    labels = np.array([[False, True, False, False]])
    found = pbc_scores(scores, [[[0.0, 0.0, 0.5, 0.5]]], grid=(2, 2), pictures=[0], labels=labels)
    assert found["average_precision"] == 0.5
    assert found["pointing"] == 1.0


def test_answer_and_rationale_must_both_be_right() -> None:
    labels = np.array([[0, 1], [2, 3], [1, 1], [3, 0]])
    q2a, qa2r = np.eye(4)[labels[:, 0]], np.eye(4)[labels[:, 1]]
    assert vcr_scores(q2a, qa2r, labels)["Q2AR"] == 1.0
    q2a[0], qa2r[1], q2a[2], qa2r[2] = 0.0, np.eye(4)[0], np.eye(4)[0], np.eye(4)[0]
    found = vcr_scores(q2a, qa2r, labels, pictures=["a", "a", "b", "c"])
    assert (found["Q2A"], found["QA2R"], found["Q2AR"]) == (0.5, 0.5, 0.25)  # equal logits are wrong
    assert found["chance"] == {"Q2A": 0.25, "QA2R": 0.25, "Q2AR": 0.0625}
    assert found["questions"] == 4
    assert found["intervals"]["Q2AR"] is not None
