"""SPICE: input and output of its program, and failures."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest
from pycocoevalcap.tokenizer import ptbtokenizer

from tests.helpers.fake_java import left_running, put_java
from tests.helpers.published import load
from trainer.metrics import spice
from trainer.metrics.captions import ALL_METRICS, caption_scores
from trainer.metrics.java import find_java
from trainer.metrics.spice import NEWEST_JAVA, PARSER, spice_scores

JAVA = find_java(newest=NEWEST_JAVA)
needs_java = pytest.mark.skipif(JAVA is None, reason="no Java 8 to 14")

# A stand-in for SPICE: the score is an expression of the input item; its runs are counted in a file.
ANSWERS = """
in=; out=; for word in "$@"; do
  case $word in */in.json) in=$word;; */out.json) out=$word;; esac
done
echo >> {lots}
{python} -c "
import json, sys
answer = [{{**item, 'scores': {{'All': {{'f': {score}}}}}}} for item in json.load(open('$in'))]
print(json.dumps(answer[::-1]))
" > $out
"""


@pytest.fixture
def parser(tmp_path):
    folder = tmp_path / "parser"
    folder.mkdir()
    for name in PARSER:
        (folder / name).touch()
    return folder


def put_spice(tmp_path: Path, monkeypatch, score: str) -> None:
    script = ANSWERS.format(lots=tmp_path / "lots", python=sys.executable, score=score)
    put_java(tmp_path / "bin", monkeypatch, spice=script)


def test_scores_are_in_image_order(tmp_path, monkeypatch, parser):
    put_spice(tmp_path, monkeypatch, "len(item['refs']) / 100")
    hypotheses = {"a": ["x"], "b": [""], "c": ["naïveté 日本"], "d": ["y"]}
    targets = {"a": ["x"], "b": ["x"], "c": ["x", "", "y"], "d": [""]}
    mean, each = spice_scores(hypotheses, targets, parser=parser)
    assert each == [0.01, 0.0, 0.02, 0.0]  # an empty caption scores 0, an empty reference is ignored
    assert mean == pytest.approx(0.03 / 4)


def test_large_sets_are_split_into_lots(tmp_path, monkeypatch, parser):
    monkeypatch.setattr(spice, "IMAGES_AT_ONCE", 3)
    put_spice(tmp_path, monkeypatch, "int(item['test']) / 100")
    texts = {str(i): [str(i)] for i in range(7)}
    _, each = spice_scores(texts, texts, parser=parser)
    assert each == [i / 100 for i in range(7)]
    assert len((tmp_path / "lots").read_text().splitlines()) == 3


def test_spice_is_one_of_the_metrics(tmp_path, monkeypatch, parser):
    put_spice(tmp_path, monkeypatch, "0.25")
    result = caption_scores({"1": "x"}, {"1": ["x"]}, metrics=ALL_METRICS, spice_parser=parser)
    assert list(result.scores)[-2:] == ["CIDEr", "SPICE"]
    assert result.scores["SPICE"] == result.per_image["1"]["SPICE"] == 0.25


def test_class_path_names_files_of_pycocoevalcap(parser):
    program, libraries, *parsers = map(Path, spice._class_path(parser).split(os.pathsep))
    assert program.is_file() and libraries.parent.is_dir() and parsers == [parser / name for name in PARSER]


def test_missing_parser_is_named_and_not_downloaded(tmp_path, monkeypatch):
    def no_network(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    put_java(tmp_path / "bin", monkeypatch)
    result = caption_scores({"1": "x"}, {"1": ["x"]}, metrics=("bleu", "spice"), spice_parser=tmp_path / "none")
    (note,) = [note for note in result.notes if "SPICE" in note]
    for part in (*PARSER, "https://", str(tmp_path / "none")):
        assert part in note
    assert "\n" not in note and "SPICE" not in result.scores and "BLEU-4" in result.scores


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'java.lang.OutOfMemoryError: Java heap space' >&2; exit 1", "Java heap space"),
        ("exit 0", "no result"),
        ("for word in $*; do case $word in */out.json) echo '[{{\"a\"' > $word;; esac; done", "unexpected result"),
        ("for word in $*; do case $word in */out.json) echo '[]' > $word;; esac; done", "unexpected result"),
        ("for word in $*; do case $word in */out.json) echo '[1, 2]' > $word;; esac; done", "unexpected result"),
        ("{0}/sleep 60", "did not finish within 1 s"),
    ],
)
def test_broken_spice_leaves_the_other_metrics(tmp_path, monkeypatch, parser, script, message):
    monkeypatch.setattr(spice, "SECONDS", 1.0)
    monkeypatch.setattr(spice, "SECONDS_PER_TEXT", 0.0)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    put_java(tmp_path / "bin", monkeypatch, spice=script.format(tmp_path / "bin"))
    result = caption_scores({"1": "x"}, {"1": ["x"]}, metrics=("bleu", "spice"), spice_parser=parser)
    (note,) = [note for note in result.notes if "SPICE" in note]
    assert note.startswith("SPICE left out: ") and message in note and "\n" not in note
    assert "BLEU-4" in result.scores
    assert left_running(tmp_path / "bin") == [] and list(temporary.iterdir()) == []


@needs_java
def test_real_program_writes_its_result_on_this_java(parser):
    """Without images it needs only the library of the PTB tokenizer."""
    library = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    (parser / PARSER[0]).unlink()
    (parser / PARSER[0]).symlink_to(library)
    assert spice._run(JAVA, spice._class_path(parser), []) == []


def test_newer_java_is_refused(tmp_path, monkeypatch, parser):
    put_java(tmp_path / "bin", monkeypatch, version="echo 'openjdk version \"17.0.2\"' >&2")
    result = caption_scores({"1": "x"}, {"1": ["x"]}, metrics=("bleu", "spice"), spice_parser=parser)
    assert "SPICE left out: it needs Java 8 to 14; put one on PATH" in result.notes and "BLEU-4" in result.scores


@needs_java
def test_published_value_is_reproduced(shared_data):
    published = load(shared_data, "coco_fakecap1000")
    result = caption_scores(published.predictions, published.references, metrics=("spice",))
    if "SPICE" not in result.scores:
        pytest.skip(result.notes[0])
    printed = json.loads((shared_data / "caption_metrics" / "coco_fakecap" / "expected.json").read_text())
    assert round(result.scores["SPICE"], 3) == printed["SPICE"]
