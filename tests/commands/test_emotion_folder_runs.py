"""A captioner on emotion folders: train, test and predict with the labels of the folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from common.errors import UserError
from data.emotions import EMOTIONS
from data.readers.split import read_samples
from tests.helpers.folders import MIKELS, write_emotions
from tests.helpers.html_page import Page
from tests.helpers.tiny import PARTS, run_mode, write_splits, write_tokenizer
from trainer.score.__main__ import main as score

TWO = ("positive", "negative")


def settings(root: Path, data: Path, **changes) -> dict[str, object]:
    """Keys of a short training of small parts from scratch."""
    keys: dict[str, object] = {f"model.{part}.{key}": v for part, of in PARTS.items() for key, v in of.items()}
    keys |= {"preset": "emotion_folder", "dataset.root": data, "dataset.max_length": 40}
    keys |= {f"dataset.{split}_ds.num_workers": 0 for split in ("train", "validation", "test")}
    keys |= {"dataset.tokenizer": write_tokenizer(root / "tokenizer"), "dataset.train_ds.batch_size": 8}
    keys |= {"trainer.exp_dir": root / "runs", "trainer.device": "cpu", "trainer.num_validation_images": 1}
    keys |= {"model.vision.trainable": True, "model.text.trainable": True, "model.text.xattn.gate_init": 0.2}
    keys |= {"model.optimizer.lr": 5e-3, "model.optimizer.scheduler.warmup_steps": 5, "trainer.epochs": 24}
    keys |= {"trainer.check_val_every_n_epoch": 12}
    return keys | changes


def run_of(root: Path, names: tuple[str, ...], counts: dict[str, int], **changes) -> tuple[Path, dict[str, object]]:
    keys = settings(root, write_emotions(root / "pictures", names, counts, order=[*range(len(names))][::-1]), **changes)
    run_mode("train", keys)
    run = root / "runs" / "emotion_folder"
    run_mode("test", {"pretrained_name": run})
    run_mode("predict", {"pretrained_name": run, "image": root / "pictures" / "test", "top_emotions": 2})
    return run, keys


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Layout of Flickr and Instagram; the validation set is a share of the training images."""
    return run_of(tmp_path_factory.mktemp("two"), TWO, {"train": 12, "test": 4})


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """Layout of FI."""
    return run_of(tmp_path_factory.mktemp("eight"), MIKELS, {"train": 8, "val": 2, "test": 2})


