"""Complete the configuration of test and predict from a checkpoint; find the user's own keys and the output folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from common.config.check import ROOT, default_config, defaults, groups, leaves
from common.config.rules import DATASETS, RATINGS, VLE_STAGES, VLM
from common.errors import UserError
from common.reading import GPT2_NAMES, expand_user
from data.cache.feature_cache import MEMO
from data.emotions import EMOTIONS, label_set
from data.languages import language_name
from trainer.runs.checkpoint import Checkpoint
from trainer.runs.start import RELOCATABLE_KEYS

FROM_CHECKPOINT = {"model", "dataset", "trainer", "expert", "vle", "vlm", "seed", "name"}
TOWERS = ("model.vision.pretrained_name", "trainer.test.clip_score.pretrained_name")


def complete_from_checkpoint(
    config: DictConfig, checkpoint: Checkpoint, *, keys: Collection[str] | None = None
) -> DictConfig:
    """Return the configuration of a test or prediction: the checkpoint's, overridden by the user's own keys.

    These are the keys on the command line, in the user's configuration file, and in a preset that was selected
    explicitly; the defaults of config.yaml do not override the checkpoint. The network is the checkpoint's; only the
    location of its frozen weights can change. dataset.labels is never null.

    Args:
        keys: the user's own keys, if they do not come from a command line.

    Raises:
        UserError: a key of the network on the command line, invalid labels, a language that it does not write, or no
            lexicon for a network that needs one.
    """
    typed = typed_keys() if keys is None else keys
    named = [*(_file_keys() if keys is None else ()), *typed]
    if fixed := [key for key in typed if key.startswith("model.") and key not in RELOCATABLE_KEYS]:
        raise UserError(f"{fixed[0]} cannot be changed: the checkpoint defines the network")
    merged, original = config.copy(), default_config()
    with open_dict(merged):
        for section in FROM_CHECKPOINT & checkpoint.config.keys():
            stored = checkpoint.config[section]
            merged[section] = OmegaConf.merge(original[section], stored) if isinstance(stored, DictConfig) else stored
        merged.vle.llm = config.vle.llm  # only the user decides where questions are sent
        stored_labels = merged.dataset.labels or EMOTIONS
        cache = merged.dataset.feature_cache
        if cache is not None and not (expand_user(cache) / MEMO).is_file():
            merged.dataset.feature_cache = None  # an existing cache is used, but only the user can create one
        merged.dataset.max_pixels = min(merged.dataset.max_pixels, config.dataset.max_pixels)
        merged.dataset.follow_links = False  # a checkpoint from somebody else cannot decide this
        _forget_other_data(merged, config.dataset.name if "dataset.name" in named else None, named)
        for key in named:
            OmegaConf.update(merged, key, OmegaConf.select(config, key), merge=True)
        merged.dataset.labels = list(label_set(merged.dataset.labels or stored_labels, where="dataset.labels"))
        if "name" in typed:
            merged.trainer.exp_name = config.trainer.exp_name
    merged.stage = checkpoint.config.get("stage", "caption")
    _require_usable(merged, checkpoint, named)
    return merged


def _forget_other_data(merged: DictConfig, kind: str | None, named: Collection[str]) -> None:
    """Remove the checkpoint's files and scale if the user names another kind of data set, or other ratings."""
    if kind == "emotion_folder" != merged.dataset.name:
        merged.dataset.test_ds.json_path = None
    if kind == RATINGS != merged.dataset.name:
        for part in DATASETS:
            OmegaConf.select(merged, part).update({"json_path": None, "visual_dir": None})
    if "dataset.test_ds.json_path" in named:
        merged.dataset.rating_scale = None


def _require_usable(merged: DictConfig, checkpoint: Checkpoint, named: Collection[str]) -> None:
    """Raise UserError if weights need the user's consent, or a network lacks the language or its lexicon."""
    if merged.stage in VLE_STAGES:
        return
    if merged.stage == VLM:
        _require_consent(merged, checkpoint, ("vlm.pretrained_name",), named=named)
        return
    with_texts = () if merged.stage == RATINGS else ("model.text.pretrained_name",)
    _require_consent(merged, checkpoint, (*TOWERS, *with_texts), named=named)
    merged.language = _language(merged.language, merged.dataset.languages or (), checkpoint)
    if merged.model.vad.enabled and merged.dataset.vad_lexicon is None:
        raise UserError(
            f"the network of {checkpoint.folder} needs the VAD of words: give dataset.vad_lexicon=FILE, the lexicon "
            "of its training"
        )


