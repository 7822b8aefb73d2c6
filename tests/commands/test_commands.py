"""The three modes end to end, on valid and invalid data."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from tokenizers import Tokenizer
from transformers import GPT2Tokenizer

from common.errors import UserError
from data.emotions import EMOTIONS
from run import main
from tests.helpers.tiny import (
    PARTS,
    arguments,
    run_mode,
    sentences,
    write_artemis,
    write_pictures,
    write_run,
    write_splits,
    write_tokenizer,
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Keys of a data set with 8 training, 4 validation and 5 test images."""
    return write_splits(tmp_path_factory.mktemp("splits"))


@pytest.fixture(scope="module")
def trained(keys) -> Path:
    """A trained run with every part enabled; read-only."""
    return write_run(keys, "trained")


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of `trained` in tmp_path."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(mode: str, keys: dict, *parts: str) -> str:
    """Return the one-line error message; it must contain every one of `parts`."""
    with pytest.raises(UserError) as caught:
        run_mode(mode, keys)
    text = str(caught.value)
    assert "\n" not in text and text.strip()
    for part in parts:
        assert part in text
    return text


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- train, test, predict --------------------------------------------------------------------------------------------


def test_train_writes_a_run(keys, tmp_path, capsys):
    run_mode("train", {**keys, "trainer.exp_dir": tmp_path, "name": "mine"})
    printed = capsys.readouterr()
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "run.json",
        "tensorboard",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert printed.out == ""
    for part in (
        "cross-attention",
        "8 training images, 4 validation images",
        f"run: {tmp_path / 'mine'}",
        "tensorboard",
    ):
        assert part in printed.err
    config = OmegaConf.load(next((tmp_path / "mine" / "checkpoints").glob("step-*/config.yaml")))
    assert (config.dataset.emotions, config.model.vad.enabled, config.dataset.texts_per_image) == (True, True, 2)
    assert "auto" not in yaml.safe_dump(OmegaConf.to_container(config.model)), "auto is resolved"


def test_test_writes_predictions_metrics_and_report(run, keys, capsys):
    before = contents(run / "checkpoints")
    run_mode("test", {"pretrained_name": run})
    assert sorted(path.name for path in (run / "test").iterdir()) == [
        "metrics.json",
        "per_image.jsonl",
        "predictions.jsonl",
        "report.html",
    ]
    rows = rows_of(run / "test" / "predictions.jsonl")
    people = json.loads(Path(keys["dataset.test_ds.json_path"]).read_text())
    assert [row["id"] for row in rows] == list(people)
    for row in rows:
        assert math.fsum(row["emotion_distribution"]) == pytest.approx(1, abs=1e-5)
        assert row["emotion"] in EMOTIONS and row["text"].startswith(f"the emotion is {row['emotion']} because")
        assert row["references"] == people[row["id"]]["explanations"]
        assert row["histogram"] == people[row["id"]]["origin_emotion_distribution"]
    metrics = json.loads((run / "test" / "metrics.json").read_text())
    assert metrics["images"] == metrics["emotion"]["total"] == 5
    assert {"BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr"} <= set(metrics["captions"])
    assert metrics["decoding"]["decoding_strategy"] == "greedy", "from the run, not from the demo preset"
    assert (metrics["step"], metrics["seed"]) == (2, 2021) and Path(metrics["checkpoint"]).is_relative_to(run)
    page = (run / "test" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 5 and "valence accuracy" in page
    printed = capsys.readouterr()
    assert "5 of 5 images have a label" in printed.out and "BLEU-4" in printed.out
    assert str(run / "test") in printed.err
    assert contents(run / "checkpoints") == before


def test_predict_folder_prints_a_table_and_writes_files(run, keys, capsys):
    run_mode("predict", {"pretrained_name": run, "image": keys["dataset.test_ds.visual_dir"]})
    names = sorted(path.name for path in (run / "predict").iterdir())
    assert names == ["predictions.json", "predictions.jsonl", "report.html"]
    rows = json.loads((run / "predict" / "predictions.json").read_text())
    assert rows == rows_of(run / "predict" / "predictions.jsonl")
    assert len(rows) == 5 and "references" not in rows[0]
    assert (run / "predict" / "report.html").read_text().count("data:image/jpeg;base64,") == 5
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table] == [f"picture-{i:03d}.png" for i in range(5)]
    assert all(row["explanation"] in line for row, line in zip(rows, table, strict=True))


