"""The table of language model, expert and gates: values by hand, bounds, comparisons, and notes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from data.emotions import INDEX
from tests.helpers.predictions import PLAIN, at, both_explanations, drawn, everything, image, many
from trainer.metrics.emotions import emotion_report
from trainer.metrics.expert_sections import expert_tables
from trainer.metrics.expert_table import expert_scores
from trainer.metrics.sources import COLUMNS
from trainer.score.__main__ import main
from trainer.score.measure import measure
from trainer.score.tables import metrics_text

SOURCES = ("language_model", "probe", "student", "teacher")


def weights(language_model: float) -> dict[str, float]:
    return {"language_model": language_model, "student": 1 - language_model}


NO_JAVA = ("--metrics", "bleu,rouge_l,cider", "--tokenizer", "whitespace")
FOUR = (
    image("a", "awe", "awe", "fear", "awe"),
    image("b", "fear", "awe", "fear", "fear"),
    image("c", "awe", "anger", "fear", "fear", gate={"name": "concat_linear", "weights": weights(0.75)}),
    image("d", None, "awe", "awe", "awe"),
    image("e", "contentment", "awe", "awe", "contentment"),
)


def test_rows_by_hand():
    section = expert_scores(FOUR).section
    rows = section["rows"]
    assert (section["images"], section["count"], section["rule"]) == (5, 4, "more_than_half")
    accuracies = {key: row["accuracy"] for key, row in rows.items()}
    assert accuracies == {
        "majority": 2 / 4,  # awe
        "language_model": 1 / 4,
        "student": 1 / 4,
        "average": 1 / 4,
        "concat_linear": 3 / 4,
        "oracle": 2 / 4,
    }
    assert section["agreement"] == 2 / 5 and section["agreements"] == []
    assert section["gate"] == {"name": "concat_linear", "weights": pytest.approx(weights(0.35))}
    # Language model: awe once right of three and once missed, fear and contentment never: (2 · 1 / 5 + 0 + 0) / 3.
    assert rows["language_model"]["macro_f1"] == pytest.approx((2 / 5) / 3)
    # Student: positive, negative, positive, positive were felt; predicted are fear, fear, fear, awe.
    assert rows["student"]["valence_accuracy"] == pytest.approx(2 / 4)
    right, wrong = (
        0.8 * math.log(p) + 0.025 * math.log(q) + 7 * 0.025 * math.log(0.05) for p, q in ((0.6, 0.05), (0.05, 0.6))
    )
    assert rows["language_model"]["nll"] == pytest.approx(-(right + 3 * wrong) / 4)
    # Confidence 0.6 everywhere; the share of annotators is 0.8 once and 0.025 three times.
    assert rows["language_model"]["ece_answers"] == pytest.approx(abs(0.6 - (0.8 + 3 * 0.025) / 4))
    for key in ("majority", "oracle"):
        assert [rows[key][column] for column in ("nll", "ece_answers", "js")] == [None] * 3
    assert all(row.keys() == set(COLUMNS) for row in rows.values())


def test_rows_match_the_emotion_report_of_each_model():
    rows = drawn(80)
    found = expert_scores(rows).section["rows"]
    assert list(found) == ["majority", *SOURCES, "average", "concat_linear", "oracle"]
    for key in (*SOURCES, "average", "concat_linear"):
        column = [(row["sources"] | row["gates"])[key] for row in rows]
        guesses = [int(np.argmax(p)) for p in column]
        report = emotion_report(guesses, column, [row["histogram"] for row in rows])
        assert found[key] == pytest.approx({name: report[name] for name in COLUMNS}), key
        assert found["majority"]["accuracy"] == pytest.approx(report["majority"])


def test_oracle_is_the_upper_bound():
    found = expert_scores(drawn()).section["rows"]
    assert found["oracle"]["accuracy"] > max(found[key]["accuracy"] for key in ("language_model", "student"))
    same = [
        {**row, "sources": {"language_model": row["sources"]["student"], "student": row["sources"]["student"]}}
        for row in drawn()
    ]
    section = expert_scores(same).section
    assert section["agreement"] == 1 and section["rows"]["oracle"]["accuracy"] == section["rows"]["student"]["accuracy"]


def test_gate_is_compared_with_the_better_source_and_student_with_probe():
    section = expert_scores(drawn()).section
    pairs = {name: (pair["first"], pair["second"]) for name, pair in section["differences"].items()}
    assert pairs == {"gate": ("student", "concat_linear"), "student": ("probe", "student")}
    for pair in section["differences"].values():
        for column, figures in pair["figures"].items():
            first, second = (section["rows"][pair[side]][column] for side in ("first", "second"))
            assert figures["difference"] == pytest.approx(second - first)
        assert pair["figures"]["accuracy"]["interval"][0] > 0 and pair["figures"]["accuracy"]["p"] < 0.05
    assert section["notes"] == []
    turned = [
        {
            **row,
            "sources": row["sources"]
            | {"language_model": row["sources"]["student"], "student": row["sources"]["language_model"]},
        }
        for row in drawn()
    ]
    assert expert_scores(turned).section["differences"]["gate"]["first"] == "language_model"


def with_third(rows: list[dict], *, lacking: int = 0) -> list[dict]:
    """Return the rows with a further source, which says what the first gate in the row says; some rows lack it."""
    return [
        {**row, "sources": row["sources"] | ({"my_vle": row["gates"]["concat_linear"]} if i >= lacking else {})}
        for i, row in enumerate(rows)
    ]


def test_further_source_has_a_row_and_counts_for_oracle_agreement_and_gate():
    rows = with_third(drawn())
    section, plain = expert_scores(rows).section, expert_scores(drawn()).section
    keys = ["majority", *SOURCES, "my_vle", "average", "concat_linear", "oracle"]
    assert list(section["rows"]) == keys and section["rows"]["my_vle"] == section["rows"]["concat_linear"]
    guesses = {
        name: np.array([int(np.argmax(row["sources"][name])) for row in rows])
        for name in ("language_model", "student", "my_vle")
    }
    felt = np.array([int(np.argmax(row["histogram"])) for row in rows])
    right = np.mean(np.any([guess == felt for guess in guesses.values()], axis=0))
    assert section["rows"]["oracle"]["accuracy"] == pytest.approx(right)
    assert right > plain["rows"]["oracle"]["accuracy"]
    first, second, third = guesses.values()
    assert section["agreement"] == pytest.approx(np.mean((first == second) & (second == third)))
    assert section["agreements"] == [
        ["language_model", "student", pytest.approx(np.mean(first == second))],
        ["language_model", "my_vle", pytest.approx(np.mean(first == third))],
        ["student", "my_vle", pytest.approx(np.mean(second == third))],
    ]
    assert section["differences"]["gate"]["first"] == "my_vle", "the best of the sources"
    assert measure(rows, PLAIN).per_image[0].keys() >= {"language_model_correct", "student_correct", "my_vle_correct"}


def test_image_without_an_entry_of_a_further_source_counts_as_wrong_for_it():
    section = expert_scores(with_third(drawn(), lacking=30)).section
    whole = expert_scores(with_third(drawn())).section["rows"]["my_vle"]["accuracy"]
    last = expert_scores(with_third(drawn())[30:]).section["rows"]["my_vle"]
    found = section["rows"]["my_vle"]
    assert found["accuracy"] == pytest.approx(0.9 * last["accuracy"])
    assert found["accuracy"] < whole
    assert found["nll"] == pytest.approx(last["nll"])
    (note,) = [note for note in section["notes"] if "my vle" in note]
    assert "30 of 300 images have no entry" in note
    agreement = expert_scores(drawn()).section["agreement"]
    assert section["agreements"][0] == ["language_model", "student", pytest.approx(agreement)], "on all images"
    assert section["agreement"] == pytest.approx(expert_scores(with_third(drawn())[30:]).section["agreement"])


def test_report_shows_every_pair_of_sources():
    metrics = measure(with_third(drawn(40)), PLAIN).metrics
    assert [row.name for row in expert_tables(metrics)[1].rows] == [
        "agreement",
        "language model, student",
        "language model, my vle",
        "student, my vle",
    ]


def test_rows_that_name_different_gates_are_noted():
    rows = drawn()
    rows[0] = {**rows[0], "gate": {**rows[0]["gate"], "name": "average"}}
    section = expert_scores(rows).section
    assert section["gate"] is None and "the images name different gates" in section["notes"][0]


def test_insignificant_differences_have_a_note():
    few = expert_scores(drawn(99)).section
    assert len(few["notes"]) == 1 and "99 images with a label are too few for evidence" in few["notes"][0]
    like = [{**row, "gates": row["gates"] | {"concat_linear": row["sources"]["student"]}} for row in drawn()]
    (note,) = expert_scores(like).section["notes"]
    assert note.startswith("concat linear against student: no evidence") and "holds 0" in note
    worse = [{**row, "gates": {"concat_linear": row["sources"]["probe"]}} for row in drawn()]
    section = expert_scores(worse).section
    assert section["differences"]["gate"]["figures"]["accuracy"]["interval"][1] < 0 and section["notes"] == []


def test_order_changes_nothing_and_seed_only_the_intervals():
    rows = drawn(60)
    found = [measure(part, PLAIN).metrics["expert"] for part in (rows, rows[::-1])]
    assert found[0] == found[1]
    json.dumps(found[0], allow_nan=False)
    other = expert_scores(rows, seed=7).section
    assert other["rows"] == found[0]["rows"] and other["differences"] != found[0]["differences"]


def test_table_without_a_gate_has_the_sources():
    rows = [{key: value for key, value in row.items() if key not in ("gates", "gate")} for row in drawn()]
    section = expert_scores(rows).section
    assert list(section["rows"]) == ["majority", *SOURCES, "oracle"]
    assert section["gate"] is None and list(section["differences"]) == ["student"]


def test_incomplete_distributions_are_left_out_with_notes():
    rows = drawn(120)
    del rows[3]["sources"]["probe"], rows[4]["gates"]["average"]
    rows[5] = {key: value for key, value in rows[5].items() if key != "sources"}
    rows[6]["gate"] = {"name": "average", "weights": weights(0.5)}
    section = expert_scores(rows).section
    assert section["images"] == 119 and {"probe", "average"}.isdisjoint(section["rows"])
    notes = " ".join(section["notes"])
    assert "1 of 120 images have no distributions of both" in notes
    assert "probe left out of the table of the expert: 1 images have none" in notes
    assert "no gate is marked" in notes and section["gate"] is None
    without = expert_scores([row for i, row in enumerate(drawn(120)) if i != 5]).section
    assert section["rows"]["student"] == pytest.approx(without["rows"]["student"]), "the image does not count"


@pytest.mark.parametrize(
    ("labels", "with_valence"),
    [(("negative", "positive"), 2), (("sadness", "joy", "surprise"), 2), (("alpha", "beta", "gamma", "delta"), 0)],
)
def test_any_set_of_labels(labels, with_valence, monkeypatch):
    """Valence accuracy exists only for labels with a valence."""
    monkeypatch.setenv("COLUMNS", "120")
    count, rng = len(labels), np.random.default_rng(0)

    def sure(index: int, share: float) -> list[float]:
        return [share if i == index else (1 - share) / (count - 1) for i in range(count)]

    rows = []
    for i in range(120):
        felt, said, other = rng.integers(count, size=3)
        both = {"language_model": sure(said, 0.6), "student": sure(other, 0.8)}
        fused = {"gates": {"average": sure(other, 0.7)}, "gate": {"name": "average", "weights": weights(0.5)}}
        shown = {"labels": list(labels), "histogram": sure(felt, 0.9), "sources": both, **fused}
        rows.append({**image(f"{i:03d}", "awe", "awe", "awe", "awe"), **shown, "own": None})
        rows[-1] |= {"emotion": labels[other], "emotion_distribution": sure(other, 0.7)}
    metrics = measure(rows, PLAIN).metrics
    found = metrics["expert"]["rows"]
    guesses = [int(np.argmax(row["sources"]["student"])) for row in rows]
    report = emotion_report(
        guesses, [row["sources"]["student"] for row in rows], [row["histogram"] for row in rows], labels=labels
    )
    assert found["student"] == pytest.approx({name: report[name] for name in COLUMNS})
    assert (found["student"]["valence_accuracy"] is not None) == bool(with_valence)
    assert ("valence accuracy" in expert_tables(metrics)[0].columns) == bool(with_valence)
    assert ("valence accuracy" in metrics_text({"expert": metrics["expert"]})) == bool(with_valence)


def test_model_without_explanations_has_no_caption_comparison(tmp_path):
    said = {"explanation": None, "own": {"emotion": "awe", "explanation": None}}
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(row | said) + "\n" for row in drawn(10)), encoding="utf-8")
    assert main(["--predictions", str(path), "--out", str(tmp_path / "out"), *NO_JAVA]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["expert"]["captions"]
    assert found["explanations_differ"] == 0 and found["figures"] == {} and found["emotions_differ"] > 0


def test_images_without_labels_have_agreement_only():
    rows = [{**row, "histogram": None} for row in FOUR]
    section = expert_scores(rows).section
    assert section["agreement"] == 2 / 5 and section["count"] == 0 and "majority" not in section["rows"]
    assert all(value is None for row in section["rows"].values() for value in row.values())
    assert metrics_text({"expert": section})


# --- in metrics.json -------------------------------------------------------------------------------------------------


def test_metrics_have_table_intervals_and_correctness_per_image():
    rows = drawn(40)
    found = measure(rows, PLAIN)
    section, edges = found.metrics["expert"], found.metrics["intervals"]
    for key in SOURCES:
        low, high = edges[f"expert.rows.{key}.accuracy"]
        assert low <= section["rows"][key]["accuracy"] <= high
    keys = [key for key in edges if key.startswith("expert.")]
    assert all(isinstance(at(found.metrics, key), float) for key in keys)
    assert {"expert.agreement", "expert.rows.oracle.accuracy", "expert.rows.concat_linear.js"} <= set(keys)
    assert not any(".majority." in key for key in keys)
    each = found.per_image
    for key in ("language_model", "student"):
        assert np.mean([row[f"{key}_correct"] for row in each]) == pytest.approx(section["rows"][key]["accuracy"])
    assert section["rows"]["concat_linear"] == pytest.approx({name: found.metrics["emotion"][name] for name in COLUMNS})


def test_rows_without_sources_have_no_expert_section():
    found = measure(many(), PLAIN)
    assert found.metrics["expert"] is None
    assert "expert" not in metrics_text(found.metrics) and expert_tables(found.metrics) == []


def test_explanations_for_the_fused_emotion_are_compared_with_the_models_own():
    rows = both_explanations(drawn(60))
    settings = everything(rows)
    metrics = measure(rows, settings).metrics
    captions = metrics["expert"]["captions"]
    own = measure([{**row, "explanation": row["own"]["explanation"]} for row in rows], settings).metrics
    differ = sum(row["emotion"] != row["own"]["emotion"] for row in rows)
    assert captions["emotions_differ"] == captions["explanations_differ"] == differ > 0
    for name in ("BLEU-4", "ROUGE-L", "CIDEr"):
        figures = captions["figures"][f"captions.{name}"]
        assert figures["second"] == pytest.approx(metrics["captions"][name]), name
        assert figures["first"] == pytest.approx(own["captions"][name]), name
        assert figures["interval"][0] > 0
    for name in ("accuracy", "cross_entropy"):
        figures = captions["figures"][f"alignment.{name}"]
        assert figures["second"] == pytest.approx(metrics["alignment"][name])
        assert figures["first"] == pytest.approx(own["alignment"][name])
    assert {"CIDEr", "alignment", "alignment cross-entropy"} <= {row.name for row in expert_tables(metrics)[-1].rows}


def test_identical_explanations_are_not_scored_twice():
    rows = [{**row, "own": {"emotion": row["emotion"], "explanation": row["explanation"]}} for row in drawn(10)]
    metrics = measure(rows, PLAIN).metrics
    assert metrics["expert"]["captions"] == {
        "images": 10,
        "emotions_differ": 0,
        "explanations_differ": 0,
        "figures": {},
    }
    del rows[3]["own"]
    metrics = measure(rows, PLAIN).metrics
    assert "captions" not in metrics["expert"] and any(
        "own explanations left out: 1 images" in n for n in metrics["notes"]
    )


def test_command_scores_the_expert_of_a_file(tmp_path, capsys):
    rows = both_explanations(drawn(40))
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = [*NO_JAVA, "--out", str(tmp_path / "out")]
    assert main(["--predictions", str(path), *arguments]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())["expert"]
    assert written == json.loads(json.dumps(measure(rows, PLAIN).metrics["expert"]))
    for part in (
        "Language model and expert 40 of 40 images",
        "concat linear, in use",
        "oracle",
        "agreement",
        "concat linear − student",
        "student − probe",
        "Explanations for the fused emotion",
    ):
        assert part in shown, part
    assert main(["compare", str(path), str(path), *arguments[:4]]) == 0
    assert "concat linear, in use" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sources": {"language_model": [1, 2]}}, "'sources': 'language_model'"),
        ({"sources": [1]}, "'sources'"),
        ({"gate": {"name": "average", "weights": {"student": 2}}}, "'weights' must be numbers from 0 to 1"),
        ({"gate": {"name": "average", "weights": [1]}}, "'weights': must be an object"),
        ({"own": {"emotion": "awe"}}, "'own'"),
    ],
)
def test_malformed_expert_is_a_one_line_error(tmp_path, capsys, change, said):
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(drawn(1)[0] | change) + "\n", encoding="utf-8")
    assert main(["--predictions", str(path)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line and "line 1" in line


def test_report_has_every_row_and_marks_the_gate_in_use():
    rows = both_explanations(drawn(120))
    metrics = measure(rows, PLAIN).metrics
    table, agreement, differences, words = expert_tables(metrics)
    names = ["majority class", "language model", "probe", "student", "teacher", "average", "concat linear", "oracle"]
    assert [row.name for row in table.rows] == names
    edges = metrics["intervals"]
    assert table.rows[3].cells[0].bounds == edges["expert.rows.student.accuracy"]
    assert agreement.rows[0].cells[0].bounds == edges["expert.agreement"]
    assert (
        "the same emotion the likeliest" in agreement.rows[0].about
        and "language model 25.0 %, student 75.0 %" in table.about
    )
    assert [row.about for row in table.rows if row.name == "concat linear"] == ["in use"]
    assert all(len(row.cells) == len(table.columns) == 6 for row in table.rows)
    assert [row.name for row in differences.rows] == ["concat linear − student", "student − probe"]
    assert all(
        cell.about.startswith("p 0.") and cell.interval
        for row in (*differences.rows, *words.rows)
        for cell in row.cells[-1:]
    )
    assert INDEX[rows[0]["emotion"]] == int(np.argmax(rows[0]["gates"]["concat_linear"]))