@pytest.fixture(params=["two", "eight"])
def trained(request):
    """A run and its labels."""
    return request.getfixturevalue(request.param)[0], {"two": tuple(sorted(TWO)), "eight": MIKELS}[request.param]


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def json_of(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def refused(mode: str, keys: dict, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        run_mode(mode, keys)
    assert [part for part in parts if part not in str(caught.value)] == [], caught.value


# --- train, test, predict --------------------------------------------------------------------------------------------


def test_separable_colors_are_classified_without_error(trained):
    run, labels = trained
    emotion = json_of(run / "test" / "metrics.json")["emotion"]
    assert emotion["accuracy"] == emotion["macro_f1"] == emotion["valence_accuracy"] == 1.0
    assert emotion["labels"] == [*labels] and len(emotion["confusion"]) == len(labels)
    assert emotion["count"] == emotion["total"] == sum(emotion["support"])


def test_checkpoint_stores_resolved_settings(trained):
    run, labels = trained
    for path in [run / "config.yaml", *run.glob("checkpoints/step-*/config.yaml")]:
        config = OmegaConf.load(path)
        assert tuple(config.dataset.labels) == labels
        assert (config.dataset.emotions, config.dataset.explanations) == (True, False)
        assert (config.model.contrastive.enabled, config.model.vad.enabled) == (False, False)


def test_label_order_is_the_same_everywhere(trained):
    run, labels = trained
    config = OmegaConf.load(run / "config.yaml")
    samples = read_samples({**OmegaConf.to_container(config.dataset, resolve=True), "labels": None}, "test_ds").samples
    assert samples.labels == labels == tuple(config.dataset.labels)
    rows, measured = rows_of(run / "test" / "predictions.jsonl"), rows_of(run / "test" / "per_image.jsonl")
    assert len(rows) == len(samples) == len(measured)
    for row, sample, measures in zip(rows, samples, measured, strict=True):
        name = sample.path.parent.name
        assert (row["id"], row["labels"]) == (sample.id, [*labels])
        assert labels[row["emotion_distribution"].index(max(row["emotion_distribution"]))] == row["emotion"] == name
        assert labels[row["histogram"].index(1.0)] == name == labels[sample.emotions[0]]
        assert (measures["emotion"], measures["label"]["more_than_half"]) == (name, name)
    confusion = json_of(run / "test" / "metrics.json")["emotion"]["confusion"]
    each = len(samples) // len(labels)
    assert confusion == [[each * (i == j) for j in range(len(labels))] for i in range(len(labels))]


def test_no_output_about_missing_explanations(trained):
    run, _ = trained
    metrics = json_of(run / "test" / "metrics.json")
    assert metrics["captions"] == {} and metrics["explanations"] is metrics["captions_filtered"] is None
    assert metrics["captions_scored"] is None and "beam_width" not in metrics["decoding"]
    assert [note for note in metrics["notes"] if note.startswith("captions and explanations left out")]
    for row in rows_of(run / "test" / "predictions.jsonl"):
        assert row["explanation"] is None and row["references"] == []
        assert row["text"] == f"the emotion is {row['emotion']}"


def test_report_has_every_emotion_and_no_empty_table(trained):
    run, labels = trained
    page = Page(run / "test" / "report.html")
    page.require_self_contained()
    assert all(name in page.text for name in labels)
    assert "Confusion" in page.text and "Calibration" in page.text and "something else" not in page.text
    for absent in ("BLEU", "Explanation", "Captions", "(no words)", "Annotators'", "nine", "best explanations"):
        assert absent not in page.text, absent
    assert page.classes("cell") == len(labels) ** 2


def test_predict_prints_emotions_only(trained, capsys):
    run, labels = trained
    page = Page(run / "predict" / "report.html")
    page.require_self_contained()
    assert all(name in page.text for name in labels) and "(no words)" not in page.text
    for row in json.loads((run / "predict" / "predictions.json").read_text()):
        assert row["explanation"] is None and [reason["explanation"] for reason in row["reasons"]] == [None, None]
        shares = [labels.index(reason["emotion"]) for reason in row["reasons"]]
        assert [row["emotion_distribution"][i] for i in shares] == sorted(row["emotion_distribution"])[:-3:-1]


def test_given_emotion_must_be_a_label(eight, capsys):
    run, keys = eight
    use = {"pretrained_name": run, "image": keys["dataset.root"] / "test" / "awe", "trainer.overwrite": True}
    run_mode("predict", {**use, "emotion": "Anger"})
    assert "anger" in capsys.readouterr().out
    refused("predict", {**use, "emotion": "angr"}, "emotion: 'angr' is not one of the eight", "did you mean 'anger'?")
    refused("predict", {**use, "emotion": "something else"}, "'something else' is not one of the eight")
    refused("predict", {**use, "top_emotions": 9}, "top_emotions=9: there are eight emotions, amusement")


def test_validation_and_training_are_disjoint(two):
    run, _ = two
    made_of = json_of(run / "run.json")["made_of"]
    counts = [made_of[f"dataset.{split}_ds.visual_dir"]["images"] for split in ("train", "validation")]
    assert sum(counts) == 24 and counts[1] >= 2
    metrics = [row for row in rows_of(run / "metrics.jsonl") if "validation/emotion_accuracy" in row]
    assert metrics and not any(name.startswith("validation/BLEU") for name in metrics[-1])


def test_finished_run_continues_if_the_folders_are_unchanged(two, capsys):
    _, keys = two
    keys = {**keys, "trainer.resume": "auto"}
    run_mode("train", keys)
    assert "is finished" in capsys.readouterr().err
    other = {**keys, "trainer.resume": "auto", "dataset.validation_share": 0.5}
    refused("train", other, "dataset.validation_share=0.1, not 0.5")
    refused(
        "train", {**keys, "trainer.resume": "auto", "dataset.labels": "[negative,positive,mixed]"}, "dataset.labels"
    )


def test_predictions_can_be_scored_separately(trained, tmp_path, capsys):
    run, labels = trained
    assert score(["--predictions", str(run / "test" / "predictions.jsonl"), "--out", str(tmp_path / "out")]) == 0
    again, first = json_of(tmp_path / "out" / "metrics.json"), json_of(run / "test" / "metrics.json")
    assert again["emotion"] == first["emotion"] and again["captions"] == {}
    assert f"of the {'eight' if len(labels) == 8 else 'two'} probabilities" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("preset", "labels"), [("FI", MIKELS), ("instagram", tuple(sorted(TWO)))])
def test_preset_of_a_data_set_trains(tmp_path, preset, labels):
    data = write_emotions(tmp_path / "data", labels, {"train": 2, "test": 1})
    run_mode("train", settings(tmp_path, data, preset=preset) | {"trainer.epochs": 1})
    assert tuple(OmegaConf.load(tmp_path / "runs" / preset / "config.yaml").dataset.labels) == labels


# --- what goes together ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"dataset.emotions": False}, ["without emotions and without explanations there is nothing to learn"]),
        ({"model.architecture": "sevlm"}, ["model.architecture=sevlm needs explanations"]),
        ({"dataset.labels": "[joy,Joy]"}, ["dataset.labels: 'joy' and 'Joy' cannot be told apart"]),
        (
            {"dataset.labels": "[joy,negative]"},
            ["'positive' is not in dataset.labels", "dataset.labels=[negative,positive]"],
        ),
        ({"dataset.labels": "[positive,negative,positive too]"}, ["it encodes 'positive' as", "cannot be compared"]),
    ],
)
def test_invalid_settings(tmp_path, changes, messages):
    data = write_emotions(tmp_path / "x", TWO, {"train": 2, "val": 1})
    refused("train", settings(tmp_path, data, **changes), *messages)