def test_results_by_group(run, keys, tmp_path, capsys):
    annotations = json.loads(Path(keys["dataset.test_ds.json_path"]).read_text(encoding="utf-8"))
    for i, entry in enumerate(annotations.values()):
        entry["genre"] = ("portrait", "landscape")[i % 2]
    (tmp_path / "genres.json").write_text(json.dumps(annotations), encoding="utf-8")
    settings = {"pretrained_name": run, "trainer.test.group_by": "genre", "trainer.test.metrics": "[bleu]"}
    run_mode("test", {**settings, "dataset.test_ds.json_path": tmp_path / "genres.json"})
    assert {row["id"]: row["group"] for row in rows_of(run / "test" / "predictions.jsonl")} == {
        id: entry["genre"] for id, entry in annotations.items()
    }
    groups = json.loads((run / "test" / "metrics.json").read_text())["groups"]
    assert [(row["name"], row["images"]) for row in groups["rows"]] == [("portrait", 3), ("landscape", 2)]
    assert "By genre" in capsys.readouterr().out and "By genre" in (run / "test" / "report.html").read_text()
    refused(
        "test", {**settings, "trainer.test.group_by": "school"}, "has no such column", "origin_emotion_distribution"
    )
    for folder, count in (("Cubism", 2), ("Realism", 1)):
        write_pictures(tmp_path / "art" / folder, count)
    run_mode("predict", {"pretrained_name": run, "image": tmp_path / "art", "group_by": "folder"})
    table = (run / "predict" / "groups.csv").read_text().splitlines()
    assert table[0].startswith("folder,images,entropy,amusement") and table[1].startswith("Cubism,2,")
    assert "By folder" in capsys.readouterr().out and "By folder" in (run / "predict" / "report.html").read_text()
    run_mode("predict", {"pretrained_name": run, "image": tmp_path / "art"})
    assert not (run / "predict" / "groups.csv").exists()


def test_predict_names_the_files_that_it_does_not_read(run, tmp_path, capsys):
    folder, elsewhere = tmp_path / "pictures", tmp_path / "elsewhere"
    write_pictures(folder, 1)
    (folder / "far.png").symlink_to(write_pictures(elsewhere, 1)[0])
    for name in ("photo.tga", "noend"):
        (folder / name).touch()
    run_mode("predict", {"pretrained_name": run, "image": folder})
    printed = capsys.readouterr()
    assert "files that are not read" in printed.err and "2 (noend, photo.tga)" in printed.err
    assert len(printed.out.splitlines()) == 1 and "dataset.follow_links=true" in printed.err
    run_mode("predict", {"pretrained_name": run, "image": folder, "dataset.follow_links": True})
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_predict_is_reproducible(run, keys):
    picture = next(Path(keys["dataset.test_ds.visual_dir"]).rglob("*.png"))
    found = []
    for _ in range(2):
        run_mode("predict", {"pretrained_name": run, "image": picture, "trainer.test.decoding_strategy": "nucleus"})
        found.append((run / "predict" / "predictions.json").read_text())
    assert found[0] == found[1] and len(json.loads(found[0])) == 1


def test_predict_explains_the_given_emotion(run, keys):
    run_mode("predict", {"pretrained_name": run, "image": keys["dataset.test_ds.visual_dir"], "emotion": "fear"})
    rows = json.loads((run / "predict" / "predictions.json").read_text())
    assert len(rows) == 5
    for row in rows:
        assert row["emotion"] == "fear" and row["text"].startswith("the emotion is fear because")
        assert math.fsum(row["emotion_distribution"]) == pytest.approx(1, abs=1e-5)


def test_predict_explains_the_most_likely_emotions(run, keys, capsys):
    own = {"pretrained_name": run, "image": keys["dataset.test_ds.visual_dir"], "top_emotions": 2}
    run_mode("predict", own)
    rows = json.loads((run / "predict" / "predictions.json").read_text())
    lines, page = capsys.readouterr().out.splitlines(), (run / "predict" / "report.html").read_text()
    assert len(lines) == 2 * len(rows) == 10
    for row, first, second in zip(rows, lines[::2], lines[1::2], strict=True):
        likeliest = sorted(zip(row["emotion_distribution"], EMOTIONS, strict=True), reverse=True)[:2]
        assert [(reason["probability"], reason["emotion"]) for reason in row["reasons"]] == likeliest
        assert row["reasons"][0]["explanation"] == row["explanation"]
        for line, reason in ((first, row["reasons"][0]), (second, row["reasons"][1])):
            assert f" {reason['emotion']} " in line and reason["explanation"] in line
    assert page.count('class="others"') == 5
    refused("predict", {**own, "emotion": "fear"}, "emotion=fear", "top_emotions=2")


