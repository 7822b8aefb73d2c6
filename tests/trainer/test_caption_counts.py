"""BLEU and METEOR from counts per image: equal to pycocoevalcap's scores of the same images."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from trainer.metrics import caption_counts
from trainer.metrics.bootstrap import intervals, paired, score
from trainer.metrics.caption_counts import BLEU, bleu_counts, caption_statistics, corpus_bleu, corpus_meteor

CAPTIONS = ["the sky is a calm blue sea", "storm", "", "a a a a", "der Sturm über dem Meer"]
REFERENCES = [
    ["the sky is calm and blue", "a calm blue sea under the sky"],
    ["a storm is coming", "dark clouds"],
    ["nothing to see"],
    ["a man and a dog", "a dog"],
    ["der Sturm über dem Meer", "Wind"],
]


def scorer_scores(captions: list[str], references: list[list[str]]) -> list[float]:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for pair in zip(captions, references, strict=True):
        scorer += pair
    return scorer.compute_score(option="closest")[0]


def test_counts_by_hand():
    assert bleu_counts("a a a", ["a b a c", "a"]) == [2, 0, 0, 0, 3, 2, 1, 0, 3, 4]
    assert bleu_counts("a b", ["a b c", "a"])[-1] == 1  # both one word off: the shorter
    assert bleu_counts("", ["a b c"]) == [0] * 8 + [0, 3]
    assert bleu_counts("é e\u0301", ["é é"])[:2] == [1, 0]  # texts are not normalized


def test_bleu_by_hand():
    counts = [bleu_counts("the cat sat", ["the cat sat down here"])]  # precision 1, three words for five
    assert score(corpus_bleu(counts, 1), 1) == pytest.approx(math.exp(1 - 5 / 3))
    counts = [bleu_counts("a b c d", ["a b x y"])]  # 2 of 4 words, 1 of 3 pairs
    assert score(corpus_bleu(counts, 2), 1) == pytest.approx(math.sqrt(1 / 2 * 1 / 3))


def test_bleu_equals_pycocoevalcap_on_any_resample():
    counts = [bleu_counts(*pair) for pair in zip(CAPTIONS, REFERENCES, strict=True)]
    rng = np.random.default_rng(0)
    draws = rng.integers(len(CAPTIONS), size=(50, 6))
    expected = [scorer_scores([CAPTIONS[i] for i in drawn], [REFERENCES[i] for i in drawn]) for drawn in draws]
    times = np.array([np.bincount(drawn, minlength=len(CAPTIONS)) for drawn in draws], dtype=float)
    for n, values in enumerate(zip(*expected, strict=True), start=1):
        assert corpus_bleu(counts, n)(times) == pytest.approx(values, abs=1e-9)


def test_empty_caption_is_zero_and_no_counts_are_none():
    assert score(corpus_bleu([bleu_counts("", ["a b"])], 4), 1) == 0
    assert score(corpus_bleu([None, None], 4), 2) is None
    assert score(corpus_meteor([None]), 1) is None


def test_meteor_by_hand():
    """Caption "the cat", reference "the dog": the function word matches, one chunk."""
    stages = [0, 0, 1, 1] + [0] * 12
    counts = [2, 2, 1, 1, *stages, 1, 1, 1]
    precision = recall = 0.25 / (0.75 * 1 + 0.25 * 1)  # so their weighted harmonic mean is the same
    assert precision == recall
    assert score(corpus_meteor([counts]), 1) == pytest.approx(precision * (1 - 0.6 * 1**0.2))
    paraphrase = [3, 2, 0, 0, *[0] * 12, 2, 1, 0, 0, 1, 2, 1]  # two words of the caption for one of the reference
    precision, recall = 0.6 * 2 / 3, 0.6 * 1 / 2
    harmonic = precision * recall / (0.85 * precision + 0.15 * recall)
    assert score(corpus_meteor([paraphrase]), 1) == pytest.approx(harmonic * (1 - 0.6 * (1 / 1.5) ** 0.2))
    nothing = [2, 2, 1, 1, *[0] * 16, 0, 0, 0]
    assert score(corpus_meteor([nothing]), 1) == 0
    perfect = [2, 2, 1, 1, *[1, 1, 1, 1], *[0] * 12, 1, 2, 2]
    assert score(corpus_meteor([perfect]), 1) == 1
    assert score(corpus_meteor([perfect, nothing]), 2) == pytest.approx(0.5), "no chunk"


def test_meteor_equals_the_java_program():
    """Counts of three images, the score of each and of all, as METEOR 1.5 answers `SCORE` and `EVAL` lines."""
    counts = [
        "10 10 4 5 3 3 3 3 0 0 0 0 0 0 0 0 0 0 0 0 3 6 6",
        "10 14 3 5 3 3 3 3 0 0 0 0 0 0 0 0 1 1 0 0 6 7 7",
        "13 12 6 7 4 4 3 3 0 0 0 0 0 0 0 0 0 0 0 0 4 7 7",
    ]
    counts = [[float(number) for number in line.split()] for line in counts]
    each = [0.2823663026732959, 0.18738242197170799, 0.3056256419375019]
    assert [score(corpus_meteor([line]), 1) for line in counts] == pytest.approx(each, abs=1e-12)
    assert score(corpus_meteor(counts), 3) == pytest.approx(0.24835220348402173, abs=1e-12)
    # The two captions of the README of aac-metrics; the first is matched as a whole, and its chunk does not count.
    counts = ["4 3 2 1 1 1 1 1 0 0 0 0 0 0 0 0 1 1 1 0 1 4 3", "2 7 0 3 1 1 0 0 0 0 0 0 0 0 0 0 1 0 0 1 1 2 2"]
    counts = [[float(number) for number in line.split()] for line in counts]
    assert score(corpus_meteor(counts), 2) == pytest.approx(0.26338060861806095, abs=1e-12)


def test_published_bleu_is_reproduced_from_counts(shared_data):
    """A thousand captions of COCO's, tokenized, with the scores that pycocoevalcap 1.2 gives them."""
    reference = json.loads((shared_data / "caption_metrics/reference_scores/coco_fakecap1000.json").read_text())
    pairs = [(reference["tok_hyps"][id][0], reference["tok_refs"][id]) for id in reference["per_image"]["ids"]]
    rows = [{"bleu_counts": bleu_counts(*pair)} for pair in pairs]
    statistics = caption_statistics(rows, BLEU)
    for n, name in enumerate(BLEU, start=1):
        expected = reference["corpus"][f"Bleu_{n}"]
        assert score(statistics[name], len(rows)) == pytest.approx(expected, abs=1e-9)
    low, high = intervals(statistics, len(rows))["BLEU-4"]
    assert low < reference["corpus"]["Bleu_4"] < high and high - low < 0.05


