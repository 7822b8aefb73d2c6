"""Scores on the terminal: every section, aligned, with intervals, rules and notes."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from rich.cells import cell_len

from common.html.tables import Cell, Row, Table, count, interval, length, number, percent, screen_text, signed
from data.emotions import EMOTIONS
from tests.helpers.predictions import PLAIN, everything, many, row
from trainer.metrics.baselines import SYSTEMS
from trainer.metrics.emotions import emotion_scores
from trainer.score.looking_tables import looking_tables
from trainer.score.measure import measure
from trainer.score.tables import CAPTION_ORDER, metrics_text, score_tables


@pytest.fixture(scope="module")
def metrics() -> dict:
    rows = many()
    return measure(rows, everything(rows)).metrics


EXEMPT = (
    *(".rules.more_than_half.", "emotion.nll_label", "_uncalibrated"),
    *(f"baselines.systems.{name}.captions.BLEU-{n}" for name in SYSTEMS for n in (2, 3)),
)


def cells_of(metrics: dict) -> dict[str, Cell]:
    tables = [*score_tables(metrics), *looking_tables(metrics)]
    return {cell.key: cell for table in tables for row in table.rows for cell in row.cells if cell.key}


def shown(metrics: dict) -> str:
    return " ".join(metrics_text(metrics).split())


def test_sections_state_their_rule_and_scores_their_interval(metrics):
    text = shown(metrics)
    for part in (
        f"{metrics['emotion']['count']} of 40 images have a label under the first rule. More than half: one",
        "Explanations of all images (unfiltered), 40 images, tokenizer: whitespace",
        f"Filtered: only the {metrics['captions_filtered']['count']} images whose predicted emotion",
        "at least half of the votes, untied",
        "Emotional alignment",
        "dominance Words of",
        "longest common subsequence with any of",
        "95 % intervals of 1000 bootstrap samples",
    ):
        assert part in text, part
    figures = cells_of(metrics)
    assert metrics["intervals"].keys() - figures.keys() <= {
        key for key in metrics["intervals"] if any(part in key for part in EXEMPT)
    }, "every score with an interval is in a table"
    assert {f"emotion.rules.{rule}.accuracy" for rule in ("at_least_half", "unique_maximum")} <= figures.keys()
    for key, (low, high) in metrics["intervals"].items():
        if key in figures and figures[key].value.count(".") == 1 and "%" not in figures[key].value:
            assert figures[key].interval == f"[{figures[key].written(low)}, {figures[key].written(high)}]"
            assert figures[key].interval in text


def test_calibrated_scores_are_followed_by_the_uncalibrated():
    plain = metrics_text(measure(many(), PLAIN).metrics)
    assert "\n  calibration " in plain and "\n  label calibration " in plain and "uncalibrated" not in plain
    metrics = measure([{**row, "emotion_temperature": 1.53} for row in many()], PLAIN).metrics
    assert shown(metrics).count("before calibration by the temperature 1.53") == 3
    figures = cells_of(metrics)
    keys = list(figures)
    for key in ("emotion.nll", "emotion.ece_answers", "emotion.ece"):
        after = keys[keys.index(key) + 1]
        assert after == f"{key}_uncalibrated" and figures[key].value != figures[after].value


@pytest.mark.parametrize(("columns", "widest"), [("60", 80), ("80", 80), ("100", 100), ("250", 120)])
def test_tables_fit_the_terminal(metrics, monkeypatch, columns, widest):
    monkeypatch.setenv("COLUMNS", columns)
    lines = metrics_text(metrics).splitlines()
    assert widest - 20 < max(map(len, lines)) <= widest
    assert all(line == line.rstrip() for line in lines)


def test_numbers_are_right_aligned(metrics, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    for table in score_tables(metrics):
        lines = [line for line in screen_text([table]).splitlines() if "  [" in line]
        assert len({line.index("  [") for line in lines}) <= 1
        assert all(line[line.index("  [") - 1] in "0123456789%" for line in lines)


def test_wide_characters_take_two_columns():
    figures = [Cell(0.5, number, (0.25, 0.75)), Cell(0.5, number)]
    lines = screen_text([Table("", "", ["喜び", "悲しみ"], [Row("神奈川", figures), Row("b", figures)])]).splitlines()
    assert {cell_len(line) for line in lines if line} == {cell_len(lines[0])}


@pytest.mark.parametrize(("columns", "lines"), [("120", 4), ("80", 5)])
def test_wide_table_is_split(monkeypatch, columns, lines):
    monkeypatch.setenv("COLUMNS", columns)
    names = [f"the {name} column" for name in ("first", "second", "third", "fourth", "fifth", "sixth")]
    figures = [Cell(0.5, number, (0.25, 0.75)) for _ in names]
    text = screen_text([Table("t", "", names, [Row("row", figures)])])
    assert len(text.splitlines()) == lines and max(map(len, text.splitlines())) <= int(columns)
    assert all(name in text for name in names) and text.count("[0.250, 0.750]") == 6


def test_filtered_scores_are_in_the_next_column(metrics):
    lines = metrics_text(metrics).splitlines()
    (bleu,) = [line for line in lines if line.split()[:1] == ["BLEU-4"]]
    captions, filtered = metrics["captions"]["BLEU-4"], metrics["captions_filtered"]["scores"]["BLEU-4"]
    assert bleu.split()[1] == f"{captions:.3f}" and bleu.split()[4] == f"{filtered:.3f}"


def test_rule_numbers_and_notes():
    felt = [[float(name == "awe") for name in EMOTIONS], [0.5 * (name in ("awe", "fear")) for name in EMOTIONS]]
    emotion = asdict(emotion_scores([1, 1], felt))
    metrics = {"emotion": emotion, "captions": {"CIDEr": 0.6, "BLEU-1": 0.5794}, "tokenizer": "PTB", "images": 2}
    lines = metrics_text({**metrics, "notes": ["METEOR left out", "METEOR left out"]}).splitlines()
    assert lines[0] == "Emotion" and lines[1].startswith("1 of 2 images have a label under the first rule.")
    (accuracy,) = [line for line in lines if line.startswith("  accuracy")]
    assert accuracy.split()[:3] == ["accuracy", "100.0", "%"]
    assert [line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in CAPTION_ORDER] == [
        "BLEU-1",
        "CIDEr",
    ]
    assert "2 images, tokenizer: PTB." in lines
    assert lines[-1] == "note: METEOR left out" and lines.count(lines[-1]) == 1
    assert not [line for line in lines if "95 %" in line], "there are no intervals"


def test_data_without_emotions_or_labels():
    assert metrics_text({"emotion": None, "captions": {"BLEU-1": 0.1}}).split() == ["Captions", "BLEU-1", "0.100"]
    assert "–" in metrics_text({"emotion": asdict(emotion_scores([1], [None])), "captions": {}})
    assert metrics_text({"captions": {}, "notes": []}) == "no scores"


@pytest.mark.parametrize(("written", "text"), [(number, "0.000"), (percent, "0.0 %"), (length, "0.0"), (count, "0")])
def test_zero_has_no_sign(written, text):
    assert written(-1e-9) == written(0.0) == text and written(None) == "–"


def test_single_image_has_no_intervals():
    text = shown(measure([row("a", "awe", {"awe": 1.0})], PLAIN).metrics)
    assert "[" not in text and "95 %" not in text and "ROUGE-L 1.000" in text


def test_differences_have_a_sign():
    assert [signed(percent)(value) for value in (0.123, -0.2, 0.0, -0.0001, None)] == [
        *("+12.3 pp", "-20.0 pp", "+0.0 pp", "+0.0 pp", "–")
    ]
    assert interval((-0.1, 0.05), signed(percent)) == "[-10.0, +5.0 pp]"
    assert interval((-0.1, 0.0004), signed(number)) == "[-0.100, +0.000]"
