"""stage=teacher: an image classifier, fine-tuned whole on the annotators' shares; its logits for every picture.

RUN/logits.jsonl   of all splits; what stage=student learns from
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from data.loaders import make_loader, usable
from data.samples import Samples
from data.schema import Batch, Skipped
from data.views import ViewDataset
from errors import UserError
from model.expert.teacher import build_teacher
from trainer.checkpoint import Checkpoint, find_in_run, load_state
from trainer.expert.classifier import TeacherTask
from trainer.expert.logits import LOGITS, TEACHER, complete_logits
from trainer.expert.seen import seen_in
from trainer.expert.settings import settled, stage_folder
from trainer.loading import GATE, load_samples
from trainer.record import of_file, of_images
from trainer.setup import make_accelerator
from trainer.shelf import digest_of
from trainer.stages.classifier import ClassifierStage, labelled_samples
from trainer.start import alone
from trainer.state import seed_everything
from trainer.training import SPLITS, Loader, carry_out, say


def train_teacher(config: DictConfig) -> None:
    """Into trainer.exp_dir/NAME-teacher; raises what trainer.training.carry_out does."""
    seed_everything(config.seed)
    run, config, accelerator = stage_folder(config, "teacher"), settled(config, "teacher"), make_accelerator(config)
    with alone(run) if accelerator.is_main_process else nullcontext():
        stage: list[TeacherStage] = []

        def gather() -> TeacherStage:
            stage.append(TeacherStage(config))
            return stage[0]

        carry_out(config, run, accelerator, gather, named=False)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_logits(config, run, accelerator, stage[0])


class TeacherStage(ClassifierStage):
    """See trainer.training.Stage."""

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
        made_of = of_images(config, samples)
        if settings.weights is not None:
            made_of["expert.teacher.weights"] = of_file(settings.weights)
        task = TeacherTask(network, seen=seen_in(samples["train_ds"]))
        super().__init__(config, task, name=settings.name, samples=samples, skipped=skipped, made_of=made_of)

    def loaders(self, accelerator: Accelerator) -> list[Loader]:
        return [self.loader(split, self.samples[split], processes=accelerator.num_processes) for split in SPLITS]

    def loader(self, split: str, samples: Samples, *, processes: int = 1) -> Loader:
        """Crops to train on, whole pictures of every other split."""
        files, training = self.config.dataset[split], split == "train_ds"
        views = ViewDataset(
            samples,
            preprocess=self.preprocess,
            seed=self.config.seed,
            max_pixels=self.config.dataset.max_pixels,
            smallest_crop=self.config.expert.teacher.smallest_crop if training else None,
        )
        shuffle = training and files.shuffle
        return make_loader(
            views,
            batch_size=files.batch_size,
            num_workers=files.num_workers,
            shuffle=shuffle,
            processes=processes,
        )


def write_logits(config: DictConfig, run: Path, accelerator: Accelerator, stage: TeacherStage) -> None:
    """RUN/logits.jsonl, of the best checkpoint: each picture's and its mirror image's, averaged."""
    checkpoint = best_of(run)
    network = stage.task.network
    load_state(network, stage.task.state(), checkpoint.folder / "model.safetensors")
    network.to(accelerator.device).eval()

    @torch.no_grad()
    def compute(batch: Batch) -> dict[str, Tensor]:
        frames = batch.frames[:, 0].to(accelerator.device)
        with accelerator.autocast():
            return {TEACHER: (network(frames).float() + network(frames.flip(-1)).float()) / 2}

    def loader(samples: Samples) -> Iterable[Batch]:
        return usable(stage.loader("validation_ds", samples)[0], [], strict=False)

    for split, samples in all_images(config).items():
        complete_logits(
            run / LOGITS,
            samples,
            compute,
            of=digest_of(checkpoint.folder / "model.safetensors"),
            loader=loader,
            what=f"logits of the teacher, {split}",
        )
    say(f"logits of every image: {run / LOGITS}")


def best_of(run: Path) -> Checkpoint:
    found = find_in_run(run, prefer="best")
    if found is None:
        raise UserError(f"{run} has no checkpoint")
    return found


def all_images(config: DictConfig) -> dict[str, Samples]:
    """Every image of the data by split: to train on, of the gate alone, to validate on, to test on if there are any."""
    splits = [*SPLITS, GATE] if config.dataset.gate_split else [*SPLITS]
    if config.dataset.test_ds.visual_dir is not None:
        splits.append("test_ds")
    return {split: load_samples(config, split, []) for split in splits}
