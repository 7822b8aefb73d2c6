"""Configuration and record of a checkpoint without the folders of the machine that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common.config.check import default_config, defaults, groups, leaves
from common.reading import BACKBONES, expand_user
from trainer.setup.from_checkpoint import FROM_CHECKPOINT

# Keys about the data, results and other runs of the author, which using the network does not need.
PRIVATE = (
    *("dataset.root", "dataset.feature_cache", "dataset.facts", "trainer.exp_dir", "vle."),
    *(f"dataset.{part}_ds.{key}" for part in ("train", "validation", "test") for key in ("json_path", "visual_dir")),
    *("trainer.test.text_emotion", "trainer.test.vle", "expert.teacher.weights", "expert.student.teacher"),
    "expert.sources",
)
# Keys of files that whoever uses the network gives again: the file's name stays.
LEXICON = "dataset.vad_lexicon"
FILES = ("model.vision.pretrained_name", "model.text.pretrained_name", LEXICON)
OPTIONAL = ("dataset.tokenizer", "trainer.test.clip_score.pretrained_name")  # a checkpoint has its own; not needed


def complete(stored: DictConfig) -> DictConfig:
    """Return the sections of a stored configuration that belong to the network, and defaults for all other keys."""
    config = default_config()
    for section in (FROM_CHECKPOINT | {"stage"}) & stored.keys():
        config[section] = OmegaConf.merge({section: config[section]}, {section: stored[section]})[section]
    OmegaConf.resolve(config)
    return config


def public_config(config: DictConfig) -> DictConfig:
    """Return a copy in which no key names a file or folder of this machine, except by its last part."""
    config = config.copy()
    for key, value in leaves(OmegaConf.to_container(config), groups()):
        if key.startswith(PRIVATE) or (key in OPTIONAL and is_local(value)):
            OmegaConf.update(config, key, defaults()[key], merge=False)
        elif value is not None and key in FILES and (key == LEXICON or is_local(value)):
            OmegaConf.update(config, key, Path(value).name, merge=False)
        else:
            OmegaConf.update(config, key, without_folders(value), merge=False)
    return config


def is_local(value: Any) -> bool:
    """Return whether a value names a file or folder of this machine, and none of EmoScribe's own."""
    if not isinstance(value, str) or Path(value).is_relative_to(BACKBONES):
        return False
    path = expand_user(value)
    return path.is_absolute() or path.exists()


def public_info(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return checkpoint.json without folders and without the list of images that could not be read."""
    made_of = {key: {k: v for k, v in of.items() if k != "path"} for key, of in (info.get("made_of") or {}).items()}
    changes = {"state": {**info["state"], "skipped": []}, **({"made_of": made_of} if made_of else {})}
    return without_folders({**info, **changes})


def without_folders(value: Any) -> Any:
    """Return plain values in which each absolute path is replaced by its last part."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    if isinstance(value, str) and expand_user(value).is_absolute():
        return Path(value).name
    return value