def test_excluded_images_change_nothing():
    rows = [
        {"bleu_counts": bleu_counts(caption, texts), "CIDEr": len(caption) / 10, "METEOR": 0.5}
        for caption, texts in zip(CAPTIONS, REFERENCES, strict=True)
    ]
    few = caption_statistics([rows[0], None, None, rows[3], None], ["BLEU-2", "CIDEr"])
    alone = caption_statistics([rows[0], rows[3]], ["BLEU-2", "CIDEr"])
    for name in few:
        assert score(few[name], 5) == score(alone[name], 2)


def test_corpus_scores_without_counts_are_left_out():
    rows = [{"BLEU-4": 0.1, "METEOR": 0.2, "ROUGE-L": 0.3}] * 2
    assert list(caption_statistics(rows, ["BLEU-4", "METEOR", "ROUGE-L"])) == ["ROUGE-L"]


def test_better_run_is_significantly_better():
    rng = np.random.default_rng(0)
    truth = [" ".join(rng.choice(list("abcdefgh"), size=12)) for _ in range(60)]
    worse, better = ([" ".join(text.split()[:kept] + ["x"] * (12 - kept)) for text in truth] for kept in (6, 9))
    runs = [
        caption_statistics([{"bleu_counts": bleu_counts(c, [t])} for c, t in zip(run, truth, strict=True)], BLEU)
        for run in (worse, better)
    ]
    for found in paired(*runs, 60).values():
        assert found["difference"] > 0 and found["interval"][0] > 0 and found["p"] < 0.01


def test_weights_of_meteor_are_those_of_version_1_5():
    """Of exact, stem, synonym and paraphrase matches (Denkowski and Lavie, 2014)."""
    assert caption_counts.STAGE_WEIGHTS.tolist() == [1.0, 0.6, 0.8, 0.6]
