"""Predictions as a table on screen."""

from __future__ import annotations

from rich.cells import cell_len

from data.emotions import INDEX
from trainer.report.predictions_table import table_lines


def table(rows: list[dict]) -> str:
    return "\n".join(table_lines(rows))


def shown(name: str, emotion: str | None, share: float, text: str) -> dict:
    shares = [0.0] * 9
    if emotion is not None:
        shares[INDEX[emotion]] = share
    return {"image": f"/far/away/{name}", "emotion": emotion, "emotion_distribution": shares, "explanation": text}


def test_columns_are_aligned():
    text = table(
        [shown("a.png", "awe", 0.5, "the sky is vast"), shown("monet.jpg", "something else", 0.256, "of nothing")]
    )
    assert text.splitlines() == [
        "a.png      awe 50%             the sky is vast",
        "monet.jpg  something else 26%  of nothing",
    ]


def test_wide_characters_take_two_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    names = ("神奈川沖浪裏.png", "cafe\u0301.png", "a.png")
    lines = table([shown(name, "awe", 0.5, "a wave that is larger than the boats") for name in names]).splitlines()
    assert {cell_len(line[: line.index("awe")]) for line in lines if "awe" in line} == {len("神奈川沖浪裏.png") + 8}
    assert max(map(cell_len, lines)) <= 60


def test_empty_columns_are_left_out():
    assert table([shown("a.png", None, 0, "a boat")]) == "a.png  a boat"


def test_reasons_of_other_emotions_follow_their_image():
    row = shown("a.png", "awe", 0.5, "the sky is vast")
    second = {"emotion": "something else", "probability": 0.256, "explanation": "it is grey"}
    row["reasons"] = [{"emotion": "awe", "probability": 0.5, "explanation": "the sky is vast"}, second]
    assert table([row, shown("b.png", "fear", 1, "a storm")]).splitlines() == [
        "a.png  awe 50%             the sky is vast",
        "       something else 26%  it is grey",
        "b.png  fear 100%           a storm",
    ]


def test_vad_column_states_its_scale():
    rows = [shown("a.png", "awe", 0.5, "the sky is vast"), shown("b.png", "fear", 1, "a storm")]
    rows[0]["vad"], rows[1]["vad"] = [0.123, -1, -0.001], [1, 0.5, 0.25]
    rows[1]["reasons"] = [{}, {"emotion": "awe", "probability": 0.004, "explanation": "", "vad": [0, 0, 0]}]
    head, *lines = table(rows).splitlines()
    assert lines == [
        "a.png  awe 50%    +0.12 -1.00 +0.00  the sky is vast",
        "b.png  fear 100%  +1.00 +0.50 +0.25  a storm",
        "       awe <1%    +0.00 +0.00 +0.00",
    ]
    assert head.strip() == "V / A / D (−1..1)" and head.index("V") == lines[0].index("+")


def test_generated_emotion_outside_the_labels_is_quoted():
    row = shown("a.png", None, 0, "it is calm")
    assert table([{**row, "emotion_text": "peace"}]) == 'a.png  "peace"  it is calm'
    long = table([{**row, "emotion_text": "peace and quiet and all that there is"}])
    assert long.startswith('a.png  "peace and quiet') and len(long) < 60


def test_long_reasons_are_wrapped(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    row = shown("a.png", "awe", 0.5, "the sky is so vast that the boat is lost")
    row["reasons"] = [
        {},
        {"emotion": "fear", "probability": 0.1, "explanation": "the boat is lost under so vast a sky"},
    ]
    assert table([row]).splitlines() == [
        "a.png  awe 50%   the sky is so vast that the boat",
        "                 is lost",
        "       fear 10%  the boat is lost under so vast a",
        "                 sky",
    ]


def test_no_rows():
    assert table([]) == "no picture"