@pytest.mark.parametrize("mode", ["test", "predict"])
def test_best_of_keeps_the_best_explanation(run, keys, mode):
    own = {"pretrained_name": run, "image": keys["dataset.test_ds.visual_dir"], "trainer.test.top_p": 1.0}
    own |= {"trainer.test.decoding_strategy": "nucleus", "trainer.test.temperature": 2.0}
    found = {}
    for draws in (1, 4):
        run_mode(mode, {**own, "trainer.test.best_of": draws})
        found[draws] = rows_of(run / mode / "predictions.jsonl")
    assert all("fit" in row for row in found[4]) and not any("fit" in row for row in found[1])
    assert [row["emotion"] for row in found[4]] == [row["emotion"] for row in found[1]]
    assert [row["explanation"] for row in found[4]] != [row["explanation"] for row in found[1]]


def test_predict_prints_the_vad_of_the_reaction(keys, tmp_path, capsys):
    run_mode("train", {**keys, "model.vad.sentence": True, "trainer.exp_dir": tmp_path, "name": "vad"})
    capsys.readouterr()
    run_mode("predict", {"pretrained_name": tmp_path / "vad", "image": keys["dataset.test_ds.visual_dir"]})
    rows = json.loads((tmp_path / "vad" / "predict" / "predictions.json").read_text())
    head, *lines = capsys.readouterr().out.splitlines()
    assert "(−1..1)" in head and len(lines) == 5
    for row, line in zip(rows, lines, strict=True):
        assert all(-1 <= value <= 1 for value in row["vad"])
        assert " ".join(f"{round(value, 2) + 0.0:+.2f}" for value in row["vad"]) in line
    assert (tmp_path / "vad" / "predict" / "report.html").read_text().count('class="vad"') == 5


def test_run_by_name_and_results_in_another_folder(trained, run, keys, tmp_path):
    before = contents(trained)
    run_mode(
        "predict", {"pretrained_name": "run", "trainer.exp_dir": tmp_path, "image": keys["dataset.test_ds.visual_dir"]}
    )
    elsewhere = {"pretrained_name": trained, "trainer.exp_dir": tmp_path / "out", "name": "other"}
    run_mode("predict", {**elsewhere, "image": keys["dataset.test_ds.visual_dir"]})
    assert (tmp_path / "out" / "other" / "predict" / "predictions.json").is_file()
    assert contents(trained) == before


def test_command_line_overrides_the_checkpoint(run, keys, tmp_path):
    json_path, images = write_artemis(tmp_path / "mine", 3, seed=9)
    own = {"dataset.test_ds.json_path": json_path, "dataset.test_ds.visual_dir": images}
    run_mode("test", {"pretrained_name": run, **own, "trainer.test.max_length": 2, "trainer.test.limit_batches": 1})
    metrics = json.loads((run / "test" / "metrics.json").read_text())
    assert metrics["images"] == 3 and metrics["decoding"]["max_length"] == 2
    assert metrics["decoding"]["decoding_strategy"] == "greedy"


def test_preset_does_not_change_the_network(run, keys):
    own = {key: keys[key] for key in ("dataset.test_ds.json_path", "dataset.test_ds.visual_dir")}
    run_mode("test", {"pretrained_name": run, "preset": "artemis_v1", **own, "dataset.test_ds.num_workers": 0})
    metrics = json.loads((run / "test" / "metrics.json").read_text())
    assert metrics["images"] == 5 and metrics["decoding"]["max_length"] == 30, "the preset's own"


def test_shuffled_images_are_reported(run):
    run_mode("test", {"pretrained_name": run, "dataset.shuffle_images": True})
    metrics = json.loads((run / "test" / "metrics.json").read_text())
    assert metrics["shuffled_images"] is True
    assert "shuffled" in (run / "test" / "report.html").read_text()
    rows = rows_of(run / "test" / "predictions.jsonl")
    assert all(row["image"] != f"picture-{i:03d}.png" for i, row in enumerate(rows))
    assert len({row["image"] for row in rows}) == 5


def test_run_without_lexicon_and_emotions(keys, tmp_path):
    off = {"dataset.vad_lexicon": None, "dataset.emotions": False, "trainer.exp_dir": tmp_path, "name": "plain"}
    run_mode("train", {**keys, **off})
    run = tmp_path / "plain"
    run_mode("test", {"pretrained_name": run})
    metrics = json.loads((run / "test" / "metrics.json").read_text())
    assert metrics["emotion"] is None and metrics["captions"]
    run_mode("predict", {"pretrained_name": run, "image": keys["dataset.test_ds.visual_dir"]})
    assert all(row["emotion"] is None for row in json.loads((run / "predict" / "predictions.json").read_text()))
    images = {"image": keys["dataset.test_ds.visual_dir"]}
    refused("predict", {"pretrained_name": run, **images, "emotion": "awe"}, "emotion=awe", "trained without emotions")
    refused("predict", {"pretrained_name": run, **images, "top_emotions": 2}, "top_emotions=2", "without emotions")
    several = {"pretrained_name": run, **images, "trainer.test.best_of": 3}
    refused("predict", several, "trainer.test.best_of=3", "trainer.test.decoding_strategy=nucleus")
    several["trainer.test.decoding_strategy"] = "nucleus"
    refused("predict", several, "trainer.test.best_of=3", "contrastive")


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["test", "predict"])
def test_network_cannot_be_changed_after_training(run, keys, mode):
    before = contents(run)
    own = {"pretrained_name": run, "image": keys["dataset.test_ds.visual_dir"]}
    refused(mode, {**own, "model.resampler.depth": 1}, "model.resampler.depth", "checkpoint")
    assert contents(run) == before


