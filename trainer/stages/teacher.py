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
from model.expert.teacher import build_teacher
from trainer.runs.checkpoint import best_of, load_state
from trainer.runs.console import say
from trainer.runs.logits import LOGITS, TEACHER, complete_logits, digests_of
from trainer.runs.retention import digest_of
from trainer.runs.seen import seen_in
from trainer.runs.start import alone
from trainer.runs.state import seed_everything
from trainer.setup.device import make_accelerator
from trainer.setup.expert_settings import settled, stage_folder
from trainer.setup.head_features import with_cache
from trainer.setup.ingredients import of_file, of_images
from trainer.setup.loading import GATE, load_samples
from trainer.stages.classifier_task import TeacherTask
from trainer.stages.labelled import ClassifierStage, labelled_samples
from trainer.stages.run_stage import SPLITS, Loader, carry_out


def train_teacher(config: DictConfig) -> None:
    """Into trainer.exp_dir/NAME-teacher; raises what trainer.stages.run_stage.carry_out does."""
    seed_everything(config.seed)
    run, config, accelerator = stage_folder(config, "teacher"), settled(config, "teacher"), make_accelerator(config)
    with alone(run) if accelerator.is_main_process else nullcontext():
        stage = carry_out(config, run, accelerator, lambda: TeacherStage(config), named=False)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_logits(config, run, accelerator, stage)


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

    of, cache = digest_of(checkpoint.folder / "model.safetensors"), with_cache(config).dataset.feature_cache
    for split, samples in {**stage.samples, **other_images(config)}.items():
        what = f"logits of the teacher, {split}"
        complete_logits(run / LOGITS, samples, digests_of(samples, cache), compute, of=of, loader=loader, what=what)
    say(f"logits of every image: {run / LOGITS}")


def other_images(config: DictConfig) -> dict[str, Samples]:
    """The images that it is neither trained nor validated on: of the gate alone, to test on if there are any."""
    splits = [GATE] if config.dataset.gate_split else []
    if config.dataset.test_ds.visual_dir is not None:
        splits.append("test_ds")
    return {split: load_samples(config, split, []) for split in splits}
