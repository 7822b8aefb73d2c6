"""The head's view of every picture, from the feature cache: the vision encoder sees a picture once, whoever asks."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import Tensor, nn

from data.cache.feature_cache import FrozenEncoder
from data.cache.token_files import CachedTokens
from data.samples import Samples
from model.captioner import Captioner
from model.expert.features import build_features
from trainer.setup.ingredients import of_tensors
from trainer.setup.loading import Features

FOLDER = "features"  # below trainer.exp_dir, where dataset.feature_cache is null


def with_cache(config: DictConfig) -> DictConfig:
    """The configuration with a feature cache in any case: these stages look at a picture once, and never again."""
    cached = config.copy()
    if cached.dataset.feature_cache is None:
        cached.dataset.feature_cache = str(Path(config.trainer.exp_dir) / FOLDER)
    return cached


class TokenReader:
    """path → tokens (T, P, D) that a feature cache has; see data.frames.FrameReader."""

    def __init__(self, samples: Samples, tokens: CachedTokens, *, max_frames: int) -> None:
        self.rows = {samples.path(row): row for row in range(len(samples))}
        self.tokens, self.max_frames = tokens, max_frames

    def __call__(self, path: Path) -> Tensor:
        return self.tokens[self.rows[path]]


class HeadFeatures:
    """Condensed tokens of a split's images, see model.expert.features.

    Where dataset.feature_cache is given, and for the splits WHOLE in any case, the cache has all tokens of the encoder,
    and these are condensed; other pictures go through the encoder. The condensed ones are in the same cache.
    """

    WHOLE = ("validation_ds",)  # that the language model will be asked about too

    def __init__(self, config: DictConfig, captioner: Captioner, accelerator: Accelerator) -> None:
        settings = config.expert.student
        self.config, self.accelerator = config, accelerator
        self.features = build_features(captioner, features=settings.features, grid=settings.grid)
        self.whole = Features(with_cache(config), captioner, accelerator)
        self.shape = self._shape()
        condensed = {"features": settings.features, **_described(self.features)}
        self.description = {**self.whole.encoder.description, "condensed": condensed}

    @property
    def dim(self) -> int:
        return self.features.dim

    def __call__(self, split: str, samples: Samples) -> CachedTokens:
        """Raises UserError: see data.cache.feature_cache.FeatureCache."""
        read, encode = None, self._encode
        if self.config.dataset.feature_cache is not None or split in self.WHOLE:
            whole = self.whole(split, samples)
            read, encode = TokenReader(samples, whole, max_frames=self.config.dataset.max_frames), self._condense
        encoder = FrozenEncoder(self.description, self.shape, encode)
        return self.whole.kept(encoder, split, samples, read=read)

    def _encode(self, frames: Tensor) -> Tensor:
        return self._condense(self.whole.encode(frames).half())  # as the cache would have them

    @torch.no_grad()
    def _condense(self, tokens: Tensor) -> Tensor:
        device = self.accelerator.device
        return self.features.eval().to(device)(tokens.to(device).float())

    @torch.no_grad()
    def _shape(self) -> tuple[int, int]:
        device, vision = self.accelerator.device, self.whole.vision
        tokens = torch.zeros(1, vision.num_tokens, vision.dim, device=device)
        return tuple(self.features.to(device)(tokens).shape[1:])


def _described(features: nn.Module) -> dict[str, object]:
    state = features.state_dict()
    own = {"weights": of_tensors(state)} if state else {}
    return {**own, "grid": getattr(features, "grid", None), "layout": getattr(features, "layout", None)}