def test_existing_run_needs_overwrite(run, keys, tmp_path):
    again = {**keys, "trainer.exp_dir": tmp_path, "name": "run"}
    before = contents(run)
    refused("train", again, str(run), "trainer.overwrite=true", "resume_pretrained_state=true")
    assert contents(run) == before
    params = {"trainer.epochs": 2, "trainer.checkpoint_callback_params.keep_last": 1}
    run_mode("train", {**again, **params, "trainer.overwrite": True})
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == ["step-00000004"]
    assert {row["step"] for row in rows_of(run / "metrics.jsonl")} == {2, 4}, "no rows of the old run"
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_run_may_overwrite_its_own_start(run, keys, tmp_path):
    again = {**keys, "trainer.exp_dir": tmp_path, "name": "run", "trainer.overwrite": True}
    run_mode("train", {**again, "pretrained_name": run, "trainer.epochs": 2})
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == ["step-00000002", "step-00000004"]


def test_checkpoint_of_another_architecture(run, keys, tmp_path):
    """Combine the weights of one run with the configuration of another."""
    run_mode("train", {**keys, "trainer.exp_dir": tmp_path, "name": "deep", "model.resampler.depth": 3})
    (deep,) = (tmp_path / "deep" / "checkpoints").glob("step-*")
    (mine,) = (run / "checkpoints").glob("step-*")
    shutil.copy(deep / "model.safetensors", mine / "model.safetensors")
    (mine / "SHA256SUMS").unlink()
    before = contents(run)
    refused("test", {"pretrained_name": run}, str(mine / "model.safetensors"), "resampler.layers.2.")
    assert contents(run) == before
    own = {**keys, "trainer.exp_dir": tmp_path, "name": "next", "pretrained_name": tmp_path / "deep"}
    refused("train", own, str(deep / "model.safetensors"), "resampler.layers.2.")
    assert not (tmp_path / "next" / "checkpoints").exists()
    run_mode("train", {**own, "name": "next", "model.resampler.depth": 3})


def test_missing_checkpoint(keys, tmp_path):
    named = {"pretrained_name": "nobody", "trainer.exp_dir": tmp_path}
    refused("test", named, "pretrained_name=nobody", str(tmp_path / "nobody"))
    refused("test", {}, "mode=test needs pretrained_name=RUN")
    refused("train", {**keys, "resume_pretrained_state": True}, "needs pretrained_name=RUN")


def test_missing_test_set(keys, tmp_path):
    none = {f"dataset.test_ds.{key}": None for key in ("visual_dir", "json_path")}
    run_mode("train", {**keys, **none, "trainer.exp_dir": tmp_path, "name": "run"})
    refused("test", {"pretrained_name": tmp_path / "run"}, "mode=test needs dataset.test_ds.visual_dir=PATH")


