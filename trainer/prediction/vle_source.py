"""A run of stage=vle_emotion as a source of the gate."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from accelerate import Accelerator
from omegaconf import DictConfig
from torch import Tensor

from data.loaders import make_loader
from data.pairs import PairBatch, PairDataset, PairText, Part, collate_pairs
from data.samples import Samples
from model.vle.heads import EMOTION_QUESTION, VLEForEmotion
from model.vle.processor import PictureView, VLEProcessor
from trainer.prediction.run_source import RunSource


class VleSource(RunSource):
    """A VLE that answers the fixed question about a picture."""

    def load(self, config: DictConfig, accelerator: Accelerator) -> Callable[[PairBatch], Tensor]:
        network = VLEForEmotion.from_pretrained(self.checkpoint.folder).to(accelerator.device).eval()
        return lambda batch: network(**batch.inputs()).logits

    def loader(self, samples: Samples, config: DictConfig) -> Iterable[PairBatch]:
        processor, files = VLEProcessor.from_pretrained(self.checkpoint.folder), config.dataset.test_ds
        question = _Question(processor, self.checkpoint.config.vle.text_length)
        shown = {"view": PictureView(processor), "max_pixels": config.dataset.max_pixels}
        pairs = PairDataset(samples, texts=question, seed=config.seed, **shown)
        sizes = {"batch_size": files.batch_size, "num_workers": files.num_workers}
        return make_loader(pairs, shuffle=False, collate_fn=collate_pairs, **sizes)[0]


class _Question:
    """The fixed question about every picture, for PairDataset."""

    def __init__(self, processor: VLEProcessor, length: int) -> None:
        self.ids = processor.tokenizer(EMOTION_QUESTION, truncation=True, max_length=length)["input_ids"]

    def __call__(self, index: int, epoch: int, part: Part) -> list[PairText]:
        return [PairText(self.ids)]
