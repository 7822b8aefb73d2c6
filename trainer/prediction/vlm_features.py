"""What the heads beside a VLM read: the mean of each picture's tokens, from the feature cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from common.files import sha256
from data.cache.feature_cache import FrozenEncoder
from data.cache.token_files import CachedTokens
from data.samples import Samples
from data.talks import open_reduced
from trainer.prediction.vlm import EmotionScorer, head_tokens, load_vlm
from trainer.runs.checkpoint import Checkpoint
from trainer.setup.head_features import with_feature_cache
from trainer.setup.loading import cached_tokens


@dataclass(frozen=True, slots=True)
class PictureReader:
    """path → picture (1, 3, H, W) uint8, as FeatureCache reads it."""

    max_side: int
    max_pixels: int
    max_frames: int = 1

    def __call__(self, path: Path) -> Tensor:
        """Raises ImageError."""
        return F.pil_to_tensor(open_reduced(path, max_side=self.max_side, max_pixels=self.max_pixels))[None]


class VlmFeatures:
    """The merged tokens of the VLM's visual tower, averaged over each picture; as HeadFeatures.

    As EmoVLM-KD's student reads them, but right for any batch: the published mean runs over all pictures of a batch.
    """

    def __init__(self, config: DictConfig, checkpoint: Checkpoint, accelerator: Accelerator) -> None:
        self.config, self.accelerator = with_feature_cache(config), accelerator
        self.answerer = load_vlm(config, checkpoint, accelerator.device)
        self.question = EmotionScorer(self.answerer, config.dataset.labels).question
        self.dim = self.answerer.width
        weights = {"vlm": config.vlm.pretrained_name, "tuned": sha256(checkpoint.folder / "model.safetensors")}
        description = {**weights, "max_side": config.vlm.max_side, "precision": str(self.answerer.network.dtype)}
        self.encoder = FrozenEncoder(description, (2, self.dim), self._encode, group=1)

    def __call__(self, split: str, samples: Samples) -> CachedTokens:
        """Return the tokens of a split's pictures; the first process of a machine computes those that are missing."""
        dataset = self.config.dataset
        read = PictureReader(self.config.vlm.max_side, dataset.max_pixels)
        return cached_tokens(dataset, self.accelerator, self.encoder, split, samples, read)

    @torch.no_grad()
    def _encode(self, pictures: Tensor) -> Tensor:
        picture: Image.Image = F.to_pil_image(pictures[0])
        return head_tokens(self.answerer.picture_token(picture, self.question)[None])[:, 0]
