"""A run of stage=vlm as a source of the gate."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from accelerate import Accelerator
from omegaconf import DictConfig
from torch import Tensor

from data.samples import Samples
from data.talks import TalkBatch
from trainer.prediction.run_source import RunSource
from trainer.prediction.vlm import EmotionScorer, load_vlm, picture_loader


class VlmSource(RunSource):
    """A run of stage=vlm as a source of the gate; see trainer.prediction.other_sources.Source."""

    def load(self, config: DictConfig, accelerator: Accelerator) -> Callable[[TalkBatch], Tensor]:
        scorer = EmotionScorer(
            load_vlm(self.checkpoint.config, self.checkpoint, accelerator.device), config.dataset.labels
        )
        return lambda batch: scorer(batch)[0]

    def loader(self, samples: Samples, config: DictConfig) -> Iterable[TalkBatch]:
        own = config.copy()
        own.vlm.max_side = self.checkpoint.config.vlm.max_side
        return picture_loader(own, samples)[0]
