"""A checkpoint of another project, read as weights and settings of this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from common.config.check import ROOT, check_config


@dataclass
class Imported:
    """Weights, and what the run records about them.

    Args:
        preset: preset of the run.
        settings: values from the file that override the preset, by dotted keys of config.yaml.
        weights: by our names; possibly memory-mapped, in any floating-point precision.
        vocabulary: rows of the word embedding, which is the number of tokens that the tokenizer must have.
        tokenizer: its name, folder or file, as in dataset.tokenizer.
        files: the files that were read.
        tokens: required ids of some tokens.
        epoch, step: length of the training.
        facts: further entries about the origin for checkpoint.json.
        remarks: notes for the user.
    """

    preset: str
    settings: dict[str, Any]
    weights: dict[str, Tensor]
    vocabulary: int
    tokenizer: str
    files: list[Path]
    tokens: Mapping[str, int] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def whole_number(value: Any) -> int:
    """Return a count that a training stored, or 0 if it is missing or no such count."""
    return value if type(value) is int and 0 <= value < 1 << 40 else 0


def compose_run(preset: str, settings: Mapping[str, Any], *, run: Path) -> DictConfig:
    """Return the configuration of an imported run, composed and checked as in run.py.

    Args:
        settings: values by dotted keys of config.yaml.
        run: folder of the run, which gives `name` and trainer.exp_dir.

    Raises:
        UserError: a value that config.yaml's rules do not allow.
    """
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT)):
        config = compose("config", overrides=[f"preset={preset}"])
    # mode=test requires a checkpoint, but no training data.
    required = {"name": run.name, "trainer.exp_dir": str(run.parent), "mode": "test", "pretrained_name": str(run)}
    for key, value in {**settings, **required}.items():
        OmegaConf.update(config, key, value, merge=False)
    check_config(config)
    config.mode, config.pretrained_name = "train", None
    return config
