"""Similes, variety and novelty of explanations, by hand and against plain dynamic programming."""

from __future__ import annotations

import json
import random
import time
from statistics import stdev

import pytest

from trainer.metrics.bootstrap import intervals, score
from trainer.metrics.explanations import (
    SIMILES,
    TextIndex,
    explanation_scores,
    has_simile,
    novelty_scores,
    statistics,
    tokens,
)


def longest_common(caption: list[str], text: list[str]) -> int:
    return int(TextIndex([text], set(caption)).longest_common(caption)[0])


def dynamic_programme(a: list[str], b: list[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            longer = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else longer
    return table[-1][-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The sky, it's calm!", ["the", "sky", "it's", "calm"]),
        ("the painting 's light", ["the", "painting", "'s", "light"]),  # as ArtEmis' texts are prepared
        ("a blue-green sea/lake “glows”…", ["a", "blue", "green", "sea", "lake", "glows"]),
        ("don’t — DON'T", ["don't", "don't"]),
        ("Ärger e\u0301tude ÉTUDE", ["ärger", "étude", "étude"]),
        ("空は 青い。", ["空", "は", "青", "い"]),
        ("a_b $5 = 3+4", ["a", "b", "5", "3", "4"]),
        (" \n\t ", []),
        ("", []),
    ],
)
def test_tokens(text, expected):
    assert tokens(text) == expected


@pytest.mark.parametrize("phrase", SIMILES)
def test_every_phrase_is_a_simile(phrase):
    assert has_simile(tokens(f"It {phrase.upper()} a storm."))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("he looks, like me, sad", True),  # punctuation does not split a phrase
        ("this is likely old", True),  # substrings, as in ArtEmis
        ("looks as if alike", False),
        ("he looks very like her", False),
        ("", False),
    ],
)
def test_similes(text, expected):
    assert has_simile(tokens(text)) is expected


def test_scores_by_hand():
    texts = {"1": "it looks like rain", "2": "It looks like rain.", "3": "calm", "4": ""}
    references = {"1": ["it reminds me of rain", "grey", " "], "2": ["sad clouds", "it resembles a sea"]}
    found, rows = explanation_scores(texts, references)
    assert found == {
        "similes": 2 / 4,
        "human_similes": 2 / 4,
        "distinct": 3 / 4,
        "commonest_of_emotion": None,
        "vocabulary": 5,
        "mean_length": 9 / 4,
        "human_mean_length": (5 + 1 + 2 + 4) / 4,
        "most_common": {"text": "it looks like rain", "count": 2},
        "captions": 4,
        "human_texts": 4,
        "novelty": None,
    }
    assert list(rows) == list(texts) and rows["3"] == {"simile": False, "tokens": 1}
    json.dumps([found, rows], allow_nan=False)


def test_share_of_the_commonest_text_of_each_emotion():
    texts = dict(zip("abcdef", ["so calm", "So calm.", "wide", "dark", "dark", "so calm"], strict=True))
    emotions = dict(zip("abcde", ["awe", "awe", "awe", "fear", "fear"], strict=True)) | {"f": None}
    assert explanation_scores(texts, {}, emotions=emotions)[0]["commonest_of_emotion"] == 4 / 5


def test_no_texts_give_none():
    found, _ = explanation_scores({}, {}, training_texts=["a b"])
    assert found["similes"] is found["distinct"] is found["mean_length"] is found["novelty"] is None
    assert found["most_common"] is None and found["vocabulary"] == 0


@pytest.mark.parametrize(
    ("a", "b", "length"),
    [
        ("the sky is blue", "the sea is a deep blue", 3),
        ("a b c", "c b a", 1),
        ("a a a", "a a", 2),
        ("one", "one", 1),
        ("one", "two", 0),
        ("", "one", 0),
        ("one", "", 0),
        ("", "", 0),
        ("été à la mer", "un été la mer é", 3),
    ],
)
def test_longest_common_by_hand(a, b, length):
    assert longest_common(a.split(), b.split()) == longest_common(b.split(), a.split()) == length


def test_longest_common_equals_dynamic_programming_at_any_length():
    rng = random.Random(0)
    for _ in range(150):
        words = [str(i) for i in range(rng.choice([1, 2, 4, 20]))]
        a, b = (rng.choices(words, k=rng.choice([0, 1, 7, 31, 63, 64, 65, 127, 128, 129, 200])) for _ in "ab")
        assert longest_common(a, b) == dynamic_programme(a, b), (a, b)


