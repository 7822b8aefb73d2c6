"""Tables of the report: cells, columns, and no table for an absent section."""

from __future__ import annotations

from data.emotions import EMOTIONS
from trainer.metrics.emotions import RULES, emotion_report
from trainer.score.tables import score_tables


def one_hot(*emotions: int) -> list[float]:
    return [emotions.count(i) / len(emotions) for i in range(len(EMOTIONS))]


def metrics() -> dict:
    votes = [one_hot(0, 0, 1), one_hot(1, 1), one_hot(2, 2, 3, 4), one_hot(5, 5, 6, 7, 8), one_hot(1, 2)]
    emotion = emotion_report([0, 1, 2, 4, 2], [one_hot(0, 1, 2)] * 5, votes)
    vad = {name: {"error": 0.1, "bias": -0.2, "correlation": None, "count": 4} for name in ("valence", "arousal")}
    vad["dominance"] = {"error": 0.3, "bias": 0.0, "correlation": 0.5, "count": 4}
    return {
        "images": 5,
        "emotion": emotion,
        "captions": {"CIDEr": 0.25, "BLEU-1": 0.5},
        "captions_filtered": {"scores": {"BLEU-1": 0.75}, "count": 2, "rule": RULES[0]},
        "explanations": {"distinct": 0.5, "vocabulary": 100},
        "alignment": {"accuracy": 0.5, "count": 2, "total": 5, "rule": RULES[0]},
        "vad": vad | {"lexicon": "words.csv", "same_emotion": None},
        "intervals": {f"emotion.rules.{RULES[1]}.accuracy": [0.25, 1.0], "vad.valence.error": [0.05, 0.15]},
        "tokenizer": "whitespace",
    }


def cells(table) -> dict[str, list[str]]:
    return {row.name: [f"{cell.value} {cell.interval}".strip() for cell in row.cells] for row in table.rows}


def test_rules_are_columns_with_their_counts():
    table = score_tables(metrics())[0]
    assert table.columns == ["more than half", "at least half", "unique maximum"]
    found = cells(table)
    assert found["images with a label"] == ["2", "3", "4"]
    assert found["accuracy"] == ["100.0 %", "100.0 % [25.0, 100.0 %]", "75.0 %"]
    assert "2 of 5 images" in table.about


def test_headline_rule_comes_first_and_may_be_the_only_one():
    emotion = {"rule": RULES[1], "accuracy": 0.5, "count": 2, "total": 4}
    (table,) = score_tables({"emotion": emotion})
    assert table.columns == ["at least half"] and cells(table) == {"accuracy": ["50.0 %"], "images with a label": ["2"]}
    assert "acro-F1" not in table.about


def test_caption_table_has_unfiltered_and_filtered_scores():
    table = next(table for table in score_tables(metrics()) if table.title == "Explanation")
    assert cells(table) == {"BLEU-1": ["0.500", "0.750"], "CIDEr": ["0.250", ""]}
    assert table.columns == ["all", "filtered"] and "whitespace" in table.about and "only the 2 images" in table.about


def test_vad_table_has_a_column_per_dimension():
    table = next(table for table in score_tables(metrics()) if table.title.startswith("Valence"))
    assert cells(table)["error"] == ["0.100 [0.050, 0.150]", "0.100", "0.300"]
    assert cells(table)["correlation"] == ["–", "–", "0.500"]
    assert not any("same emotion" in name for name in cells(table))
    found = metrics()
    found["vad"]["same_emotion"] = {name: {"error": 0.7, "count": 3} for name in ("valence", "arousal", "dominance")}
    table = next(table for table in score_tables(found) if table.title.startswith("Valence"))
    assert cells(table)["error, same emotion"] == ["0.700"] * 3 and "in 3 images" in table.about


def test_every_section_has_a_table():
    titles = [table.title for table in score_tables(metrics())]
    assert titles == [
        "Emotion",
        "Explanation",
        "Probabilities of the emotions",
        "Language of the explanations",
        "Emotional alignment",
        "Valence, arousal, dominance",
    ]


def test_absent_sections_have_no_table():
    nothing = dict.fromkeys(("emotion", "captions_filtered", "explanations", "alignment", "vad"))
    assert score_tables({}) == score_tables(nothing) == []
    (table,) = score_tables(nothing | {"captions": {"CIDEr": 1.0}, "images": 3})
    assert table.title == "Captions" and cells(table) == {"CIDEr": ["1.000"]} and "3 images" in table.about
