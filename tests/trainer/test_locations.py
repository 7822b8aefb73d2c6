"""A run works from any working directory; a wrong path of a lexicon is reported before weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from common.errors import UserError
from tests.helpers.tiny import run_mode, write_pictures, write_splits
from trainer.setup.locations import make_absolute


def test_a_run_trained_with_relative_paths_predicts_elsewhere(tmp_path: Path, monkeypatch) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    keys = write_splits(home, train=4, val=4)
    elsewhere.mkdir()
    monkeypatch.chdir(home)
    relative = {
        key: Path(value).relative_to(home) if isinstance(value, Path) and key != "trainer.exp_dir" else value
        for key, value in keys.items()
    }
    assert str(relative["dataset.vad_lexicon"]) == "lexicon.csv"
    run_mode("train", {**relative, "name": "mine", "model.vad.enabled": True})
    moved = {**relative, "dataset.feature_cache": "cache", "name": "cached", "trainer.resume": "auto"}
    run_mode("train", moved)
    run_mode("train", {**moved, "trainer.epochs": 2})  # the cache exists now, and the configuration is the same
    write_pictures(elsewhere / "pictures", 2)
    monkeypatch.chdir(elsewhere)
    run_mode("predict", {"pretrained_name": home / "runs/mine", "image": "pictures", "trainer.device": "cpu"})
    assert len(json.loads((home / "runs/mine/predict/predictions.json").read_text())) == 2


def test_names_on_the_hub_and_interpolations_stay(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    config = OmegaConf.create(
        {
            "dataset": {
                "root": "somewhere", "vad_lexicon": None, "tokenizer": "gpt2", "facts": "${dataset.root}/facts.json",
                "train_ds": {"visual_dir": "images", "json_path": "missing.json"},
            },
            "model": {"vision": {"pretrained_name": "data/demo/backbones/clip"}, "text": {"pretrained_name": "gpt2"}},
        }
    )  # fmt: skip
    make_absolute(config)
    plain = OmegaConf.to_container(config)
    assert plain["dataset"]["root"] == str(tmp_path / "somewhere")
    assert plain["dataset"]["facts"] == "${dataset.root}/facts.json" and plain["dataset"]["tokenizer"] == "gpt2"
    assert plain["dataset"]["train_ds"] == {"visual_dir": str(tmp_path / "images"), "json_path": "missing.json"}
    assert plain["model"]["vision"]["pretrained_name"] == "data/demo/backbones/clip"


def test_a_wrong_lexicon_is_reported_before_the_network_is_built(tmp_path: Path) -> None:
    keys = {**write_splits(tmp_path), "model.vad.enabled": True, "dataset.vad_lexicon": tmp_path / "missing.txt"}
    with pytest.raises(UserError, match=r"missing\.txt: there is no such VAD lexicon"):
        run_mode("train", {**keys, "name": "mine", "model.text.config": {"n_layer": "none"}})
