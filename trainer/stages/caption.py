"""stage=caption: train the captioner with all its heads."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from common.errors import UserError
from data.readers.split import source_of
from data.round_trip import lost_letters
from data.schema import Batch, Skipped
from trainer.loop.optim import build_optimizer
from trainer.loop.tracker import Tracker
from trainer.loop.validation import Validator
from trainer.prediction.build import build_predictor
from trainer.prediction.training_pictures import write_training_pictures
from trainer.runs.console import print_status
from trainer.runs.seen import seen_in
from trainer.runs.start import run_lock
from trainer.runs.state import seed_everything
from trainer.runs.task import CaptionTask
from trainer.runtime.processes import from_main_rank
from trainer.setup.autos import resolve_auto
from trainer.setup.device import make_accelerator
from trainer.setup.from_checkpoint import output_folder
from trainer.setup.ingredients import ingredients
from trainer.setup.loading import Features, load_samples, require_frozen_encoder, split_loader
from trainer.setup.parts import build_parts, describe
from trainer.stages.run_stage import SPLITS, Loader, run_stage


def train_captioner(config: DictConfig) -> None:
    """Train into trainer.exp_dir/trainer.exp_name; raises the errors of run_stage."""
    require_frozen_encoder(config)
    if not any(config.model.loss_weights.values()):
        raise UserError("model.loss_weights: all are 0, so nothing would be learned; set model.loss_weights.caption=1")
    seed_everything(config.seed)
    run, accelerator = output_folder(config), make_accelerator(config)
    with run_lock(run) if accelerator.is_main_process else nullcontext():
        stage = run_stage(config, run, accelerator, lambda: CaptionStage(config, accelerator))
        pictures = stage.samples["train_ds"]
        from_main_rank(accelerator, lambda: write_training_pictures(config, run, accelerator, pictures))


class CaptionStage:
    """See trainer.stages.run_stage.Stage. Replaces every `auto` in the configuration, in place."""

    def __init__(self, config: DictConfig, accelerator: Accelerator) -> None:
        self.config = config
        self.skipped: list[Skipped] = []
        self.samples = {split: load_samples(config, split, self.skipped) for split in SPLITS}
        train = self.samples["train_ds"]
        languages = train.language_names
        resolve_auto(config, has_emotions=train.has_emotions, has_texts=train.has_texts, languages=languages)
        self.parts = build_parts(config)
        for split, samples in self.samples.items():
            self.parts.template.check_languages(samples.language_names, where=source_of(config.dataset, split))
        lexicon = self.parts.aligner.lexicon
        for note in () if lexicon is None else lexicon.notes:
            print_status(f"dataset.vad_lexicon: {note}")
        if warning := lost_letters(self.parts.template, train, where=source_of(config.dataset, "train_ds")):
            print_status(f"warning: {warning}")
        self.ingredients = ingredients(config, self.samples, self.parts)
        self.task = CaptionTask(
            self.parts.captioner,
            weights=OmegaConf.to_container(config.model.loss_weights),
            tokenizer=self.parts.template.tokenizer,
            emotion_tokens=self.parts.emotion_tokens(config, accelerator.device),
            seen=seen_in(train),
        )

    def describe(self) -> str:
        return describe(self.parts.captioner)

    def prepare(self) -> None:
        if self.config.trainer.gradient_checkpointing:
            self.parts.captioner.language.recompute()
        if self.config.trainer.compile:
            self.parts.captioner.language.compile_blocks()

    def loaders(self, accelerator: Accelerator) -> list[Loader]:
        features, texts = Features(self.config, self.parts.captioner, accelerator), self.config.dataset.texts_per_image
        return [
            split_loader(self.config, split, self.samples[split], self.parts, features, texts=texts) for split in SPLITS
        ]

    def optimizer(self, *, fused: bool) -> torch.optim.Optimizer:
        captioner, settings = self.parts.captioner, self.config.model.optimizer
        return build_optimizer(settings, captioner.parameters(), apart=captioner.vad_encoder, fused=fused)

    def validator(self, loader: DataLoader[Batch], accelerator: Accelerator, tracker: Tracker) -> Validator:
        settings = self.config.trainer
        return Validator(
            task=self.task,
            loader=loader,
            samples=self.samples["validation_ds"],
            predictor=build_predictor(self.config, self.parts),
            tracker=tracker,
            strict=self.config.dataset.strict,
            pictures=settings.num_validation_images,
            captions=settings.num_validation_captions,
            limit_batches=settings.limit_val_batches,
        )
