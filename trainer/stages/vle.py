"""The stages of VLE: answers (vle_vqa), matching (vle_itm), regions (vle_pbc), VCR, pre-training, emotions."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader

from common.errors import UserError
from data.pairs import PairBatch
from data.schema import Skipped
from trainer.loop.optim import OPTIMIZERS
from trainer.loop.tracker import Tracker
from trainer.loop.validation import emotion_metrics
from trainer.runs.seen import seen_in
from trainer.runs.start import run_lock
from trainer.runs.state import seed_everything
from trainer.setup.device import make_accelerator
from trainer.setup.from_checkpoint import output_folder
from trainer.setup.ingredients import image_digests
from trainer.stages.run_stage import SPLITS, Loader, run_stage
from trainer.vle.build import build_vle, parameter_groups
from trainer.vle.data import PairData, read_labels, read_source
from trainer.vle.evaluate import evaluate
from trainer.vle.tasks import TASKS, EmotionTask, VleTask


def train_vle(config: DictConfig) -> None:
    """Train into trainer.exp_dir/trainer.exp_name; raises the errors of run_stage."""
    seed_everything(config.seed)
    run, accelerator = output_folder(config), make_accelerator(config)
    with run_lock(run) if accelerator.is_main_process else nullcontext():
        run_stage(config, run, accelerator, lambda: VleStage(config), named=False)


class VleStage:
    """See trainer.stages.run_stage.Stage. A checkpoint is also a folder for `from_pretrained` of model.vle."""

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self.skipped: list[Skipped] = []
        self.splits = {split: read_source(config, split, self.skipped) for split in SPLITS}
        self.samples = {name: split.samples for name, split in self.splits.items()}
        train = self.splits["train_ds"]
        labels, objects = read_labels(config, train)
        network, processor = build_vle(config, labels=labels, objects=objects)
        if config.vle.freeze_towers:
            network.vle.vision_model.requires_grad_(False)
            network.vle.text_model.requires_grad_(False)
        self.task: VleTask = TASKS[config.stage](network, processor, seen_in(train.samples))
        self.ingredients: dict[str, Any] = image_digests(config, self.samples)
        vision = network.config.vision_config
        self.data = PairData(config, processor, vision.image_size // vision.patch_size, labels, objects)

    def describe(self) -> str:
        network = self.task.network
        counts = [
            sum(p.numel() for p in network.parameters() if p.requires_grad is trained) for trained in (True, False)
        ]
        config = network.config
        return (
            f"{type(network).__name__}: {counts[0]:,} trained weights, {counts[1]:,} frozen; pictures of "
            f"{config.vision_config.image_size} pixels, {config.num_hidden_layers} fusion layers"
        )

    def prepare(self) -> None:
        if self.config.trainer.gradient_checkpointing:
            vle = self.task.network.vle
            for tower in (vle.vision_model.vision_model, vle.text_model):
                tower.gradient_checkpointing_enable()

    def loaders(self, accelerator: Accelerator) -> list[Loader]:
        processes = accelerator.num_processes
        return [self.data.loader(self.splits[split], processes=processes) for split in SPLITS]

    def optimizer(self, *, fused: bool) -> torch.optim.Optimizer:
        settings = self.config.model.optimizer
        groups = parameter_groups(self.task.network, self.config)
        return OPTIMIZERS[settings.name](groups, betas=tuple(settings.betas), eps=settings.eps, fused=fused)

    def validator(self, loader: DataLoader[PairBatch], accelerator: Accelerator, tracker: Tracker) -> VleValidator:
        return VleValidator(self.task, loader, self.config.dataset.strict, self.config.trainer.limit_val_batches)


@dataclass(slots=True)
class VleValidator:
    """validation/loss and the task's headline metrics; see trainer.runs.task.AnyValidator."""

    task: VleTask
    loader: DataLoader[PairBatch]
    strict: bool
    limit_batches: int | None

    def measure(
        self, network: nn.Module, accelerator: Accelerator, step: int, skipped: list[Skipped]
    ) -> dict[str, float]:
        loaded = itertools.islice(self.loader, self.limit_batches)
        results, losses = evaluate(self.task, network, loaded, accelerator, skipped=skipped, strict=self.strict)
        if not losses:
            raise UserError("no validation image could be read, or none of them has a text for this stage")
        found = {f"validation/{name}": value for name, value in self.task.headline(results).items()}
        if isinstance(self.task, EmotionTask):
            found |= emotion_metrics(*self.task.table(results), labels=self.task.labels)
        found |= {f"validation/loss_{name}": value for name, value in losses.items()}
        return found | {"validation/loss": sum(self.task.weights[name] * value for name, value in losses.items())}
