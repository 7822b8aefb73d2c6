"""Condensed image features for the student, from the feature cache: each image is encoded once."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import Tensor

from data.cache.feature_cache import FrozenEncoder
from data.cache.token_files import CachedTokens
from data.samples import Samples
from model.captioner import Captioner
from model.expert.features import build_features
from trainer.setup.loading import Features
from trainer.setup.parts import tensors_digest


def with_feature_cache(config: DictConfig) -> DictConfig:
    """Return the configuration with a feature cache, by default in trainer.exp_dir/features."""
    cached = config.copy()
    if cached.dataset.feature_cache is None:
        cached.dataset.feature_cache = str(Path(config.trainer.exp_dir) / "features")
    return cached


class TokenReader:
    """path → tokens (T, P, D) of a feature cache; see data.frames.FrameReader."""

    def __init__(self, samples: Samples, tokens: CachedTokens, *, max_frames: int) -> None:
        self.rows = {samples.path(row): row for row in range(len(samples))}
        self.tokens, self.max_frames = tokens, max_frames

    def __call__(self, path: Path) -> Tensor:
        return self.tokens[self.rows[path]]


class HeadFeatures:
    """Condensed tokens of a split's images, see model.expert.features.

    If dataset.feature_cache is set, and for the splits WHOLE always, the cache also holds all tokens of the encoder,
    from which the condensed ones are computed. Otherwise the images are encoded and only condensed tokens are cached.
    """

    WHOLE = ("validation_ds",)  # the language model needs their tokens too

    def __init__(self, config: DictConfig, captioner: Captioner, accelerator: Accelerator) -> None:
        settings = config.expert.student
        self.config, self.accelerator = config, accelerator
        self.features = build_features(captioner, features=settings.features, grid=settings.grid)
        self.whole = Features(with_feature_cache(config), captioner, accelerator)
        vision, state = captioner.vision, self.features.state_dict()
        example = torch.zeros(1, vision.num_tokens, vision.dim)
        self.shape = tuple(self._condense(example).shape[1:])
        condensed = {"features": settings.features, **({"weights": tensors_digest(state)} if state else {})}
        condensed |= {key: getattr(self.features, key, None) for key in ("grid", "layout")}
        self.description = {**self.whole.encoder.description, "condensed": condensed}

    @property
    def dim(self) -> int:
        return self.features.dim

    def __call__(self, split: str, samples: Samples) -> CachedTokens:
        """Return the condensed tokens of a split's images; see Features."""
        read, encode = None, self._encode
        if self.config.dataset.feature_cache is not None or split in self.WHOLE:
            whole = self.whole(split, samples)
            read, encode = TokenReader(samples, whole, max_frames=self.config.dataset.max_frames), self._condense
        encoder = FrozenEncoder(self.description, self.shape, encode)
        return self.whole.cached(encoder, split, samples, read=read)

    def _encode(self, frames: Tensor) -> Tensor:
        return self._condense(self.whole.encode(frames).half())  # rounded as in the cache

    @torch.no_grad()
    def _condense(self, tokens: Tensor) -> Tensor:
        device = self.accelerator.device
        return self.features.eval().to(device)(tokens.to(device).float())
