"""A run of stage=vle_emotion as a source of the gate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import Tensor

from common.files import sha256
from data.loaders import drop_empty_batches, make_loader
from data.pairs import PairBatch, PairDataset, PairText, Part, collate_pairs
from data.samples import Samples
from model.vle.heads import EMOTION_QUESTION, VLEForEmotion
from model.vle.processor import PictureView, VLEProcessor
from trainer.runs.checkpoint import Checkpoint
from trainer.runs.logits import complete_logits, digests_of
from trainer.runs.seen import read_seen


@dataclass
class VleSource:
    """A VLE that answers the fixed question about a picture."""

    name: str
    checkpoint: Checkpoint
    answers: bool = False
    is_file: bool = False

    @property
    def path(self) -> Path:
        return self.checkpoint.run

    def seen(self) -> dict[str, Tensor]:
        images = read_seen(self.checkpoint.folder).get("images")
        return {} if images is None else {self.name: images}

    @functools.cached_property
    def digest(self) -> str:
        return sha256(self.checkpoint.folder / "model.safetensors")

    def log_probs(
        self, samples: Samples, config: DictConfig, accelerator: Accelerator, folder: Path
    ) -> dict[str, Tensor]:
        """See Source. They are kept in FOLDER/logits-NAME.jsonl; the processes of a machine share the file."""
        files, show = config.dataset.test_ds, accelerator.is_local_main_process
        network = functools.cache(lambda: self._load(accelerator.device))  # not loaded if nothing is missing

        @torch.no_grad()
        def compute(batch: PairBatch) -> dict[str, Tensor]:
            with accelerator.autocast():
                return {self.name: network()(**batch.to(accelerator.device).inputs()).logits}

        def loader(missing: Samples) -> Iterable[PairBatch]:
            processor = VLEProcessor.from_pretrained(self.checkpoint.folder)
            question = _Question(processor, self.checkpoint.config.vle.text_length)
            shown = {"view": PictureView(processor), "max_pixels": config.dataset.max_pixels}
            pairs = PairDataset(missing, texts=question, seed=config.seed, **shown)
            sizes = {"batch_size": files.batch_size, "num_workers": files.num_workers}
            loaded = make_loader(pairs, shuffle=False, collate_fn=collate_pairs, **sizes)[0]
            return drop_empty_batches(loaded, [], strict=False)  # the captioner reports unreadable pictures

        with accelerator.local_main_process_first():
            logits = complete_logits(
                folder / f"logits-{self.name}.jsonl",
                samples,
                digests_of(samples, config.dataset.feature_cache, show=show),
                compute,
                of=self.digest,
                loader=loader,
                what=f"emotions of {self.name}",
            )
        return {id: found[self.name].log_softmax(dim=-1) for id, found in logits.items()}

    def _load(self, device: torch.device) -> Callable[..., Any]:
        return VLEForEmotion.from_pretrained(self.checkpoint.folder).to(device).eval()


class _Question:
    """The fixed question about every picture, for PairDataset."""

    def __init__(self, processor: VLEProcessor, length: int) -> None:
        self.ids = processor.tokenizer(EMOTION_QUESTION, truncation=True, max_length=length)["input_ids"]

    def __call__(self, index: int, epoch: int, part: Part) -> list[PairText]:
        return [PairText(self.ids)]
