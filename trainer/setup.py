"""The configuration settled: device, data, every `auto`, and what a checkpoint has to say of it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from huggingface_hub import try_to_load_from_cache
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from data.demo import write_demo
from data.emotions import EMOTIONS, label_set
from data.feature_cache import MEMO
from data.readers import source_of
from errors import UserError
from foreign import expanded
from launcher import world_size
from progress import progress
from settings import ROOT, defaults, groups, leaves
from trainer.checkpoint import Checkpoint
from trainer.predictor import NOT_FREE
from trainer.sharding import refuse_unknown, unseen

FROM_CHECKPOINT = ("model", "dataset", "trainer", "expert", "seed", "name")
# Keys whose value may be a repository of the hub: how it begins then, and the file that each such repository has.
FROM_HUB = {
    "model.vision.pretrained_name": ("hf-hub:", "open_clip_config.json"),
    "trainer.test.clip_score.pretrained_name": ("hf-hub:", "open_clip_config.json"),
    "model.text.pretrained_name": ("", "config.json"),
}
PUBLISHED = ("gpt2", "distilgpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
FILLING = timedelta(days=1)  # that the other processes of a machine wait while one fills the feature cache
MOVABLE = ("model.vision.pretrained_name", "model.vision.architecture", "model.text.pretrained_name")


def make_accelerator(config: DictConfig) -> Accelerator:
    """Device and precision as configured; the processes of a job wait for one another as long as it says.

    Raises:
        UserError: a device that is not there, a precision that it cannot compute in, or a launcher that wants what
            is not to be had.
    """
    refuse_unknown()
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
    patience = timedelta(minutes=config.trainer.timeout_minutes)
    if config.dataset.feature_cache is not None:
        patience = max(patience, FILLING)
    alone = world_size() == 1
    with unseen():
        accelerator = Accelerator(
            mixed_precision="no" if precision == "fp32" else precision,
            cpu=device == "cpu" or not (alone or torch.accelerator.is_available()),  # else each thinks itself alone
            device_placement=True,
            dataloader_config=DataLoaderConfiguration(even_batches=False),
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # not as the launcher's file has it
            kwargs_handlers=[InitProcessGroupKwargs(timeout=patience)],
        )
    if accelerator.num_processes != world_size():
        raise UserError(
            f"the launcher started {world_size()} processes, which cannot work together on this device "
            f"({accelerator.device.type}): start one, or set trainer.device=cpu"
        )
    return accelerator


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
    own = "dataset.root" in typed_keys() or str(root) == defaults()["dataset.root"]
    if config.mode != "train" and not own and not root.is_dir():
        raise UserError(
            f"the demo is not in {root}, where the checkpoint was trained on it: dataset.root=FOLDER names the folder "
            "that it is in, or is to be painted into"
        )
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


def resolve_auto(config: DictConfig, *, has_emotions: bool, has_texts: bool = True) -> None:
    """Settle, in place, every `auto` that depends on what the data has: emotions, texts beyond their names.

    Raises:
        UserError: a part that is switched on and has nothing to work on.
    """
    model, dataset = config.model, config.dataset
    _require_free_text(config)
    has_lexicon = dataset.vad_lexicon is not None
    dataset.emotions = _settle(dataset.emotions, has_emotions)
    if dataset.emotions and not has_emotions:
        raise UserError(f"dataset.emotions=true, but {dataset.train_ds.json_path} has no emotions")
    dataset.explanations = _settle(dataset.explanations, has_texts)
    if not dataset.explanations:
        _refuse_without_explanations(config)
    model.vad.enabled = _settle(model.vad.enabled, has_lexicon and dataset.explanations)
    if model.vad.enabled and not has_lexicon:
        raise UserError("model.vad.enabled=true needs dataset.vad_lexicon=FILE (word, valence, arousal, dominance)")
    model.contrastive.enabled = _settle(model.contrastive.enabled, dataset.emotions and dataset.explanations)
    if not dataset.emotions:
        _refuse_without_emotions(config)
    model.text.segments = _settle(model.text.segments, model.vad.enabled or model.contrastive.enabled)
    _settle_negatives(model)
    if dataset.texts_per_image == "auto":
        dataset.texts_per_image = 2 if dataset.emotions else 1


def _refuse_without_explanations(config: DictConfig) -> None:
    if not config.dataset.emotions:
        raise UserError(
            f"{source_of(config.dataset, 'train_ds')}: without emotions and without explanations there is nothing to "
            "learn; leave dataset.emotions and dataset.explanations at auto"
        )
    if config.model.architecture == "sevlm":
        raise UserError("model.architecture=sevlm needs explanations; the data has none, or dataset.explanations=false")


def _refuse_without_emotions(config: DictConfig) -> None:
    model, monitor = config.model, config.trainer.checkpoint_callback_params.monitor
    asked_for = {
        "model.contrastive.enabled=true": model.contrastive.enabled,
        "model.emotion_target=histogram": model.emotion_target == "histogram",
        "model.architecture=sevlm": model.architecture == "sevlm",
        "trainer.checkpoint_callback_params.monitor=val_emotion_accuracy": monitor == "val_emotion_accuracy",
    }
    for key, asked in asked_for.items():
        if asked:
            raise UserError(f"{key} needs emotions; the data has none, or dataset.emotions=false")


def _settle_negatives(model: DictConfig) -> None:
    sevlm, contrastive = model.architecture == "sevlm", model.contrastive
    if contrastive.negatives == "auto":
        contrastive.negatives = "states" if sevlm else "read"
    if sevlm and contrastive.negatives == "read":
        raise UserError("model.architecture=sevlm compares states as they are: set model.contrastive.negatives=states")


def _require_free_text(config: DictConfig) -> None:
    if config.trainer.test.emotion_from == "text" and config.model.architecture != "sevlm":
        raise UserError(NOT_FREE)


def _settle(value: bool | str, automatic: bool) -> bool:
    return automatic if value == "auto" else bool(value)


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