def _language(name: str | None, written: Collection[str], checkpoint: Checkpoint) -> str | None:
    """Return the name of a language as in dataset.languages, or None; raises UserError if it is not one of these."""
    if name is None or language_name(name) in written:
        return name and language_name(name)
    known = f"writes {', '.join(written)}" if written else "was trained on one language"
    raise UserError(f"language={name}: the network of {checkpoint.folder} {known}")


def _require_consent(
    config: DictConfig, checkpoint: Checkpoint, keys: Collection[str], *, named: Collection[str]
) -> None:
    """Raise UserError if the checkpoint, but not the user, names weights that are neither published nor cached."""
    for key in keys:
        name = OmegaConf.select(config, key)
        if key in named or name is None or expand_user(name).exists() or (found := _repository(key, name)) is None:
            continue
        try:
            cached = try_to_load_from_cache(*found)
        except ValueError:  # not the name of a repository, which the builder reports
            continue
        if not isinstance(cached, str):
            raise UserError(
                f"{checkpoint.folder} was trained with {key}={name}, which would be downloaded from the hub: name it "
                f"too if you trust its author ({key}={name}), or name the folder that holds it"
            )


def _repository(key: str, name: str) -> tuple[str, str] | None:
    """Return the repository of the hub that a name stands for, and a file that it has; None for published weights."""
    if key not in TOWERS:
        return None if name in GPT2_NAMES else (name, "config.json")
    from model.weights.clip import CLIP_CONFIG, is_hub_name  # imports open_clip

    repository = name.removeprefix("timm/").removeprefix("hf-hub:").partition("@")[0]
    if "hf-hub:" in name:
        return repository, "config.json" if name.startswith("timm/") else CLIP_CONFIG
    return (name, "config.json") if not name.startswith("timm/") and is_hub_name(name) else None


def typed_keys() -> list[str]:
    """Return the keys of the command line, without the groups preset and user."""
    if not HydraConfig.initialized():
        return []
    keys = [override.partition("=")[0].lstrip("+") for override in HydraConfig.get().overrides.task]
    return [key for key in keys if key not in ("preset", "user")]


def _file_keys() -> list[str]:
    """Return the keys, outside `model`, of a preset on the command line and of the user's configuration file."""
    if not HydraConfig.initialized():
        return []
    hydra = HydraConfig.get()
    trees, own_file = [], bool(hydra.runtime.choices.get("user"))
    if any(override.startswith("preset=") for override in hydra.overrides.task):
        trees += _preset_trees(hydra.runtime.choices.preset)
    if own_file:
        trees.append(ConfigStore.instance().load("user/file.yaml").node)
    keys = [key for tree in trees for key, _ in leaves(OmegaConf.to_container(tree) or {}, groups())]
    # A preset's `name` does not select the output folder.
    return [key for key in keys if not key.startswith("model.") and (own_file or key != "name")]


def _preset_trees(name: str) -> list[DictConfig]:
    """Return the content of a preset and of those that it inherits."""
    tree = OmegaConf.load(ROOT / "preset" / f"{name}.yaml")
    inherited = [parent for parent in tree.pop("defaults", ()) if parent != "_self_"]
    return [tree, *(other for parent in inherited for other in _preset_trees(parent))]


def output_folder(config: DictConfig, checkpoint: Checkpoint | None = None) -> Path:
    """Return the folder of the run: the checkpoint's, unless the user names another.

    For a checkpoint from the hub, it is trainer.exp_dir/NAME: nothing is written into the hub's cache.
    """
    named = {"name", "trainer.exp_dir", "trainer.exp_name"} & {*typed_keys(), *_file_keys()}
    if checkpoint is not None and checkpoint.repository is not None:
        root = config.trainer.exp_dir if "trainer.exp_dir" in named else defaults()["trainer.exp_dir"]
        own = named - {"trainer.exp_dir"}
        return expand_user(root) / str(config.trainer.exp_name if own else checkpoint.repository.rpartition("/")[2])
    if checkpoint is not None and not named:
        return checkpoint.run
    return expand_user(config.trainer.exp_dir) / str(config.trainer.exp_name)
