"""stage=ratings: training, test and prediction of a head on a frozen encoder, and a captioner on the same ratings."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from data.split_names import TRAIN, split_by_hash
from tests.helpers.runs import contents
from tests.helpers.tiny import composed, run_mode, write_pictures, write_run, write_splits
from trainer.runs.checkpoint import find_checkpoint
from trainer.setup.from_checkpoint import complete_from_checkpoint

PICTURES = 72


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict:
    """Keys of a captioner with the sentence's VAD and of pictures whose color decides their ratings, both trained."""
    root = tmp_path_factory.mktemp("ratings")
    keys = {**write_splits(root, train=9, val=4, test=4), "model.vad.sentence": True}
    write_run(keys, "mine")
    paths = write_pictures(root / "pictures", PICTURES)
    with (root / "OASIS.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "Theme", "Category", "Valence_mean", "Arousal_mean"])
        for i, path in enumerate(paths):
            writer.writerow([f"I{i}", path.stem, "Color", 1 + 0.75 * (i % 9), 6 - 0.5 * (i % 9)])
        writer.writerow(["I", "faulty", "Color", ".", "3"])
        writer.writerow(["I", "broken", "Color", "4", "3"])
    (root / "pictures" / "faulty.png").touch()
    (root / "pictures" / "broken.png").write_bytes(b"no picture")
    assert {split_by_hash(name) for name in ("faulty", "broken")} == {TRAIN}
    files = {"dataset.train_ds.json_path": root / "OASIS.csv", "dataset.train_ds.visual_dir": root / "pictures"}
    own = {key: keys[key] for key in ("preset", "trainer.exp_dir", "trainer.device")} | {"dataset.name": "ratings"}
    own |= files | {f"dataset.{split}_ds.num_workers": 0 for split in ("train", "validation", "test")}
    run_mode("train", {**own, **vision(keys), "stage": "ratings", "name": "alone"})
    run_mode("train", {**own, "stage": "ratings", "pretrained_name": "mine"})
    return own


def vision(keys: dict) -> dict:
    return {key: value for key, value in keys.items() if key.startswith("model.vision")}


def of_run(keys: dict, run: str, **changes) -> dict:
    return {
        **{key: keys[key] for key in ("preset", "trainer.exp_dir", "trainer.device")},
        "pretrained_name": run,
    } | changes


def head_of(keys: dict, name: str) -> dict[str, torch.Tensor]:
    folder = find_checkpoint(name, Path(keys["trainer.exp_dir"]), with_ratings=True).folder
    return load_file(folder / "model.safetensors")


def results(keys: dict, name: str) -> tuple[dict, list[dict]]:
    folder = Path(keys["trainer.exp_dir"]) / name / "test"
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return json.loads((folder / "metrics.json").read_text()), rows


def test_a_head_learns_ratings_that_colors_decide(keys):
    run_mode("test", of_run(keys, "alone"))
    metrics, rows = results(keys, "alone")
    found = metrics["ratings"]
    assert 3 < found["images"] == len(rows) < 20 and found["scale"] == [1, 7]
    for name in ("valence", "arousal"):
        own, mean = found["sources"]["prediction"][name], found["sources"]["training_mean"][name]
        assert own["correlation"] > 0.9 and own["error"] < mean["error"] / 2
        assert own["error_on_scale"] == pytest.approx(3 * own["error"])
    assert "dominance" not in found["sources"]["prediction"] and len(rows[0]["vad"]) == 2
    assert metrics["notes"] == [] and metrics["intervals"]["ratings.prediction.valence.error"]
    report = (Path(keys["trainer.exp_dir"]) / "alone" / "test" / "report.html").read_text()
    assert "Valence and arousal as people rate them" in report and "people: valence" in report
    assert "scatter plot of arousal, prediction" in report


def test_what_cannot_be_used_is_listed_and_training_repeats_exactly(keys):
    runs = Path(keys["trainer.exp_dir"])
    skipped = [json.loads(line) for line in (runs / "alone" / "skipped.jsonl").read_text().splitlines()]
    assert [row["id"] for row in skipped] == ["faulty", "broken"]
    assert "has no valence" in skipped[0]["reason"] and "not a readable image" in skipped[1]["reason"]
    of_captioner, alone = head_of(keys, "mine-ratings"), head_of(keys, "alone")
    assert {*alone} == {*of_captioner} >= {"head.weight", "head.bias", "vision.visual.class_embedding"}
    run_mode("train", {**keys, "stage": "ratings", "pretrained_name": "mine", "trainer.exp_name": "again"})
    again = head_of(keys, "again")
    assert all(torch.equal(again[key], value) for key, value in of_captioner.items())
    captioner = load_file(find_checkpoint("mine", runs).folder / "model.safetensors")
    assert all(torch.equal(captioner[key], of_captioner[key]) for key in captioner if key.startswith("vision."))


def test_restart_continues_or_replaces_as_other_stages_do(keys, capsys):
    again = {**keys, "stage": "ratings", "pretrained_name": "mine"}
    run = Path(keys["trainer.exp_dir"]) / "mine-ratings"
    before = contents(run / "checkpoints")
    with pytest.raises(UserError, match="already holds a run"):
        run_mode("train", again)
    run_mode("train", {**again, "trainer.resume": "auto"})
    assert "is finished: nothing to do" in capsys.readouterr().err and contents(run / "checkpoints") == before
    with pytest.raises(UserError, match=r"trained with seed=2021, not 3"):
        run_mode("train", {**again, "trainer.resume": "auto", "seed": 3})
    weights = head_of(keys, "mine-ratings")
    shutil.rmtree(run / "checkpoints")  # as if it had been killed before the end
    run_mode("train", {**again, "trainer.resume": "auto"})
    assert all(torch.equal(weights[key], value) for key, value in head_of(keys, "mine-ratings").items())
    run_mode("train", {**again, "trainer.overwrite": True})
    assert {path.name for path in contents(run / "checkpoints")} == {path.name for path in before}


def test_predictions_are_points_in_the_plane(keys, tmp_path, capsys):
    write_pictures(tmp_path, 3)
    run_mode("predict", of_run(keys, "mine-ratings", image=tmp_path, name="seen"))
    folder = Path(keys["trainer.exp_dir"]) / "seen" / "predict"
    rows = json.loads((folder / "predictions.json").read_text())
    assert [len(row["vad"]) for row in rows] == [2, 2, 2] and all(-1 <= v <= 1 for row in rows for v in row["vad"])
    page = (folder / "report.html").read_text()
    assert page.count('aria-label="valence') == 3 and "mean ratings that people would give" in page
    assert "picture-002.png" in capsys.readouterr().out


def test_a_captioner_is_scored_by_its_sentence_head_its_words_and_its_label(keys):
    files = {f"dataset.test_ds.{key}": keys[f"dataset.train_ds.{key}"] for key in ("json_path", "visual_dir")}
    run_mode("test", of_run(keys, "mine", **files, **{"dataset.name": "ratings", "trainer.exp_name": "mine_on"}))
    metrics, rows = results(keys, "mine_on")
    assert metrics["ratings"]["images"] == len(rows) == PICTURES  # it was trained on none of them
    assert {*metrics["ratings"]["sources"]} >= {"prediction", "mean"}
    assert all(len(row["vad"]) == 3 and row["explanation"] is not None for row in rows)
    assert metrics["captions"] == {} and metrics["emotion"] is None


def test_captioners_files_are_not_those_of_the_ratings(keys):
    config = composed("test", {**of_run(keys, "mine"), "dataset.name": "ratings"})
    found = complete_from_checkpoint(
        config, find_checkpoint("mine", Path(keys["trainer.exp_dir"])), keys=["dataset.name"]
    )
    assert found.stage == "caption" and found.dataset.train_ds.json_path is None
    with pytest.raises(UserError, match=r"dataset\.name=ratings needs dataset\.test_ds\.json_path=FILE"):
        run_mode("test", of_run(keys, "mine", **{"dataset.name": "ratings", "trainer.exp_name": "nowhere"}))


@pytest.mark.parametrize(
    ("mode", "changes", "words"),
    [
        ("train", {"stage": "ratings", "dataset.name": "emotion_folder"}, "stage=ratings needs dataset.name=ratings"),
        ("train", {"stage": "student", "pretrained_name": "alone"}, "a head without texts"),
        ("train", {"name": "captioner", "model.vision.pretrained_name": None}, "learn ratings with stage=ratings"),
        ("predict", {"pretrained_name": "alone", "image": "README.md", "emotion": "awe"}, "trained without emotions"),
        ("serve", {"pretrained_name": "alone"}, "a head without texts"),
    ],
)
def test_what_ratings_cannot_do_is_refused(keys, mode, changes, words):
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        run_mode(mode, {**keys, **changes})


def test_other_weights_of_the_encoder_are_refused(keys, tmp_path):
    folder = find_checkpoint("alone", Path(keys["trainer.exp_dir"]), with_ratings=True).folder
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        if path.name != "SHA256SUMS":
            (copy / path.name).write_bytes(path.read_bytes())
    info = json.loads((copy / "checkpoint.json").read_text())
    info["made_of"]["model.vision.pretrained_name"]["sha256"] = "0" * 64
    (copy / "checkpoint.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"other weights of model\.vision\.pretrained_name"):
        run_mode("test", of_run(keys, str(copy), **{"trainer.exp_name": "other"}))


def test_too_few_pictures_are_refused_and_a_dimension_of_few_is_left_out(keys, tmp_path):
    names = [f"picture-{i:03d}" for i in range(12)]
    splits = ["train"] * 8 + ["val"] * 3 + ["test"]
    table = tmp_path / "own.csv"
    own = {**keys, "stage": "ratings", "pretrained_name": "mine", "dataset.train_ds.json_path": table}

    def write(count: int, dominance: int) -> None:
        rows = [f"{n},{i % 9},{9 - i % 9},{5 if i < dominance else ''},{splits[i]}" for i, n in enumerate(names)]
        table.write_text("\n".join(["image,valence,arousal,dominance,split", *rows[:count]]))

    write(9, 0)
    with pytest.raises(UserError, match=r"own\.csv: 8 training pictures and 1 of validation have a rating of valence"):
        run_mode("train", {**own, "dataset.rating_scale": "[0,9]", "trainer.exp_name": "few"})
    for dominance, expected in ((9, 2), (12, 3)):
        write(12, dominance)
        run_mode("train", {**own, "dataset.rating_scale": "[0,9]", "trainer.exp_name": f"some-{dominance}"})
        assert len(head_of(keys, f"some-{dominance}")["head.bias"]) == expected