# --- a captioner of the nine on such pictures ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    """A hardly trained captioner with the nine labels."""
    root = tmp_path_factory.mktemp("nine")
    keys = {**write_splits(root), "trainer.test.max_length": 3}
    run_mode("train", keys)
    return root / "runs" / "emoscribe"


def on(captioner: Path, root: Path, out: Path, **changes) -> dict[str, object]:
    given = {"pretrained_name": captioner, "dataset.name": "emotion_folder", "trainer.exp_dir": out}
    return given | {"dataset.test_ds.visual_dir": root / "test"} | changes


def test_nine_labels_on_folders_of_some_of_them(captioner, tmp_path):
    root = write_emotions(tmp_path / "FI", MIKELS, {"test": 1})
    run_mode("test", on(captioner, root, tmp_path))
    rows = rows_of(tmp_path / "emoscribe" / "test" / "predictions.jsonl")
    assert len(rows) == 8 and all("labels" not in row and len(row["emotion_distribution"]) == 9 for row in rows)
    assert [EMOTIONS[row["histogram"].index(1)] for row in rows] == [*MIKELS]
    assert all(isinstance(row["explanation"], str) and " because" in row["text"] for row in rows), "it can explain"
    metrics = json_of(tmp_path / "emoscribe" / "test" / "metrics.json")
    assert metrics["emotion"]["total"] == 8 and metrics["captions"] == {} and "labels" not in metrics["emotion"]


@pytest.mark.parametrize(("preset", "labels"), [("emotion_folder", EMOTIONS), ("FI", MIKELS)])
def test_preset_sets_the_folders_and_labels_of_a_test(captioner, tmp_path, preset, labels):
    root = write_emotions(tmp_path / "FI", MIKELS, {"test": 1})
    use = {"pretrained_name": captioner, "preset": preset, "dataset.root": root}
    run_mode("test", use | {"trainer.exp_dir": tmp_path, "trainer.exp_name": "on_fi"})
    rows = rows_of(tmp_path / "on_fi" / "test" / "predictions.jsonl")
    assert all(tuple(row.get("labels", EMOTIONS)) == labels for row in rows)
    assert [row["id"] for row in rows] == [f"test/{name}/p0.png" for name in MIKELS]