def test_batched_longest_common_equals_one_by_one():
    rng = random.Random(1)
    words = [str(i) for i in range(12)]
    texts = [rng.choices(words, k=rng.randint(0, 30)) for _ in range(60)]
    captions = [rng.choices(words[:8], k=length) for length in (0, 1, 10, 64, 70, 130)]
    index = TextIndex(texts, set(words[:8]))
    for caption in captions:
        assert index.longest_common(caption).tolist() == [dynamic_programme(caption, text) for text in texts]


def test_novelty_by_hand():
    captions = {"1": tokens("the sky is calm"), "2": tokens("a storm"), "3": tokens("")}
    training = ["The sky is dark.", "the sky is dark", "a calm sea", "", "sky"]  # three different ones
    found, each = novelty_scores(captions, training)
    assert each["1"] == {"max_lcs": 3, "mean_lcs": pytest.approx((3 + 1 + 1) / 3)}
    assert each["2"] == {"max_lcs": 1, "mean_lcs": pytest.approx(1 / 3)}
    assert each["3"] == {"max_lcs": 0, "mean_lcs": 0}
    assert found["max_lcs"] == pytest.approx(4 / 3) and found["mean_lcs"] == pytest.approx((5 / 3 + 1 / 3) / 3)
    assert found["max_lcs_std"] == pytest.approx(stdev([3, 1, 0]))
    assert (found["training_texts"], found["captions"], found["seed"]) == (3, 3, 2021)
    json.dumps([found, each], allow_nan=False)


def test_copied_explanation_has_maximal_lcs():
    training = ["the boats are still on the water", "it rains"]
    assert novelty_scores({"1": training[0].split()}, training)[1]["1"]["max_lcs"] == 7


def test_novelty_needs_texts_and_captions():
    assert novelty_scores({"1": ["a"]}, [" ", "."]) == (None, {})
    assert novelty_scores({}, ["a"]) == (None, {})


def test_samples_depend_on_the_seed_but_not_on_the_order():
    rng = random.Random(2)
    training = [" ".join(rng.choices("abcdefghij", k=8)) for _ in range(60)]
    captions = {str(i): rng.choices("abcdefghij", k=6) for i in range(40)}
    turned = dict(reversed(captions.items()))
    drawn = {"texts_drawn": 20, "captions_drawn": 10}
    found, each = novelty_scores(captions, training, **drawn)
    assert (found["training_texts"], found["captions"], len(each)) == (20, 10, 10)
    assert (found, each) == novelty_scores(turned, training[::-1], **drawn)
    assert each != novelty_scores(captions, training, seed=7, **drawn)[1]


def test_scores_follow_from_values_per_image():
    texts = {str(i): f"it looks like {'rain ' * i}" if i % 3 else "calm" for i in range(30)}
    found, rows = explanation_scores(texts, {}, training_texts=["rain and rain", "it looks like"])
    rows = json.loads(json.dumps(list(rows.values())))
    whole = {name: score(statistic, len(rows)) for name, statistic in statistics(rows).items()}
    assert whole == {
        "similes": pytest.approx(found["similes"]),
        "mean_length": pytest.approx(found["mean_length"]),
        "novelty.max_lcs": pytest.approx(found["novelty"]["max_lcs"]),
        "novelty.mean_lcs": pytest.approx(found["novelty"]["mean_lcs"]),
    }
    for name, (low, high) in intervals(statistics(rows), len(rows)).items():
        assert low < whole[name] < high


def test_images_outside_the_sample_have_no_novelty():
    found, rows = explanation_scores({str(i): "a b" for i in range(900)}, {}, training_texts=["a"])
    assert found["novelty"]["captions"] == sum("max_lcs" in row for row in rows.values()) == 800
    assert score(statistics(list(rows.values()))["novelty.max_lcs"], 900) == 1


def test_novelty_is_fast_at_the_published_sample_size():
    rng = random.Random(3)
    words = [f"w{i}" for i in range(4000)]
    weights = [1 / (i + 1) for i in range(4000)]
    training = [" ".join(rng.choices(words, weights, k=rng.randint(5, 30))) for _ in range(5000)]
    captions = {str(i): rng.choices(words, weights, k=10) for i in range(160)}
    start = time.process_time()
    novelty_scores(captions, training)
    assert time.process_time() - start < 6  # a 25th of 800 x 25,000, which has 30 s; five times what it takes
