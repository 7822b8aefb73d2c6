"""The configuration of an imported run: a preset, and over it what the file decides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from settings import ROOT, check_config


def compose_run(preset: str, settings: Mapping[str, Any], *, run: Path) -> DictConfig:
    """As run.py composes and checks it.

    Args:
        settings: dotted keys of config.yaml.
        run: folder of the run; it says its name, and where trainer.exp_dir is.

    Raises:
        UserError: values that config.yaml's rules do not allow.
    """
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT)):
        config = compose("config", overrides=[f"preset={preset}"])
    everything = {**settings, "name": run.name, "trainer.exp_dir": str(run.parent), "mode": "test"}
    everything["pretrained_name"] = str(run)  # mode=test asks for one, and for no training data
    for key, value in everything.items():
        OmegaConf.update(config, key, value, merge=False)
    check_config(config)
    config.mode, config.pretrained_name = "train", None
    return config