def test_other_labels_must_be_given_and_are_scored_as_words(captioner, tmp_path):
    root = write_emotions(tmp_path / "E6", ("anger", "joy", "surprise"), {"test": 1})
    way_out = "[anger,joy,surprise]"
    refused("test", on(captioner, root, tmp_path), "'joy', 'surprise' are not", f"dataset.labels={way_out}")
    run_mode("test", on(captioner, root, tmp_path, **{"dataset.labels": way_out}))
    rows = rows_of(tmp_path / "emoscribe" / "test" / "predictions.jsonl")
    for row in rows:
        assert row["labels"] == ["anger", "joy", "surprise"] and row["emotion"] in row["labels"]
        assert sum(row["emotion_distribution"]) == pytest.approx(1, abs=1e-5)
        assert "emotion_temperature" not in row, "it was fitted to the nine labels"
    picture = root / "test" / "joy"
    use = {"pretrained_name": captioner, "image": picture, "trainer.exp_dir": tmp_path, "trainer.overwrite": True}
    run_mode("predict", {**use, "dataset.labels": way_out, "emotion": "joy"})
    [row] = json.loads((tmp_path / "emoscribe" / "predict" / "predictions.json").read_text())
    assert row["emotion"] == "joy" and row["text"].startswith("the emotion is joy because")


def test_only_the_emotions_that_network_and_data_share_are_scored(captioner, tmp_path):
    root = write_emotions(tmp_path / "E6", ("anger", "joy", "sadness", "surprise"), {"test": 2})
    run_mode("test", on(captioner, root, tmp_path, **{"trainer.test.label_map": "joy=amusement"}))
    rows = rows_of(tmp_path / "emoscribe" / "test" / "predictions.jsonl")
    felt = {"anger": "anger", "joy": "amusement", "sadness": "sadness"}
    assert len(rows) == 6 and {row["id"].split("/")[1] for row in rows} == {*felt}
    for row in rows:
        assert row["labels"] == ["amusement", "anger", "sadness"] and row["emotion"] in row["labels"]
        assert row["labels"][row["histogram"].index(1)] == felt[row["id"].split("/")[1]]
    fitted = {json_of(file)["emotion_temperature"] for file in captioner.rglob("checkpoint.json")}
    assert {row["emotion_temperature"] for row in rows} <= fitted, "no shared label is new to the network"
    metrics = json_of(tmp_path / "emoscribe" / "test" / "metrics.json")
    [note] = [note for note in metrics["notes"] if note.startswith("scored on the 3 emotions")]
    assert "awe" in note and note.endswith("left out: 2 annotations with surprise; images left out: 2 of 8")
    refused("test", on(captioner, root, tmp_path / "x", **{"trainer.test.label_map": "glad=awe"}), "'glad=awe' must be")


def test_training_can_continue_on_emotions_only(captioner, tmp_path):
    """The parts and the generated texts stay those of its own training."""
    root = write_emotions(tmp_path / "FI", MIKELS, {"train": 2, "val": 1, "test": 1})
    keys = dict(OmegaConf.to_container(OmegaConf.load(captioner / "config.yaml"))["model"])
    changes = {f"model.{part}.{key}": value for part, of in PARTS.items() for key, value in of.items()}
    changes |= {"model.vad.enabled": True, "model.contrastive.enabled": True, "model.text.segments": True}
    config = OmegaConf.load(captioner / "config.yaml").dataset
    changes |= {"dataset.vad_lexicon": config.vad_lexicon, "dataset.tokenizer": config.tokenizer}
    changes |= {"pretrained_name": captioner, "trainer.exp_dir": tmp_path / "runs", "trainer.epochs": 1}
    changes |= {"dataset.explanations": True, "trainer.test.max_length": 3, "model.vision.trainable": False}
    new = {**settings(tmp_path, root), **changes, "model.text.trainable": keys["text"]["trainable"]}
    run_mode("train", new)
    run_mode("test", {"pretrained_name": tmp_path / "runs" / "emotion_folder"})
    rows = rows_of(tmp_path / "runs" / "emotion_folder" / "test" / "predictions.jsonl")
    assert rows and all(isinstance(row["explanation"], str) and row["references"] == [] for row in rows)