def test_missing_image(run, tmp_path):
    refused("predict", {"pretrained_name": run, "image": tmp_path / "nowhere"}, str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    refused("predict", {"pretrained_name": run, "image": tmp_path / "empty"}, str(tmp_path / "empty"))
    assert not (run / "predict").exists()


def test_missing_lexicon(keys, run, tmp_path):
    own = {**keys, "trainer.exp_dir": tmp_path, "name": "new"}
    refused("train", {**own, "dataset.vad_lexicon": None, "model.vad.enabled": True}, "dataset.vad_lexicon=FILE")
    refused("train", {**own, "dataset.vad_lexicon": tmp_path / "lost.csv"}, str(tmp_path / "lost.csv"))
    refused("test", {"pretrained_name": run, "dataset.vad_lexicon": tmp_path / "lost.csv"}, str(tmp_path / "lost.csv"))


def test_max_length_beyond_the_network(keys, tmp_path):
    own = {**keys, "trainer.exp_dir": tmp_path, "name": "new", "dataset.max_length": 500}
    refused("train", own, "dataset.max_length=500", "this language model has 128")
    assert not (tmp_path / "new" / "checkpoints").exists()


# --- pictures that cannot be used ------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path) -> dict[str, object]:
    """Six images: one missing (id 1001), one truncated (1002), one not an image (1004)."""
    json_path, images = write_artemis(tmp_path / "damaged", 6, seed=5)
    style = images / "Style"
    (style / "picture-001.png").unlink()
    (style / "picture-002.png").write_bytes((style / "picture-002.png").read_bytes()[:70])
    (style / "picture-004.png").write_text("no picture")
    return {"json_path": json_path, "visual_dir": images}


def test_train_skips_and_lists_unusable_images(keys, damaged, tmp_path, capsys):
    own = {f"dataset.train_ds.{key}": value for key, value in damaged.items()}
    run_mode("train", {**keys, **own, "trainer.exp_dir": tmp_path, "name": "run", "trainer.epochs": 2})
    skipped = rows_of(tmp_path / "run" / "skipped.jsonl")
    assert sorted(row["id"] for row in skipped) == ["1001", "1002", "1004"], "once each in two epochs"
    assert all(Path(row["image"]).name == f"picture-00{row['id'][-1]}.png" and row["reason"] for row in skipped)
    assert "3 images were skipped" in capsys.readouterr().err
    checkpoint = max((tmp_path / "run" / "checkpoints").glob("step-*/checkpoint.json"))
    state = json.loads(checkpoint.read_text())["state"]
    assert state["images"] == 6 and len(state["skipped"]) == 3


def test_test_skips_unusable_images(run, damaged, capsys):
    own = {f"dataset.test_ds.{key}": value for key, value in damaged.items()}
    run_mode("test", {"pretrained_name": run, **own})
    assert [row["id"] for row in rows_of(run / "test" / "predictions.jsonl")] == ["1000", "1003", "1005"]
    assert sorted(row["id"] for row in rows_of(run / "test" / "skipped.jsonl")) == ["1001", "1002", "1004"]
    assert json.loads((run / "test" / "metrics.json").read_text())["images"] == 3
    assert "picture-002.png" in (run / "test" / "report.html").read_text()
    assert "3 images were skipped" in capsys.readouterr().err
    run_mode("test", {"pretrained_name": run})
    assert not (run / "test" / "skipped.jsonl").exists(), "the list of the earlier test is removed"


def test_strict_stops_at_the_first_unusable_image(keys, run, damaged, tmp_path):
    own = {f"dataset.train_ds.{key}": value for key, value in damaged.items()}
    strict = {**keys, **own, "dataset.strict": True, "trainer.exp_dir": tmp_path, "name": "new"}
    refused("train", strict, str(damaged["json_path"]), "picture-001.png", "1001", "dataset.strict=false")
    style = Path(damaged["visual_dir"]) / "Style"
    shutil.copy(style / "picture-000.png", style / "picture-001.png")
    refused("train", strict | {"dataset.train_ds.shuffle": False}, str(style / "picture-002.png"), "1002")
    before = contents(run / "checkpoints")
    test = {f"dataset.test_ds.{key}": value for key, value in damaged.items()}
    refused("test", {"pretrained_name": run, **test, "dataset.strict": True}, str(style / "picture-002.png"), "1002")
    assert contents(run / "checkpoints") == before
    assert not (run / "test" / "metrics.json").exists()


def test_predict_skips_unusable_images(run, damaged, capsys):
    run_mode("predict", {"pretrained_name": run, "image": damaged["visual_dir"]})
    rows = json.loads((run / "predict" / "predictions.json").read_text())
    assert [Path(row["image"]).name for row in rows] == ["picture-000.png", "picture-003.png", "picture-005.png"]
    skipped = rows_of(run / "predict" / "skipped.jsonl")
    assert [Path(row["image"]).name for row in skipped] == ["picture-002.png", "picture-004.png"]
    page = (run / "predict" / "report.html").read_text()
    assert "picture-004.png" in page
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3 and "2 images were skipped" in printed.err


@pytest.mark.parametrize("mode", ["test", "predict"])
def test_no_usable_image(run, damaged, mode):
    for path in Path(damaged["visual_dir"]).rglob("*.png"):
        path.write_text("no picture")
    own = {f"dataset.test_ds.{key}": value for key, value in damaged.items()}
    which = str(damaged["json_path" if mode == "test" else "visual_dir"])
    refused(mode, {"pretrained_name": run, **own, "image": damaged["visual_dir"]}, which, "could be read")


def test_predictions_are_kept_when_a_later_batch_fails(run, damaged, monkeypatch):
    own = {f"dataset.test_ds.{key}": value for key, value in damaged.items()}
    run_mode("test", {"pretrained_name": run})
    before = contents(run / "test")
    strict = {"dataset.strict": True, "dataset.test_ds.batch_size": 1}
    style = Path(damaged["visual_dir"]) / "Style"
    shutil.copy(style / "picture-000.png", style / "picture-001.png")
    refused("test", {"pretrained_name": run, **own, **strict}, "picture-002.png")
    after = contents(run / "test")
    assert "seed" in json.loads(after.pop("unfinished.json"))
    part = after.pop("predictions.jsonl.part").decode()
    assert [json.loads(line)["id"] for line in part.splitlines()] == ["1000", "1001"]
    assert after == before, "the earlier test is unchanged"


# --- annotations that are wrong --------------------------------------------------------------------------------------


def annotate(path: Path, fault: str) -> None:
    entries = json.loads(path.read_text())
    if fault == "label":
        entries["1001"]["emotions"][2] = "boredom"
    elif fault in entries["1001"]:
        del entries["1001"][fault]
    path.write_text("{}" if fault == "empty" else "{ no JSON" if fault == "no JSON" else json.dumps(entries))
    if fault == "missing":
        path.unlink()


FAULTS = {
    "empty": ["holds no image"],
    "no JSON": ["line 1", "not JSON"],
    "missing": ["json_path: there is no file"],
    "label": ["1001", "emotions[2]", "boredom"],
    "explanations": ["1001", "'explanations'"],
    "image_name": ["1001", "'image_name'"],
}


@pytest.mark.parametrize(("split", "overwrite"), [("train_ds", False), ("validation_ds", True)])
@pytest.mark.parametrize("fault", FAULTS)
def test_invalid_annotations_stop_training_and_change_nothing(run, keys, tmp_path, fault, split, overwrite):
    json_path, images = write_artemis(tmp_path / "mine", 3)
    annotate(json_path, fault)
    own = {f"dataset.{split}.json_path": json_path, f"dataset.{split}.visual_dir": images}
    own |= {"trainer.exp_dir": tmp_path, "name": "run" if overwrite else "new", "trainer.overwrite": overwrite}
    before = contents(run)
    refused("train", {**keys, **own}, str(json_path), *FAULTS[fault])
    assert contents(run) == before
    assert not (tmp_path / "new" / "checkpoints").exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_invalid_annotations_stop_a_test_and_change_nothing(run, tmp_path, fault):
    json_path, images = write_artemis(tmp_path / "mine", 3)
    annotate(json_path, fault)
    own = {"dataset.test_ds.json_path": json_path, "dataset.test_ds.visual_dir": images}
    before = contents(run)
    refused("test", {"pretrained_name": run, **own}, str(json_path), *FAULTS[fault])
    assert contents(run) == before


@pytest.mark.parametrize("change", ["network too long", "unknown vision setting", "lost weights", "no free text"])
def test_network_that_cannot_be_built_keeps_the_old_run(run, keys, tmp_path, change):
    faults = {
        "network too long": {"dataset.max_length": 500},
        "unknown vision setting": {"model.vision.config": {"widht": 32}},
        "lost weights": {"pretrained_name": tmp_path / "lost"},
        "no free text": {"trainer.test.emotion_from": "text"},
    }
    before = contents(run)
    refused("train", {**keys, "trainer.exp_dir": tmp_path, "name": "run", "trainer.overwrite": True, **faults[change]})
    assert contents(run) == before


# --- the command line itself -----------------------------------------------------------------------------------------


def test_data_error_exits_with_2_and_one_line(keys, tmp_path, monkeypatch, capsys):
    json_path, _ = write_artemis(tmp_path / "mine", 3)
    annotate(json_path, "label")
    own = {**keys, "dataset.train_ds.json_path": json_path, "trainer.exp_dir": tmp_path / "runs", "name": "run"}
    monkeypatch.setattr(sys, "argv", ["run.py", "mode=train", *arguments(own)])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    try:
        with pytest.raises(SystemExit) as caught:
            main()
    finally:
        HydraConfig.instance().cfg = None
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ") and str(json_path) in line and "boredom" in line
    assert not (tmp_path / "runs").exists()


# --- configurations and commands of the perceiver captioner ----------------------------------------------------------


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run `python run.py …` in this process and in the folder tmp_path, and return what it prints on stdout."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, arguments)])
        try:
            main()
        finally:
            HydraConfig.instance().cfg = None
        return capsys.readouterr().out

    return call


def write_coco(root: Path, count: int, *, seed: int) -> tuple[Path, Path]:
    paths = write_pictures(root / "images", count, seed=seed)
    images = [{"id": 10 + i, "file_name": path.name, "height": 40, "width": 40} for i, path in enumerate(paths)]
    texts = [
        {"id": 5 * i + k, "image_id": 10 + i, "caption": text}
        for i in range(count)
        for k, text in enumerate(sentences(5, seed=i))
    ]
    (root / "captions.json").write_text(json.dumps({"info": {}, "images": images, "annotations": texts}))
    return root / "images", root / "captions.json"


def write_json_tokenizer(folder: Path) -> Path:
    """Write a `tokenizers` JSON file with the three special tokens of the perceiver captioner."""
    files = write_tokenizer(folder)
    tokenizer: Tokenizer = GPT2Tokenizer.from_pretrained(str(files)).backend_tokenizer
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>", "<|pad|>"])
    tokenizer.save(str(folder / "mine.json"))
    return folder / "mine.json"


def write_perceiver_config(folder: Path, tokenizer: Path) -> Path:
    """Write a configuration with only the keys of that project, and small random backbones."""
    loader = {"visual_dir": "???", "json_path": "???", "batch_size": 4, "num_workers": 0, "shuffle": True}
    xattn = dict(dim_head=8, heads=2, num_latents=4, ff_mult=1, activation="gelu", freq=1)
    config = {
        "name": "experiment",
        "mode": "train",
        "pretrained_name": None,
        "resume_pretrained_state": False,
        "model": {
            "enable_mapper": True,
            "enable_resampler_xattn": True,
            "vision": {**PARTS["vision"], "trainable": False},
            "mapper": dict(mapper_type="mlp", depth=8, heads=8, dim_feedforward=2048, mlp_dim=16, trainable=True),
            "resampler": dict(depth=2, dim_head=8, heads=2, num_latents=4, num_time_embeds=6, ff_mult=1)
            | dict(activation="gelu", trainable=True),
            "text": {
                "pretrained_name": None,
                "config": PARTS["text"]["config"],
                "trainable": False,
                "trainable_lm_head": False,
                "xattn": xattn,
            },
            "optimizer": {
                "name": "AdamW",
                "lr": "1e-3",
                "betas": [0.9, 0.98],
                "weight_decay": 1e-3,
                "scheduler": dict(name="CosineAnnealing", warmup_steps=None, warmup_ratio=0.1, min_lr=0),
            },
        },
        "dataset": {
            "name": "coco",
            "sign_languages": ["en"],
            "tokenizer": str(tokenizer),
            "train_ds": loader,
            "validation_ds": {**loader, "shuffle": False},
            "test_ds": {"visual_dir": "???", "json_path": "???"},
        },
        "trainer": {
            "epochs": 2,
            "exp_dir": None,
            "exp_name": "${name}",
            "check_val_every_n_epoch": 1,
            "test": dict(decoding_strategy="beam", max_length=6, temperature=1.0, top_p=0.8, top_k=None)
            | dict(beam_width=2, limit_batches=None),
            "checkpoint_callback_params": {"monitor": "val_loss", "save_top_k": 1},
        },
        "hydra": {"run": {"dir": "${trainer.exp_dir}/${trainer.exp_name}"}, "job": {"chdir": True}},
    }
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_perceiver_captioner_commands_run_unchanged(tmp_path, call):
    config = write_perceiver_config(tmp_path / "config", write_json_tokenizer(tmp_path / "tokenizer"))
    exp_dir = tmp_path / "experiments"
    data = {
        split: write_coco(tmp_path / split, count, seed=count)
        for split, count in (("train", 8), ("val", 4), ("test", 3))
    }
    printed = call(
        f"--config-path={config}",
        "--config-name=config.yaml",
        "name=EXP",
        "mode=train",
        f"dataset.train_ds.visual_dir={data['train'][0]}",
        f"dataset.train_ds.json_path={data['train'][1]}",
        f"dataset.validation_ds.visual_dir={data['val'][0]}",
        f"dataset.validation_ds.json_path={data['val'][1]}",
        f"trainer.exp_dir={exp_dir}",
    )
    assert printed == "", "only results are printed on stdout"
    run = exp_dir / "EXP"
    assert (run / "checkpoints" / "index.json").is_file()
    everything = contents(tmp_path)
    printed = call(
        f"--config-path={config}",
        "--config-name=config.yaml",
        "name=EXP",
        "mode=test",
        f"pretrained_name={next((run / 'checkpoints').glob('step-*'))}",
        f"dataset.test_ds.visual_dir={data['test'][0]}",
        f"dataset.test_ds.json_path={data['test'][1]}",
        f"trainer.exp_dir={exp_dir}",
    )
    rows = rows_of(run / "test" / "predictions.jsonl")
    assert [row["id"] for row in rows] == ["10", "11", "12"]
    assert all(row["emotion"] is None and len(row["references"]) == 5 for row in rows)
    metrics = json.loads((run / "test" / "metrics.json").read_text())
    assert metrics["decoding"]["beam_width"] == 2 and metrics["emotion"] is None
    first_words = [line.split()[0] for line in printed.splitlines() if line.strip()]
    shown = [word for word in first_words if word in metrics["captions"]]
    assert shown[: len(metrics["captions"])] == [*metrics["captions"]], "the other tables follow"
    new = contents(tmp_path).keys() - everything.keys()
    names = ("predictions.jsonl", "metrics.json", "per_image.jsonl", "report.html")
    assert new == {f"experiments/EXP/test/{name}" for name in names}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config",
        "experiments",
        "test",
        "tokenizer",
        "train",
        "val",
    ]


