"""Build what a split needs: its samples, the tokens of the feature cache, its loader."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from common.errors import UserError
from common.reading import expand_user
from data.cache.digests import equal_files
from data.cache.feature_cache import MEMO, FeatureCache, FrozenEncoder
from data.cache.token_files import CachedTokens
from data.frames import FrameReader
from data.held_out import split_off
from data.loaders import CaptionDataset, EpochSampler, make_loader, shuffle_images
from data.readers.split import read_samples, source_of
from data.samples import Samples
from data.schema import Batch, Skipped
from model.captioner import Captioner
from trainer.setup.parts import Parts

GATE = "gate"  # the split on which the gate is fitted; the others are sections of the configuration


def require_frozen_encoder(config: DictConfig) -> None:
    """Raise UserError if a feature cache is set, but the vision encoder is trained."""
    if config.dataset.feature_cache is not None and config.model.vision.trainable:
        raise UserError(
            f"dataset.feature_cache={config.dataset.feature_cache} needs a frozen vision encoder, but "
            "model.vision.trainable=true: set dataset.feature_cache=null or model.vision.trainable=false"
        )


class Features:
    """Encoder tokens of a split's images from the feature cache, or None if dataset.feature_cache is null.

    The encoder runs as in training: on the same device, in the same precision.
    """

    def __init__(self, config: DictConfig, captioner: Captioner, accelerator: Accelerator) -> None:
        self.dataset, self.accelerator = config.dataset, accelerator
        self.vision = captioner.vision
        self.encoder = None
        if self.dataset.feature_cache is not None:
            precision = accelerator.mixed_precision
            self.encoder = FrozenEncoder(
                description={"precision": "fp32" if precision == "no" else precision, **self.vision.fingerprint()},
                shape=(self.vision.num_tokens, self.vision.dim),
                encode=self.encode,
            )

    def __call__(self, split: str, samples: Samples) -> CachedTokens | None:
        """Return the tokens of a split's images; the first process of a machine computes those that are missing.

        Raises:
            UserError: see data.cache.feature_cache.FeatureCache.
        """
        return None if self.encoder is None else self.cached(self.encoder, split, samples)

    def cached(
        self, encoder: FrozenEncoder, split: str, samples: Samples, *, read: Callable[[Path], Tensor] | None = None
    ) -> CachedTokens:
        """Return the output of another encoder for a split's images, from the same cache.

        Args:
            read: path → input of the encoder; None reads the frames of the file.
        """
        read = read or FrameReader(self.vision.preprocess, **_limits(self.dataset))
        return cached_tokens(self.dataset, self.accelerator, encoder, split, samples, read)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """frames (N, 3, H, W) → tokens (N, P, Dv)."""
        vision, device = self.vision.eval(), self.accelerator.device
        with self.accelerator.autocast():
            return vision.to(device)(frames[:, None].to(device))[:, 0]


def cached_tokens(
    dataset: DictConfig,
    accelerator: Accelerator,
    encoder: FrozenEncoder,
    split: str,
    samples: Samples,
    read: Callable[[Path], Tensor],
) -> CachedTokens:
    """Return what an encoder makes of a split's images, from dataset.feature_cache; see Features."""
    workers, main = dataset[split].num_workers, accelerator.is_local_main_process
    cache = FeatureCache(Path(dataset.feature_cache), encoder=encoder, read=read, num_workers=workers, show=main)
    with accelerator.local_main_process_first():
        return cache.tokens(samples.path(index) for index in range(len(samples)))


def copies(config: DictConfig, first: Samples, second: Samples) -> list[tuple[Path, Path]]:
    """Return pairs of an image file of `first` and one of `second` with the same bytes."""
    cache = config.dataset.feature_cache
    paths = ([of.path(row) for row in range(len(of))] for of in (first, second))
    return equal_files(*paths, None if cache is None else expand_user(cache) / MEMO)


def load_samples(config: DictConfig, split: str, skipped: list[Skipped]) -> Samples:
    """Return the samples of a split as configured, and append those without a file to `skipped`.

    If dataset.labels is null, it is set to the labels of this split, for all splits that are read later.

    Args:
        split: train_ds, validation_ds, test_ds, or GATE, which is the share dataset.gate_split of train_ds, or
            validation_ds if that is null.

    Raises:
        UserError: see data.readers.split.read_samples.
    """
    share = config.dataset.gate_split
    if split == GATE and not share:
        split = "validation_ds"
    samples = _read_split(config, "train_ds" if split == GATE else split, skipped)
    return split_off(samples, share)[split == GATE] if share and split in ("train_ds", GATE) else samples


def _read_split(config: DictConfig, split: str, skipped: list[Skipped]) -> Samples:
    found = read_samples(config.dataset, split)
    config.dataset.labels = list(found.samples.labels)
    skipped.extend(found.skipped)
    if found.renamed:
        first = found.renamed[0]
        print(
            f"{source_of(config.dataset, split)}: {len(found.renamed)} image files have another spelling of their "
            f"name, e.g. {first.path.name!r} for {first.name!r}; `python -m data.prepare check` lists them",
            file=sys.stderr,
        )
    samples = found.samples.without_emotions() if config.dataset.emotions is False else found.samples
    samples = samples.without_texts() if config.dataset.explanations is False else samples
    return shuffle_images(samples, seed=config.seed) if config.dataset.shuffle_images else samples


def split_loader(
    config: DictConfig,
    split: str,
    samples: Samples,
    parts: Parts,
    features: Features,
    *,
    texts: int,
    shuffle: bool = True,
) -> tuple[DataLoader[Batch], EpochSampler]:
    """Return the loader of a split and its sampler.

    Args:
        features: its missing tokens are computed first.
        texts: number of texts of each image in a batch.
        shuffle: False keeps the order of the training images even if dataset.train_ds.shuffle is set.
    """
    files = config.dataset[split]
    dataset = CaptionDataset(
        samples,
        preprocess=parts.captioner.vision.preprocess,
        template=parts.template,
        aligner=parts.aligner,
        texts_per_image=texts,
        seed=config.seed,
        tokens=features(split, samples),
        **_limits(config.dataset),
    )
    shuffle = shuffle and split == "train_ds" and files.shuffle
    return make_loader(
        dataset,
        batch_size=files.batch_size,
        num_workers=files.num_workers,
        shuffle=shuffle,
        buckets=files.length_buckets if shuffle else 1,
        processes=features.accelerator.num_processes,
    )


def _limits(dataset: DictConfig) -> dict[str, int]:
    return {"max_frames": dataset.max_frames, "max_pixels": dataset.max_pixels}
