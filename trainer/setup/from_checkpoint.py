"""Complete the configuration of test and predict from a checkpoint; keys named by the user; output folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from common.config.check import ROOT, groups, leaves
from common.errors import UserError
from common.reading import expanded
from data.cache.feature_cache import MEMO
from data.emotions import EMOTIONS, label_set
from trainer.runs.checkpoint import Checkpoint
from trainer.runs.start import MOVABLE

FROM_CHECKPOINT = ("model", "dataset", "trainer", "expert", "seed", "name")
# Keys whose value may be a repository of the hub: how it begins then, and the file that each such repository has.
FROM_HUB = {
    "model.vision.pretrained_name": ("hf-hub:", "open_clip_config.json"),
    "trainer.test.clip_score.pretrained_name": ("hf-hub:", "open_clip_config.json"),
    "model.text.pretrained_name": ("", "config.json"),
}
PUBLISHED = ("gpt2", "distilgpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


def complete_from_checkpoint(config: DictConfig, checkpoint: Checkpoint) -> DictConfig:
    """The configuration of a test or a prediction: the checkpoint's, under what the user named this time.

    Named are the keys on the command line, in a file of the user's own, and in a preset that was asked for; what
    config.yaml and its default preset say of data and decoding gives way to how the model was trained. The network is
    as the checkpoint has it; only where its frozen weights lie may differ from machine to machine. dataset.labels are
    those of the training, or those that are named; never null.

    Raises:
        UserError: a key of the network on the command line, labels that cannot be, or no lexicon for a network that
            needs one.
    """
    typed = typed_keys()
    named = [*_file_keys(), *typed]
    for key in typed:
        if key.startswith("model.") and key not in MOVABLE:
            raise UserError(f"{key} cannot be changed in mode={config.mode}: the network is as its checkpoint has it")
    merged = config.copy()
    with open_dict(merged):
        for section in FROM_CHECKPOINT:
            if section in checkpoint.config:
                merged[section] = _completed(section, checkpoint.config[section])
        known = merged.dataset.labels or EMOTIONS  # of a checkpoint that knew of no others
        cache = merged.dataset.feature_cache
        if cache is not None and not (expanded(cache) / MEMO).is_file():
            merged.dataset.feature_cache = None  # one that is there is used; where one is made, the user says
        merged.dataset.max_pixels = min(merged.dataset.max_pixels, config.dataset.max_pixels)
        if "dataset.name" in named and config.dataset.name == "emotion_folder" != merged.dataset.name:
            merged.dataset.test_ds.json_path = None  # the annotations of other data
        for key in named:
            OmegaConf.update(merged, key, OmegaConf.select(config, key), merge=True)
        merged.dataset.labels = list(label_set(merged.dataset.labels or known, where="dataset.labels"))
        if "name" in typed:
            merged.trainer.exp_name = config.trainer.exp_name
    _require_wish(merged, checkpoint, named=named)
    if merged.model.vad.enabled and merged.dataset.vad_lexicon is None:
        raise UserError(
            f"the network of {checkpoint.folder} takes in the VAD of words: give dataset.vad_lexicon=FILE, the lexicon "
            "of its training"
        )
    return merged


def _require_wish(config: DictConfig, checkpoint: Checkpoint, *, named: Collection[str]) -> None:
    """Only published weights, and what this machine has already, are taken because a checkpoint names them.

    Raises:
        UserError: it names another repository of the hub, and the user does not.
    """
    for key, (prefix, file) in FROM_HUB.items():
        name = str(OmegaConf.select(config, key))
        repository = name.removeprefix(prefix).partition("@")[0]
        elsewhere = key in named or repository in (*PUBLISHED, "None") or expanded(name).exists()
        if elsewhere or not name.startswith(prefix):
            continue
        try:
            there = try_to_load_from_cache(repository, file)
        except ValueError:  # no name of a repository: the builder says so
            continue
        if not isinstance(there, str):
            raise UserError(
                f"{checkpoint.folder} was trained with {key}={name}, which would be downloaded from the hub: name it "
                f"too if you trust who made it ({key}={name}), or the folder that you have it in"
            )


def _completed(section: str, value: Any) -> Any:
    """A section of a checkpoint's configuration; missing keys have their defaults."""
    if not isinstance(value, DictConfig):
        return value
    return OmegaConf.merge(OmegaConf.load(ROOT / "config.yaml")[section], value)


def typed_keys() -> list[str]:
    """Keys of the command line, without groups such as preset."""
    if not HydraConfig.initialized():
        return []
    keys = [override.partition("=")[0].lstrip("+") for override in HydraConfig.get().overrides.task]
    return [key for key in keys if key not in ("preset", "user")]


def _file_keys() -> list[str]:
    """Keys, outside `model`, of a named preset and of a file of the user's own."""
    if not HydraConfig.initialized():
        return []
    hydra = HydraConfig.get()
    trees = []
    if any(override.startswith("preset=") for override in hydra.overrides.task):
        trees.append(OmegaConf.load(ROOT / "preset" / f"{hydra.runtime.choices.preset}.yaml"))
    if hydra.runtime.choices.get("user"):
        trees.append(ConfigStore.instance().load("user/file.yaml").node)
    keys = [key for tree in trees for key, _ in leaves(OmegaConf.to_container(tree) or {}, groups())]
    named = bool(hydra.runtime.choices.get("user"))  # a preset's name is no wish to write elsewhere
    return [key for key in keys if not key.startswith("model.") and (named or key != "name")]


def output_folder(config: DictConfig, checkpoint: Checkpoint | None = None) -> Path:
    """Folder of the run: where its checkpoint lies, unless the user names another."""
    named = {"name", "trainer.exp_dir", "trainer.exp_name"} & {*typed_keys(), *_file_keys()}
    if checkpoint is not None and not named:
        return checkpoint.run
    return expanded(config.trainer.exp_dir) / str(config.trainer.exp_name)
