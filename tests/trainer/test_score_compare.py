"""Comparison of two runs: differences, intervals and p, and runs that cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.predictions import many
from trainer.score.__main__ import main

PLAIN = ("--metrics", "bleu,rouge_l,cider", "--tokenizer", "whitespace")


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def compare(*arguments: object) -> int:
    return main(["compare", *map(str, arguments), *PLAIN])


@pytest.fixture
def runs(tmp_path):
    """A run with one constant explanation, and one that copies a reference."""
    rows = many()
    better = [{**row, "explanation": row["references"][0]} for row in rows]
    worse = [{**row, "emotion": "fear", "explanation": "the boat is grey"} for row in rows]
    write(tmp_path / "better" / "test" / "predictions.jsonl", better)
    write(tmp_path / "worse" / "test" / "predictions.jsonl", worse)
    return tmp_path / "worse", tmp_path / "better"


def test_run_equals_itself(runs, tmp_path, capsys):
    assert compare(runs[0], runs[0], "--out", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["images"] == 40 and {"emotion.accuracy", "captions.CIDEr", "explanations.similes"} <= set(
        found["figures"]
    )
    for figure in found["figures"].values():
        assert figure["difference"] == 0 and figure["interval"] == [0, 0] and figure["p"] == 1
    assert "1.000" in capsys.readouterr().out


def test_better_run_is_significantly_better(runs, tmp_path, capsys):
    assert compare(*runs, "--out", tmp_path) == 0
    figures = json.loads((tmp_path / "comparison.json").read_text())["figures"]
    for key in ("emotion.accuracy", "captions.BLEU-4", "captions.ROUGE-L", "captions.CIDEr"):
        found = figures[key]
        assert found["difference"] == pytest.approx(found["second"] - found["first"])
        assert found["interval"][0] > 0 and found["p"] < 0.01, key
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line for line in shown.splitlines() if line.startswith("  ")}
    assert "+" in lines["BLEU-4,"] and "pp" in lines["accuracy,"]
    assert max(map(len, shown.splitlines())) <= 120 and f"A: {runs[0]}" in "".join(shown.split("\n  "))
    assert compare(*reversed(runs), "--out", tmp_path) == 0
    turned = json.loads((tmp_path / "comparison.json").read_text())["figures"]
    for key, found in figures.items():
        assert turned[key]["difference"] == -found["difference"] and turned[key]["p"] == found["p"]
        assert turned[key]["interval"] == pytest.approx([-found["interval"][1], -found["interval"][0]])


def test_runs_are_named_by_run_folder_test_folder_or_file(runs, tmp_path):
    for path in (runs[0], runs[0] / "test", runs[0] / "test" / "predictions.jsonl"):
        assert compare(path, runs[1], "--out", tmp_path) == 0
        sources = json.loads((tmp_path / "comparison.json").read_text())
        assert sources["first"] == str(runs[0] / "test" / "predictions.jsonl")


def test_seed_and_image_order(runs, tmp_path):
    def figures(*arguments) -> dict:
        assert compare(*runs, "--out", tmp_path / "out", *arguments) == 0
        return json.loads((tmp_path / "out" / "comparison.json").read_text())["figures"]

    first, other = figures(), figures("--seed", 7)
    assert first != other and first["captions.BLEU-4"]["difference"] == other["captions.BLEU-4"]["difference"]
    path = runs[0] / "test" / "predictions.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert figures() == first


def test_different_images_are_refused_without_subset(runs, tmp_path, capsys):
    path = runs[0] / "test" / "predictions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[2:]))
    assert compare(*runs) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    for part in ("2 images are only in", str(runs[1]), "'000'", "--subset scores the 38"):
        assert part in message
    assert compare(*runs, "--subset", "--out", tmp_path) == 0
    assert json.loads((tmp_path / "comparison.json").read_text())["images"] == 38
    shown = " ".join(capsys.readouterr().out.split())
    assert "38 images" in shown


def test_different_references_are_refused_without_a_file(runs, tmp_path, capsys):
    path = runs[0] / "test" / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["references"] = ["something else was said"]
    rows[5]["histogram"] = [1.0, *[0.0] * 8]
    write(path, rows)
    assert compare(*runs) == 2
    message = capsys.readouterr().err
    assert "image '003' has other references" in message and "(2 such images)" in message
    assert compare(*runs, "--references", runs[1] / "test" / "predictions.jsonl", "--out", tmp_path) == 0
    assert "captions.BLEU-4" in json.loads((tmp_path / "comparison.json").read_text())["figures"]


def test_only_common_scores_are_compared(runs, tmp_path):
    path = runs[0] / "test" / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write(path, [{**row, "emotion": None, "emotion_distribution": None} for row in rows])
    assert compare(*runs, "--out", tmp_path) == 0
    figures = json.loads((tmp_path / "comparison.json").read_text())["figures"]
    assert {key.partition(".")[0] for key in figures} == {"captions", "explanations", "baselines"}


@pytest.mark.parametrize("second", ["nowhere", "empty"])
def test_run_without_predictions_is_a_one_line_error(runs, tmp_path, capsys, second):
    (tmp_path / "empty").mkdir()
    assert compare(runs[0], tmp_path / second) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert str(tmp_path / second) in line


def test_help(capsys):
    for arguments in (["--help"], ["compare", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0 and "--references" in capsys.readouterr().out
