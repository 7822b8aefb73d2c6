"""A checkpoint of another project as weights and settings of this one, before it is written as a run."""

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
        preset: the preset that the run is made from.
        settings: dotted keys of config.yaml that the file decides, over the preset.
        weights: by our names; they may still lie in the file, and in any floating-point precision.
        vocabulary: rows of the word embedding: tokens that the tokenizer must have.
        tokens: ids that the tokenizer must give to some of them.
        tokenizer: where it is: name, folder or file, as dataset.tokenizer takes it.
        epoch, step: how far it was trained.
        files: all that was read.
        facts: what checkpoint.json says of the origin besides.
        remarks: what the user should know.
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
    """A count as a training stored it; 0 where it did not."""
    return value if type(value) is int and 0 <= value < 1 << 40 else 0


def compose_run(preset: str, settings: Mapping[str, Any], *, run: Path) -> DictConfig:
    """Return the configuration of an imported run, as run.py composes and checks it.

    Args:
        settings: dotted keys of config.yaml.
        run: folder of the run; `name` and trainer.exp_dir follow from it.

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