# --- real paintings --------------------------------------------------------------------------------------------------


def test_real_paintings_end_to_end(shared_data, tmp_path):
    """90 paintings with real annotations, GPT-2's tokenizer and a real lexicon; small backbones."""
    paintings = shared_data / "paintings"
    keys: dict[str, object] = {f"model.{part}.{key}": v for part, keys in PARTS.items() for key, v in keys.items()}
    keys |= {"preset": "none", "name": "paintings", "trainer.exp_dir": tmp_path, "trainer.device": "cpu"}
    keys |= {"dataset.name": "artemis", "dataset.tokenizer": shared_data / "gpt2_bpe", "dataset.max_length": 30}
    keys |= {"dataset.vad_lexicon": shared_data / "vad" / "GlasgowNorms.csv", "dataset.texts_per_image": 1}
    for split, file in (("train", "train"), ("validation", "val"), ("test", "test")):
        files = {"visual_dir": paintings / "wikiart", "json_path": paintings / f"artEmisX_{file}.json"}
        files |= {"batch_size": 8, "num_workers": 0}
        keys |= {f"dataset.{split}_ds.{key}": value for key, value in files.items()}
    keys |= {"model.text.trainable": True, "model.optimizer.lr": 3e-3, "trainer.epochs": 2}
    keys |= {"trainer.limit_train_batches": 4}
    keys |= {"trainer.num_validation_images": 2, "trainer.test.max_length": 8, "trainer.test.beam_width": 2}
    run_mode("train", keys)
    run = tmp_path / "paintings"
    validations = [row for row in rows_of(run / "metrics.jsonl") if "validation/loss" in row]
    for figure in ("epoch/loss", "validation/loss", "validation/loss_caption"):
        assert validations[1][figure] < validations[0][figure], figure
    assert not (run / "skipped.jsonl").exists()
    run_mode("test", {"pretrained_name": run})
    rows = rows_of(run / "test" / "predictions.jsonl")
    assert len(rows) == 9
    page = (run / "test" / "report.html").read_text(encoding="utf-8")
    shown = sum(Path(row["image"]).stem in page for row in rows)
    assert 6 <= shown <= page.count("data:image/jpeg;base64,"), "the page shows a selection"
    painting = Path(rows[0]["image"])
    run_mode("predict", {"pretrained_name": run, "image": painting, "emotion": "contentment"})
    (row,) = json.loads((run / "predict" / "predictions.json").read_text())
    assert row["emotion"] == "contentment" and row["image"] == str(painting.resolve())
    assert painting.stem in (run / "predict" / "report.html").read_text(encoding="utf-8")


