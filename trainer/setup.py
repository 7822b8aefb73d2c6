"""The configuration settled: device, data, every `auto`, and what a checkpoint has to say of it."""

from __future__ import annotations

import contextlib
import itertools
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from data.demo import write_demo
from errors import UserError
from progress import progress
from settings import ROOT, groups, leaves
from trainer.checkpoint import Checkpoint

FROM_CHECKPOINT = ("model", "dataset", "trainer", "seed", "name")
MOVABLE = ("model.vision.pretrained_name", "model.vision.architecture", "model.text.pretrained_name")


def make_accelerator(config: DictConfig) -> Accelerator:
    """Device and precision as configured.

    Raises:
        UserError: a device that is not there, or a precision that it cannot compute in.
    """
    device, precision = config.trainer.device, config.trainer.precision
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("trainer.device=cuda, but torch sees no CUDA device here; set trainer.device=cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("trainer.device=mps, but torch sees no Apple GPU here; set trainer.device=cpu")
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if precision == "auto":
        precision = best_precision() if on_gpu else "fp32"
    if precision == "fp16" and not on_gpu:
        raise UserError("trainer.precision=fp16 needs a CUDA device; on this one take fp32 or bf16")
    AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier run of the same sweep, in this process
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))  # while one process fills the feature cache
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=device == "cpu",
        device_placement=True,
        dataloader_config=DataLoaderConfiguration(even_batches=False),
        kwargs_handlers=[patience] if config.dataset.feature_cache is not None else None,
    )


def best_precision() -> str:
    """bf16 where the GPU computes in it, else fp16 (an RTX 2080 Ti)."""
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def prepare_data(config: DictConfig) -> None:
    """Write the demo's data where it is asked for and not there yet.

    Raises:
        UserError: the demo is asked for with somebody's own files.
    """
    if config.dataset.name != "demo":
        return
    root = Path(config.dataset.root)
    for split, key in itertools.product(("train_ds", "validation_ds", "test_ds"), ("visual_dir", "json_path")):
        path = config.dataset[split][key]
        if path is not None and not Path(path).resolve().is_relative_to(root.resolve()):
            raise UserError(
                f"dataset.{split}.{key}={path} is not the demo's: name the data, such as preset=artemis_v1 or "
                "preset=coco, or dataset.name=artemis"
            )
    with contextlib.ExitStack() as stack:
        bars: list[tqdm] = []  # none where the pictures are there already

        def advance(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(progress(total, f"painting the demo into {root}", unit="picture")))
            bars[0].update(done - bars[0].n)

        write_demo(root, num_train=config.dataset.demo_images, progress=advance)


def resolve_auto(config: DictConfig, *, has_emotions: bool) -> None:
    """Settle, in place, every `auto` that depends on what the data has.

    Raises:
        UserError: a part that is switched on and has nothing to work on.
    """
    model, dataset = config.model, config.dataset
    has_lexicon = dataset.vad_lexicon is not None
    dataset.emotions = _settle(dataset.emotions, has_emotions)
    if dataset.emotions and not has_emotions:
        raise UserError(f"dataset.emotions=true, but {dataset.train_ds.json_path} has no emotions")
    model.vad.enabled = _settle(model.vad.enabled, has_lexicon)
    if model.vad.enabled and not has_lexicon:
        raise UserError("model.vad.enabled=true needs dataset.vad_lexicon=FILE (word, valence, arousal, dominance)")
    model.contrastive.enabled = _settle(model.contrastive.enabled, dataset.emotions)
    if model.contrastive.enabled and not dataset.emotions:
        raise UserError("model.contrastive.enabled=true needs emotions; the data has none, or dataset.emotions=false")
    if config.trainer.checkpoint_callback_params.monitor == "val_emotion_accuracy" and not dataset.emotions:
        raise UserError("trainer.checkpoint_callback_params.monitor=val_emotion_accuracy needs data with emotions")
    model.text.segments = _settle(model.text.segments, model.vad.enabled or model.contrastive.enabled)
    if not dataset.emotions and model.emotion_target == "histogram":
        raise UserError("model.emotion_target=histogram needs emotions; the data has none, or dataset.emotions=false")
    if not dataset.emotions and model.architecture == "sevlm":
        raise UserError("model.architecture=sevlm needs emotions; the data has none, or dataset.emotions=false")
    if dataset.texts_per_image == "auto":
        dataset.texts_per_image = 2 if dataset.emotions else 1


def _settle(value: bool | str, automatic: bool) -> bool:
    return automatic if value == "auto" else bool(value)


def complete_from_checkpoint(config: DictConfig, checkpoint: Checkpoint) -> DictConfig:
    """The configuration of a test or a prediction: the checkpoint's, under what the user named this time.

    Named are the keys on the command line, in a file of the user's own, and in a preset that was asked for; what
    config.yaml and its default preset say of data and decoding gives way to how the model was trained. The network is
    as the checkpoint has it; only where its frozen weights lie may differ from machine to machine.

    Raises:
        UserError: a key of the network on the command line, or no lexicon for a network that needs one.
    """
    typed = _typed_keys()
    for key in typed:
        if key.startswith("model.") and key not in MOVABLE:
            raise UserError(f"{key} cannot be changed in mode={config.mode}: the network is as its checkpoint has it")
    merged = config.copy()
    with open_dict(merged):
        for section in FROM_CHECKPOINT:
            merged[section] = _completed(section, checkpoint.config[section])
        for key in [*_file_keys(), *typed]:
            OmegaConf.update(merged, key, OmegaConf.select(config, key), merge=True)
        if "name" in typed:
            merged.trainer.exp_name = config.trainer.exp_name
    if merged.model.vad.enabled and merged.dataset.vad_lexicon is None:
        raise UserError(
            f"the network of {checkpoint.folder} takes in the VAD of words: give dataset.vad_lexicon=FILE, the lexicon "
            "of its training"
        )
    return merged


def _completed(section: str, value: Any) -> Any:
    """A section of a checkpoint; keys that are younger than it have their defaults."""
    if not isinstance(value, DictConfig):
        return value
    return OmegaConf.merge(OmegaConf.load(ROOT / "config.yaml")[section], value)


def _typed_keys() -> list[str]:
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
    named = {"name", "trainer.exp_dir", "trainer.exp_name"} & {*_typed_keys(), *_file_keys()}
    if checkpoint is not None and not named:
        return checkpoint.run
    return Path(config.trainer.exp_dir).expanduser() / str(config.trainer.exp_name)
