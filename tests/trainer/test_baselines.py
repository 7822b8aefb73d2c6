"""Texts that do not come from the picture beside the model's, and the verdict on a model that does no better."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from data.emotions import EMOTIONS
from data.readers.facts import Facts
from tests.helpers.fake_java import put_java
from tests.helpers.predictions import PLAIN, at
from tests.helpers.predictions import row as prediction
from trainer.metrics.baselines import FEWEST, baseline_texts, blind_verdict
from trainer.metrics.bootstrap import score
from trainer.metrics.captions import caption_scores, system_scores
from trainer.report.page import write_test_report
from trainer.score.__main__ import main
from trainer.score.measure import measure
from trainer.score.tables import metrics_text

SUBJECTS = ("boat", "cat", "tree", "horse", "storm", "bridge", "flower", "castle")
REASONS = {"awe": "the {} looks wide and bright", "fear": "a dark {} frightens me at night"}
PHRASES = {"subject": {name: (name,) for name in SUBJECTS}}


def pictures(count: int = 80, **more) -> list[dict]:
    """Return predictions that copy a reference; every picture has an emotion and a subject."""
    rows = []
    for i in range(count):
        emotion, subject = ("awe", "fear")[i % 2], SUBJECTS[i // 2 % len(SUBJECTS)]
        references = [REASONS[emotion].format(subject), f"this {subject} here"]
        found = prediction(f"{i:03d}", emotion, {emotion: 1.0}, references[0]) | {"references": references}
        rows.append(found | {"reference_emotions": [emotion] * 2, "nearest": REASONS[emotion].format("house")} | more)
    return rows


def blind(rows: list[dict]) -> list[dict]:
    """Return the rows with one sentence for each emotion."""
    return [row | {"explanation": REASONS[row["emotion"]].format("boat")} for row in rows]


TRAINING = [(REASONS[emotion].format(name), emotion) for emotion in REASONS for name in (*SUBJECTS, "tree")]
SETTINGS = replace(
    PLAIN,
    training_texts=[text for text, _ in TRAINING],
    training_emotions=[emotion for _, emotion in TRAINING],
    novelty=False,
    facts=Facts(
        Path("facts.json"),
        PHRASES,
        {row["id"]: {"subject": (row["references"][1].split()[1],)} for row in pictures()},
    ),
)


# --- texts -----------------------------------------------------------------------------------------------------------


def test_each_baseline_follows_the_emotion_of_the_model():
    rows = pictures()
    found, notes = baseline_texts(rows, *zip(*TRAINING, strict=True), seed=1)
    assert notes == [] and list(found) == ["commonest", "random", "nearest", "other_picture"]
    assert all(len(texts) == len(rows) for texts in found.values())
    by_emotion = {emotion: {text for text, name in TRAINING if name == emotion} for emotion in REASONS}
    for row in rows:
        assert found["commonest"][row["id"]] == REASONS[row["emotion"]].format("tree")
        assert found["random"][row["id"]] in by_emotion[row["emotion"]]
        assert found["nearest"][row["id"]] == row["nearest"]
    assert len(set(found["random"].values())) > len(SUBJECTS)


def test_other_picture_is_a_derangement_within_the_emotion():
    rows = [row | {"explanation": f"{row['emotion']} {row['id']}"} for row in pictures(21)]
    texts = baseline_texts(rows, (), seed=1)[0]["other_picture"]
    assert sorted(texts.values()) == sorted(row["explanation"] for row in rows)
    for row in rows:
        assert texts[row["id"]].startswith(row["emotion"]) and texts[row["id"]] != row["explanation"]
    shuffled = random.Random(2).sample(rows, len(rows))
    assert baseline_texts(shuffled, (), seed=1)[0]["other_picture"] == texts
    assert baseline_texts(rows, (), seed=2)[0]["other_picture"] != texts


def test_without_emotions_all_texts_and_pictures_count():
    rows = [row | {"emotion": None} for row in pictures()]
    found, notes = baseline_texts(rows, ["b", "a", "a", "c"], seed=1)
    assert notes == [] and set(found["commonest"].values()) == {"a"}
    assert set(found["random"].values()) == {"a", "b", "c"}
    texts = {row["id"]: row["explanation"] for row in rows}
    assert Counter(found["other_picture"].values()) == Counter(texts.values())


def test_first_of_equally_common_texts_is_the_commonest():
    assert set(baseline_texts(pictures(4), ["b", "a", "a", "b"], seed=1)[0]["commonest"].values()) == {"b"}


def test_what_cannot_be_had_is_left_out_with_a_note():
    rows = [row | {"emotion": emotion, "nearest": None} for row, emotion in zip(pictures(9), EMOTIONS, strict=True)]
    found, notes = baseline_texts(rows, (), seed=1)
    assert found == {} and [note.partition(":")[0] for note in notes] == [
        "baseline nearest left out",
        "baseline other_picture left out",
    ]
    found, notes = baseline_texts(rows, ["a"], seed=1)
    assert list(found) == ["commonest", "random"] and "the training texts name no emotions" in notes[0]
    rows[1] = rows[1] | {"emotion": rows[0]["emotion"], "nearest": "a"}
    found, notes = baseline_texts(rows, (), seed=1)
    assert (len(found["nearest"]), len(found["other_picture"])) == (1, 2)
    assert "8 of 9 images" in notes[0] and "7 of 9 images" in notes[1]


# --- verdict ---------------------------------------------------------------------------------------------------------


def test_model_with_a_sentence_for_each_emotion_is_blind():
    rows = blind(pictures())
    metrics = measure(rows, SETTINGS).metrics
    assert metrics["baselines"]["blind"] == {
        "verdict": True,
        "score": "captions.CIDEr",
        "unbeaten": ["other_picture"],
    }
    assert metrics["explanations"]["commonest_of_emotion"] == 1
    shown = " ".join(metrics_text(metrics).split())
    assert shown.startswith("These explanations do not depend on the picture: another picture's explanation of the")
    assert metrics["grounding"]["kinds"]["subject"]["precision"] == pytest.approx(1 / 8)


def test_model_that_repeats_a_reference_is_not_blind():
    metrics = measure(pictures(), SETTINGS).metrics
    assert metrics["baselines"]["blind"]["verdict"] is False and metrics["baselines"]["blind"]["unbeaten"] == []
    shown = " ".join(metrics_text(metrics).split())
    assert shown.startswith("Emotion ") and "its explanations depend on the picture" in shown
    assert metrics["grounding"]["kinds"]["subject"]["precision"] == 1
    assert metrics["explanations"]["commonest_of_emotion"] == 1 / 8


def test_model_that_is_no_better_than_the_nearest_training_picture():
    rows = [row | {"nearest": row["explanation"]} for row in pictures()]
    metrics = measure(rows, SETTINGS).metrics
    assert metrics["baselines"]["blind"]["unbeaten"] == ["nearest"]
    assert metrics_text(metrics).startswith("These explanations are no better than the text of the most similar")


def test_few_images_and_missing_systems_have_no_verdict():
    figures = {"captions.BLEU-4": {"interval": [-0.1, 0.2]}, "captions.CIDEr": {"interval": [0.1, 0.2]}}
    assert blind_verdict({"other_picture": figures}, FEWEST - 1) is None
    assert blind_verdict({"commonest": figures}, FEWEST) is None
    assert blind_verdict({"other_picture": figures}, FEWEST)["verdict"] is False
    without = {"captions.BLEU-4": figures["captions.BLEU-4"]}
    assert blind_verdict({"nearest": without}, FEWEST) == {
        "verdict": True,
        "score": "captions.BLEU-4",
        "unbeaten": ["nearest"],
    }


# --- figures ---------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_texts_in_place_of_the_models():
    rows = pictures()
    found = measure(rows, SETTINGS)
    texts, _ = baseline_texts(rows, *zip(*TRAINING, strict=True), seed=SETTINGS.seed)
    for name, system in found.metrics["baselines"]["systems"].items():
        alone = measure([row | {"explanation": texts[name][row["id"]]} for row in rows], SETTINGS).metrics
        assert system["captions"] == pytest.approx(alone["captions"])
        subject = {figure: alone["grounding"]["kinds"]["subject"][figure] for figure in ("precision", "recall")}
        assert system["grounding"] == {"subject": subject}
        figure = system["differences"]["captions.CIDEr"]
        assert figure["second"] == pytest.approx(found.metrics["captions"]["CIDEr"])
        assert figure["first"] == pytest.approx(alone["captions"]["CIDEr"])
    for key, statistic in found.statistics.items():
        assert score(statistic, len(rows)) == pytest.approx(at(found.metrics, key), abs=1e-9), key
    json.dumps(found.metrics, allow_nan=False)


def test_baseline_of_some_images_is_compared_on_these():
    rows = pictures()
    rows[:40] = [row | {"nearest": None, "explanation": "nothing at all"} for row in rows[:40]]
    system = measure(rows, SETTINGS).metrics["baselines"]["systems"]["nearest"]
    assert system["images"] == 40 and system["differences"]["captions.ROUGE-L"]["second"] == pytest.approx(1)


def test_systems_are_scored_as_each_alone(tmp_path, monkeypatch):
    rows = pictures(12)
    references = {row["id"]: row["references"] for row in rows}
    texts = {"model": {row["id"]: row["explanation"] for row in rows}}
    texts["other"] = baseline_texts(rows, (), seed=1)[0]["other_picture"]
    together = system_scores(texts, references, metrics=PLAIN.metrics, tokenizer="whitespace")
    for name, scores in together.items():
        assert scores == caption_scores(texts[name], references, metrics=PLAIN.metrics, tokenizer="whitespace")
    put_java(tmp_path / "bin", monkeypatch, meteor="exit 1")
    failed = system_scores(texts, references, metrics=("meteor",), tokenizer="whitespace")
    assert all(len(scores.notes) == 1 and scores.notes[0].startswith("METEOR left out") for scores in failed.values())


# --- own picture among others ----------------------------------------------------------------------------------------


def test_match_and_swap_are_summarized(tmp_path):
    rows = pictures(60)
    for i, row in enumerate(rows):
        row |= {"match": {"rank": 1 + i % 4 / 2, "of": 4}} if i < 40 else {}
        row |= {"swap": {"right": i % 4 > 0, "blind": i % 2 > 0}} if i < 20 else {}
    found = measure(rows, SETTINGS)
    match, swap = found.metrics["looking"]["match"], found.metrics["looking"]["swap"]
    assert match == {"count": 40, "of": 4, "chance": 0.25, "first": 0.25, "mean_rank": 1.75}
    assert swap == {"count": 20, "accuracy": 0.75, "blind": 0.5}
    assert {"looking.match.first", "looking.match.mean_rank", "looking.swap.accuracy"} <= found.metrics[
        "intervals"
    ].keys()
    assert "by chance 25.0 %" in " ".join(metrics_text(found.metrics).split())
    assert measure(pictures(4), SETTINGS).metrics["looking"] is None


def test_report_begins_with_the_verdict(tmp_path):
    for rows, is_blind in ((blind(pictures(image="/gone.png")), True), (pictures(image="/gone.png"), False)):
        write_test_report(rows, measure(rows, SETTINGS).metrics, tmp_path / "report.html", title="Test", facts={})
        html = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert ("These explanations do not depend on the picture" in html.split("80 images tested")[0]) == is_blind
        part = html.split("<h2>Does the model look at the picture?</h2>")[1].split("</section>")[0]
        for words in ("Baselines", "another picture", "Lead of the model", "precision", "recall", "people"):
            assert words in part
        assert ("Hallucinations" in part) == is_blind


# --- the command -----------------------------------------------------------------------------------------------------


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def files(folder: Path) -> list[str]:
    training = folder / "training.csv"
    training.write_text("text,emotion\n" + "".join(f"{text},{emotion}\n" for text, emotion in TRAINING))
    facts = {"phrases": {"subject": {name: [name] for name in SUBJECTS}}}
    facts["images"] = {row["id"]: {"subject": row["references"][1].split()[1]} for row in pictures()}
    (folder / "facts.json").write_text(json.dumps(facts))
    plain = ["--metrics", "bleu,rouge_l,cider", "--tokenizer", "whitespace"]
    return ["--training", str(training), "--facts", str(folder / "facts.json"), "--out", str(folder / "out"), *plain]


def test_command_reads_what_mode_test_writes(tmp_path, capsys):
    rows = [row | {"match": {"rank": 1.5, "of": 16}, "swap": {"right": True}} for row in pictures()]
    path = write(tmp_path / "predictions.jsonl", blind(rows))
    assert main(["--predictions", str(path), *files(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["looking"]["match"]["mean_rank"] == 1.5 and metrics["looking"]["swap"]["accuracy"] == 1
    assert list(metrics["baselines"]["systems"]) == ["commonest", "random", "nearest", "other_picture"]
    assert metrics["notes"] == []
    shown = capsys.readouterr().out
    assert shown.startswith("These explanations do not depend on the picture")
    assert "subject: boat" in shown and max(map(len, shown.splitlines())) <= 120


def test_command_without_training_texts_and_facts_notes_it(tmp_path, capsys):
    path = write(tmp_path / "predictions.jsonl", pictures(4, nearest=None))
    assert main(["--predictions", str(path), "--tokenizer", "whitespace", "--metrics", "cider"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for note in ("give --training FILE", "give --facts FILE", "baseline nearest left out"):
        assert note in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nearest": 5}, "'nearest' must be text"),
        ({"match": {"rank": 0.5, "of": 16}}, "'match' must have a 'rank' from 1 to 'of'"),
        ({"match": {"rank": 3, "of": 2}}, "'match' must have a 'rank'"),
        ({"match": 3}, "'match': must be an object"),
        ({"swap": {"right": 1}}, "'swap': 'right' must be true or false"),
        ({"pointing": {"hit": True, "area": 2}}, "'pointing' needs hit, mean_map, center and area"),
    ],
)
def test_malformed_entries_are_refused(tmp_path, capsys, change, message):
    path = write(tmp_path / "predictions.jsonl", pictures(2, **change))
    assert main(["--predictions", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_command_reads_what_testing_measured_with_the_network(tmp_path):
    measured = {
        "match": {"rank": 2, "of": 4},
        "swap": {"right": True, "blind": False},
        "pointing": {"hit": True, "mean_map": False, "center": True, "area": 0.25},
    }
    path = write(tmp_path / "predictions.jsonl", rows := pictures(4, **measured))
    assert main(["--predictions", str(path), *files(tmp_path)]) == 0
    looking = json.loads((tmp_path / "out" / "metrics.json").read_text())["looking"]
    assert looking == measure(rows, SETTINGS).metrics["looking"] and looking["pointing"]["random"] == 0.25


def test_comparison_has_the_new_scores(tmp_path, capsys):
    paths = [write(tmp_path / f"{i}.jsonl", rows) for i, rows in enumerate((blind(pictures()), pictures()))]
    assert main(["compare", *map(str, paths), *files(tmp_path)]) == 0
    figures = json.loads((tmp_path / "out" / "comparison.json").read_text())["figures"]
    assert figures["grounding.kinds.subject.precision"]["difference"] == pytest.approx(7 / 8)
    assert "baselines.systems.other_picture.captions.CIDEr" in figures
    assert "the model, subject" in capsys.readouterr().out