def test_checkpoint_without_a_newer_key(run, keys):
    for path in run.glob("checkpoints/*/config.yaml"):
        config = OmegaConf.load(path)
        del config.dataset.max_pixels
        OmegaConf.save(config, path)
        (path.parent / "SHA256SUMS").unlink()
    run_mode("test", {"preset": "none", "pretrained_name": run, "trainer.device": "cpu"})
    assert len(rows_of(run / "test" / "predictions.jsonl")) == 5


def test_table_of_ones_own_trains_and_tests(keys, tmp_path):
    def table(split: str) -> Path:
        entries = json.loads(Path(keys[f"dataset.{split}_ds.json_path"]).read_text()).values()
        rows = [
            {"image": entry["image_name"], "text": text, "emotion": emotion}
            for entry in entries
            for text, emotion in zip(entry["explanations"], entry["emotions"], strict=True)
        ]
        path = tmp_path / f"{split}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return path

    tables = {f"dataset.{split}_ds.json_path": table(split) for split in ("train", "validation", "test")}
    changes = {**keys, **tables, "dataset.name": "table", "trainer.exp_dir": tmp_path, "name": "own"}
    run_mode("train", changes)
    run_mode("test", {"preset": "none", "pretrained_name": tmp_path / "own", "trainer.device": "cpu"})
    metrics = json.loads((tmp_path / "own" / "test" / "metrics.json").read_text())
    assert metrics["images"] == 5 and metrics["emotion"] is not None


def test_image_beyond_max_pixels_is_skipped(run, capsys):
    keys = {"preset": "none", "pretrained_name": run, "trainer.device": "cpu"}
    run_mode("test", {**keys, "dataset.max_pixels": 1600})
    with pytest.raises(UserError, match="none of its 5 images could be read"):
        run_mode("test", {**keys, "dataset.max_pixels": 1599})
    assert "too many pixels (40 x 40; the limit is 1,599)" in capsys.readouterr().err
