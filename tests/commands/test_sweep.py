"""`--multirun` with Optuna's sweeper, where that is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import run
from tests.helpers.tiny import arguments, write_splits
from trainer.runs.retention import best_first, entries


def values_of(folder: Path) -> dict[str, float]:
    """Return the validation loss of each run in a folder."""
    found = {path.parent.name: best_first(entries(path)) for path in folder.glob("*/checkpoints")}
    return {name: best[0].value for name, best in found.items() if best}


def sweep(keys: dict[str, object], monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "-m", *words, *arguments(keys)])
    monkeypatch.setattr(run, "trained", [])
    monkeypatch.setattr(yaml, "SafeLoader", yaml.CSafeLoader)
    GlobalHydra.instance().clear()
    try:
        run.main()
    finally:
        GlobalHydra.instance().clear()


@pytest.fixture
def keys(tmp_path) -> dict[str, object]:
    return {**write_splits(tmp_path), "mode": "train", "name": "trial"}


def test_a_sweep_names_the_best_run(keys, monkeypatch, capsys):
    sweep(keys, monkeypatch, "model.optimizer.lr=1e-6,1e-2")
    values = values_of(keys["trainer.exp_dir"])
    best = min(values, key=values.get)
    assert values.keys() == {"trial_0", "trial_1"}
    assert f"the best of 2 runs: {best}, val_loss {values[best]:.4f}" in capsys.readouterr().err


def test_optuna_minimizes_the_monitored_value(keys, monkeypatch, capsys):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install hydra-optuna-sweeper")
    optuna = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1"]
    optuna += ["hydra.sweeper.sampler.seed=1", "model.optimizer.lr=choice(1e-3,1e-2,1e30)"]  # the last learns NaN
    sweep(keys, monkeypatch, *optuna)
    values = values_of(keys["trainer.exp_dir"])
    result = OmegaConf.load(keys["trainer.exp_dir"] / "optimization_results.yaml")
    best = min(values, key=values.get)
    printed = capsys.readouterr().err
    assert values.keys() == {"trial_0", "trial_1"} and "error: " in printed, "the last trial failed, the others did not"
    assert result.best_value == values[best]
    assert OmegaConf.load(keys["trainer.exp_dir"] / best / "config.yaml").model.optimizer.lr == float(
        result.best_params["model.optimizer.lr"]
    )
    assert f"the best of 2 runs: {best}" in printed
