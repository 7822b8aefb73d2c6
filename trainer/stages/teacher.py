"""stage=teacher: fine-tune an image classifier on the annotators' shares, and write its logits of every image.

RUN/logits.jsonl   logits of all splits, from which stage=student learns
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from common.config.rules import SHARDS
from data.loaders import drop_empty_batches, make_loader
from data.samples import Samples
from data.schema import Batch, Skipped
from data.views import ViewDataset
from model.expert.teacher import build_teacher
from trainer.runs.checkpoint import best_of, load_network
from trainer.runs.console import print_status
from trainer.runs.logits import LOGITS, TEACHER, complete_logits, digests_of
from trainer.runs.retention import digest_of
from trainer.runs.seen import seen_in
from trainer.runs.start import run_lock
from trainer.runs.state import seed_everything
from trainer.setup.device import make_accelerator
from trainer.setup.head_features import with_feature_cache
from trainer.setup.ingredients import file_digest, image_digests
from trainer.setup.loading import GATE, load_samples
from trainer.setup.stage_settings import stage_config, stage_folder
from trainer.stages.classifier import ClassifierStage, ClassifierTask, labelled_samples
from trainer.stages.run_stage import SPLITS, Loader, Stage, run_stage


def train_teacher(config: DictConfig) -> None:
    """Train into trainer.exp_dir/NAME-teacher; raises the errors of run_stage."""
    seed_everything(config.seed)
    run, config, accelerator = (
        stage_folder(config, "teacher"),
        stage_config(config, "teacher"),
        make_accelerator(config),
    )
    with run_lock(run) if accelerator.is_main_process else nullcontext():
        stage = run_stage(config, run, accelerator, lambda: TeacherStage(config), named=False)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            network = stage.task.network

            def logits(batch: Batch) -> Tensor:
                """Average over each image and its mirror image."""
                frames = batch.frames[:, 0]
                return (network(frames).float() + network(frames.flip(-1)).float()) / 2

            write_logits(config, run, accelerator, stage, logits)


class AnyTeacher(Stage, Protocol):
    """A stage whose logits a student can learn."""

    def loader(self, split: str, samples: Samples) -> Loader:
        """Return a loader of these images, with the settings of dataset.SPLIT."""


class TeacherStage(ClassifierStage):
    """See trainer.stages.run_stage.Stage."""

    def __init__(self, config: DictConfig) -> None:
        skipped: list[Skipped] = []
        samples, settings = labelled_samples(config, skipped), config.expert.teacher
        network, self.preprocess = build_teacher(
            name=settings.name,
            classes=len(samples["train_ds"].labels),
            pretrained=settings.pretrained,
            weights=settings.weights,
            config=OmegaConf.to_container(settings.config) if settings.config is not None else None,
            image_size=settings.image_size,
        )
        ingredients = image_digests(config, samples)
        if settings.weights is not None:
            ingredients["expert.teacher.weights"] = file_digest(settings.weights)
        task = ClassifierTask(network, seen=seen_in(samples["train_ds"]))
        super().__init__(config, task, name=settings.name, samples=samples, skipped=skipped, ingredients=ingredients)

    def loaders(self, accelerator: Accelerator) -> list[Loader]:
        return [self.loader(split, self.samples[split], processes=accelerator.num_processes) for split in SPLITS]

    def loader(self, split: str, samples: Samples, *, processes: int = 1) -> Loader:
        """Load random crops for training, and whole images of every other split."""
        files, training = self.config.dataset[split], split == "train_ds"
        views = ViewDataset(
            samples,
            preprocess=self.preprocess,
            seed=self.config.seed,
            max_pixels=self.config.dataset.max_pixels,
            smallest_crop=self.config.expert.teacher.smallest_crop if training else None,
        )
        shuffle, workers = training and files.shuffle, files.num_workers
        return make_loader(
            views, batch_size=files.batch_size, num_workers=workers, shuffle=shuffle, processes=processes
        )


def write_logits(
    config: DictConfig, run: Path, accelerator: Accelerator, stage: AnyTeacher, logits: Callable[[Any], Tensor]
) -> None:
    """Write RUN/logits.jsonl with the best checkpoint.

    Args:
        logits: a batch of `stage.loader` on the device → (B, C).
    """
    checkpoint, network = best_of(run), stage.task.network
    load_network(network, stage.task.state(), checkpoint.folder / "model.safetensors")
    network.to(accelerator.device).eval()

    @torch.no_grad()
    def compute(batch: Any) -> dict[str, Tensor]:
        with accelerator.autocast():
            return {TEACHER: logits(batch.to(accelerator.device)).float()}

    def loader(samples: Samples) -> Iterable[Any]:
        return drop_empty_batches(stage.loader("validation_ds", samples)[0], [], strict=False)

    of, cache = digest_of(checkpoint.folder / "model.safetensors"), with_feature_cache(config).dataset.feature_cache
    for split, samples in {**stage.samples, **other_images(config)}.items():
        what, digests = f"logits of the teacher, {split}", digests_of(samples, cache)
        complete_logits(run / LOGITS, samples, digests, compute, of=of, loader=loader, what=what)
    print_status(f"logits of every image: {run / LOGITS}")


def other_images(config: DictConfig) -> dict[str, Samples]:
    """Return the splits outside training and validation: that of the gate, and the test set if there is one."""
    splits = [GATE] if config.dataset.gate_split else []
    if config.dataset.test_ds["json_path" if config.dataset.name == SHARDS else "visual_dir"] is not None:
        splits.append("test_ds")
    return {split: load_samples(config, split, []) for split in splits}
