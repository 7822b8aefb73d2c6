"""stage=vlm: tune a vision-language model of transformers on conversations about the pictures, by LoRA."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import ProcessorMixin

from common.config.rules import VLM
from common.errors import UserError
from common.reading import expand_user
from data.loaders import drop_empty_batches, make_loader
from data.prepare.instructions.conversations import KINDS, REASONING
from data.schema import Skipped
from data.talks import AnnotatedTalks, TalkBatch, TalkCollate, TalkDataset, WrittenTalks, read_talks
from model.vlm.answers import Answerer
from model.vlm.chat import IGNORED, Chat
from model.vlm.loading import load_model, load_processor, trained_state, with_lora
from trainer.loop.optim import build_optimizer
from trainer.loop.tracker import Tracker
from trainer.loop.validation import emotion_metrics
from trainer.prediction.vlm import EmotionScorer
from trainer.runs.console import print_status
from trainer.runs.seen import seen_in, write_seen
from trainer.runs.start import run_lock
from trainer.runs.state import seed_everything
from trainer.runtime.processes import first_batches
from trainer.setup.device import make_accelerator
from trainer.setup.from_checkpoint import output_folder
from trainer.setup.ingredients import file_digest, image_digests
from trainer.setup.loading import load_samples
from trainer.stages.run_stage import SPLITS, Loader, run_stage

FILES = {"train_ds": "instructions_train.jsonl", "validation_ds": "instructions_val.jsonl"}  # in vlm.instructions
LOSS = "answer"


def train_vlm(config: DictConfig) -> None:
    """Train into trainer.exp_dir/trainer.exp_name; raises the errors of run_stage."""
    if config.vlm.pretrained_name is None:
        raise UserError("stage=vlm needs vlm.pretrained_name=MODEL: an image-text-to-text model of transformers")
    seed_everything(config.seed)
    run, accelerator = output_folder(config), make_accelerator(config)
    with run_lock(run) if accelerator.is_main_process else nullcontext():
        run_stage(config, run, accelerator, lambda: VlmStage(config, accelerator))


class VlmTask:
    """Cross-entropy of the answers' tokens; see trainer.runs.task.Task.

    Args:
        processor: stored in every checkpoint.
        images: see trainer.runs.seen.
    """

    def __init__(self, network: nn.Module, processor: ProcessorMixin, images: Tensor) -> None:
        self.network, self.processor, self.images = network, processor, images
        self.weights, self.bridge = {LOSS: 1.0}, {}

    def counts(self, batch: TalkBatch) -> dict[str, Tensor]:
        return {LOSS: (batch.labels != IGNORED).sum()}

    def sums(self, network: nn.Module, batch: TalkBatch) -> dict[str, Tensor]:
        known = batch.labels != IGNORED
        first = int(known.any(dim=0).int().argmax())  # the answers are last: only their logits are computed
        kept = batch.labels.shape[1] - first + 1
        logits = network(**batch.inputs, use_cache=False, logits_to_keep=kept).logits[:, :-1]
        losses = F.cross_entropy(
            logits.float().flatten(0, 1), batch.labels[:, first:].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return {LOSS: losses}

    def state(self) -> dict[str, Tensor]:
        return trained_state(self.network)

    def gauges(self) -> dict[str, float]:
        return {}

    def write(self, folder: Path) -> None:
        self.processor.save_pretrained(folder)
        write_seen(folder, {VLM: self.images})


class VlmStage:
    """See trainer.stages.run_stage.Stage. Replaces every `auto` that it uses in the configuration, in place."""

    def __init__(self, config: DictConfig, accelerator: Accelerator) -> None:
        self.config, settings = config, config.vlm
        self.skipped: list[Skipped] = []
        self.samples = {split: load_samples(config, split, self.skipped) for split in SPLITS}
        if not self.samples["train_ds"].has_emotions:
            raise UserError("stage=vlm needs emotions, and the images of dataset.train_ds have none")
        self.processor = load_processor(settings.pretrained_name)
        self.chat = Chat(self.processor, settings.pretrained_name)
        self.talks = {split: self._talks(split) for split in SPLITS}
        _resolve(config, reasons=any(talk.kind == REASONING for talk in self.talks["train_ds"](0, 0)))
        base = load_model(settings.pretrained_name, quantized=settings.quantized, device=accelerator.device)
        network = with_lora(base, OmegaConf.to_container(settings.lora))
        self.task = VlmTask(network, self.processor, seen_in(self.samples["train_ds"]))
        self.ingredients: dict[str, Any] = image_digests(config, self.samples)
        if settings.instructions is not None:
            self.ingredients |= {f"vlm.instructions/{name}": file_digest(self._path(name)) for name in FILES.values()}

    def _path(self, name: str) -> str:
        return str(expand_user(self.config.vlm.instructions) / name)

    def _talks(self, split: str) -> AnnotatedTalks | WrittenTalks:
        """Return the conversations of a split, whose samples without any are left out."""
        samples, count = self.samples[split], self.config.dataset.texts_per_image
        count = len(KINDS) if count == "auto" else count
        if self.config.vlm.instructions is None:
            return AnnotatedTalks(samples, self.config.seed, count)
        path = Path(self._path(FILES[split]))
        written = read_talks(path)
        rows = [row for row, sample in enumerate(samples) if sample.id in written]
        if not rows:
            raise UserError(f"vlm.instructions: {path} has none of the {len(samples)} images of dataset.{split}")
        if len(rows) < len(samples):
            print_status(f"{path} has no conversation about {len(samples) - len(rows)} images, which are left out")
            samples = self.samples[split] = samples.pick(rows)
        return WrittenTalks(samples, self.config.seed, count, written)

    def describe(self) -> str:
        trained, total = self.task.network.get_nb_trainable_parameters()
        return f"{self.config.vlm.pretrained_name}: {trained:,} trained weights, {total - trained:,} frozen"

    def prepare(self) -> None:
        if self.config.trainer.gradient_checkpointing:
            self.task.network.enable_input_require_grads()
            network = self.task.network
            # its name from transformers 5.23 on, where the old one gives a warning
            enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
            enable({"use_reentrant": False})

    def loaders(self, accelerator: Accelerator) -> list[Loader]:
        return [self._loader(split, accelerator.num_processes) for split in SPLITS]

    def _loader(self, split: str, processes: int) -> Loader:
        files, config, samples = self.config.dataset[split], self.config, self.samples[split]
        training = split == "train_ds"
        sizes = {"max_side": config.vlm.max_side, "max_pixels": config.dataset.max_pixels}
        return make_loader(
            TalkDataset(samples, talks=self.talks[split], seed=config.seed, **sizes),
            batch_size=files.batch_size,
            num_workers=files.num_workers,
            shuffle=training and files.shuffle,
            processes=processes,
            collate_fn=TalkCollate(self.chat.training_inputs, len(samples.labels), pictures=not training),
        )

    def optimizer(self, *, fused: bool) -> torch.optim.Optimizer:
        return build_optimizer(self.config.model.optimizer, self.task.network.parameters(), fused=fused)

    def validator(self, loader: DataLoader[TalkBatch], accelerator: Accelerator, tracker: Tracker) -> VlmValidator:
        scorer = EmotionScorer(Answerer(self.task.network, self.chat), self.samples["train_ds"].labels)
        settings = self.config.trainer
        return VlmValidator(self.task, loader, scorer, self.config.dataset.strict, settings.limit_val_batches)


def _resolve(config: DictConfig, *, reasons: bool) -> None:
    """Set every `auto` that test and predict read; reasons: whether the model learns to give reasons."""
    config.dataset.emotions, config.dataset.explanations = True, reasons
    config.model.vad.enabled = config.model.contrastive.enabled = False
    if config.dataset.texts_per_image == "auto":
        config.dataset.texts_per_image = len(KINDS)


@dataclass(slots=True)
class VlmValidator:
    """validation/loss, and the emotions that the model scores; see trainer.runs.task.AnyValidator."""

    task: VlmTask
    loader: DataLoader[TalkBatch]
    scorer: EmotionScorer
    strict: bool
    limit_batches: int | None

    @torch.no_grad()
    def measure(
        self, network: nn.Module, accelerator: Accelerator, step: int, skipped: list[Skipped]
    ) -> dict[str, float]:
        network.eval()
        total, count, rows = 0.0, 0, []
        loaded = first_batches(self.loader, self.limit_batches, accelerator)
        for batch in drop_empty_batches(loaded, skipped, strict=self.strict):
            batch = batch.to(accelerator.device)
            with accelerator.autocast():
                if len(batch.labels):
                    total += float(self.task.sums(network, batch)[LOSS])
                    count += int(self.task.counts(batch)[LOSS])
                rows.append((self.scorer(batch)[0].float().cpu(), batch.histogram.cpu()))
        everyone = gather_object([(total, count, rows)])
        if not (tokens := sum(found for _, found, _ in everyone)):
            raise UserError("no validation picture could be read, or none of them has a conversation")
        loss = sum(found for found, _, _ in everyone) / tokens
        columns = zip(*chain.from_iterable(found for _, _, found in everyone), strict=True)
        metrics = emotion_metrics(*map(torch.cat, columns), labels=self.scorer.labels)
        return {**metrics, f"validation/loss_{LOSS}": loss, "validation/loss": loss}
