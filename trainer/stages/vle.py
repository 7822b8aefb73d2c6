"""The stages of VLE: answers (vle_vqa), matching (vle_itm), regions (vle_pbc), VCR, pre-training, emotions."""

from __future__ import annotations

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
from data.samples import Samples
from data.schema import Skipped
from model.vle.encoder import VLEModel
from trainer.loop.optim import OPTIMIZERS
from trainer.loop.tracker import Tracker
from trainer.loop.validation import emotion_metrics
from trainer.runs.seen import seen_in
from trainer.runs.start import run_lock
from trainer.runs.state import seed_everything
from trainer.runtime.processes import first_batches
from trainer.setup.device import make_accelerator
from trainer.setup.from_checkpoint import output_folder
from trainer.setup.ingredients import image_digests
from trainer.stages.run_stage import SPLITS, Loader, run_stage
from trainer.stages.teacher import write_logits
from trainer.vle.build import TASKS, build_vle, parameter_groups
from trainer.vle.data import PairData, Split, read_labels, read_source
from trainer.vle.evaluate import evaluate
from trainer.vle.tasks import EmotionTask, VleTask

FROZEN = {"none": 0, "vision": 1, "towers": 2}  # of image and text tower, for vle.freeze


def train_vle(config: DictConfig) -> None:
    """Train into trainer.exp_dir/trainer.exp_name; raises the errors of run_stage."""
    seed_everything(config.seed)
    run, accelerator = output_folder(config), make_accelerator(config)
    with run_lock(run) if accelerator.is_main_process else nullcontext():
        stage = run_stage(config, run, accelerator, lambda: VleStage(config), named=False)
        accelerator.wait_for_everyone()
        if config.stage == "vle_emotion" and accelerator.is_main_process:  # for expert.student.teacher
            network = stage.task.network
            write_logits(config, run, accelerator, stage, lambda batch: network(**batch.inputs()).logits)


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
        for part in self._fixed(network.vle):
            part.requires_grad_(False)
        self.task: VleTask = TASKS[config.stage](network, processor, seen_in(train.samples))
        self.ingredients: dict[str, Any] = image_digests(config, self.samples)
        vision = network.config.vision_config
        self.data = PairData(config, processor, vision.image_size // vision.patch_size, labels, objects)

    def _fixed(self, encoder: VLEModel) -> list[nn.Module]:
        """Return the parts that are not trained."""
        fixed = [encoder.vision_model, encoder.text_model][: FROZEN[self.config.vle.freeze]]
        if self.config.stage == "vle_pbc":  # no effect on the patches; DDP refuses parameters without a gradient
            fixed += [encoder.cross_modal_text_layers[-1]]
            fixed += [encoder.cross_modal_text_pooler, encoder.cross_modal_image_pooler]
        return fixed

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
                # its name from transformers 5.23 on, where the old one gives a warning
                enable = getattr(tower, "activation_checkpointing_enable", tower.gradient_checkpointing_enable)
                enable()

    def loaders(self, accelerator: Accelerator) -> list[Loader]:
        processes = accelerator.num_processes
        return [self.data.loader(self.splits[split], processes=processes) for split in SPLITS]

    def loader(self, split: str, samples: Samples) -> Loader:
        return self.data.loader(Split(split, samples))

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
        loaded = first_batches(self.loader, self.limit_batches, accelerator)
        results, losses = evaluate(self.task, network, loaded, accelerator, skipped=skipped, strict=self.strict)
        if not losses:
            raise UserError("no validation image could be read, or none of them has a text for this stage")
        found = {f"validation/{name}": value for name, value in self.task.headline(results).items()}
        if isinstance(self.task, EmotionTask):
            found |= emotion_metrics(*self.task.table(results), labels=self.task.labels)
        found |= {f"validation/loss_{name}": value for name, value in losses.items()}
        return found | {"validation/loss": sum(self.task.weights[name] * value for name, value in losses.items())}
