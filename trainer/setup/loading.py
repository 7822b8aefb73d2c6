"""From the configuration to the batches of a split: its samples, the tokens of a feature cache, its loader."""

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
from data.cache.feature_cache import FeatureCache, FrozenEncoder
from data.cache.token_files import CachedTokens
from data.frames import FrameReader
from data.held_out import split_off
from data.loaders import CaptionDataset, EpochSampler, make_loader, shuffle_images
from data.readers.split import read_samples, source_of
from data.samples import Samples
from data.schema import Batch, Skipped
from model.captioner import Captioner
from trainer.setup.parts import Parts

GATE = "gate"  # a split beside those of the configuration


def refuse_trained_encoder(config: DictConfig) -> None:
    """Raises UserError: a cache of what changes with every step."""
    if config.dataset.feature_cache is not None and config.model.vision.trainable:
        raise UserError(
            f"dataset.feature_cache={config.dataset.feature_cache} keeps what a frozen vision encoder gives, but "
            "model.vision.trainable=true changes it: set dataset.feature_cache=null or model.vision.trainable=false"
        )


class Features:
    """The tokens of a split's images, or None where dataset.feature_cache is null.

    The encoder computes as it would in training: on the same device, in the same precision.
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
        """One process of a machine computes; the others wait for it, then find everything there.

        Raises:
            UserError: see data.cache.feature_cache.FeatureCache.
        """
        return None if self.encoder is None else self.kept(self.encoder, split, samples)

    def kept(
        self, encoder: FrozenEncoder, split: str, samples: Samples, *, read: Callable[[Path], Tensor] | None = None
    ) -> CachedTokens:
        """What `encoder` gives for a split's images, from the same cache.

        Args:
            read: path → what the encoder is given; None: the frames of the file.
        """
        dataset = self.dataset
        frames = FrameReader(self.vision.preprocess, max_frames=dataset.max_frames, max_pixels=dataset.max_pixels)
        cache = FeatureCache(
            Path(dataset.feature_cache),
            encoder=encoder,
            read=read or frames,
            num_workers=dataset[split].num_workers,
            show=self.accelerator.is_local_main_process,
        )
        with self.accelerator.local_main_process_first():
            return cache.tokens(samples.path(index) for index in range(len(samples)))

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """frames (N, 3, H, W) → tokens (N, P, Dv)."""
        vision, device = self.vision.eval(), self.accelerator.device
        with self.accelerator.autocast():
            return vision.to(device)(frames[:, None].to(device))[:, 0]


def load_samples(config: DictConfig, split: str, skipped: list[Skipped]) -> Samples:
    """The samples of one split, as the configuration wants them; those without a file are added to `skipped`.

    Where dataset.labels is null, it becomes what they have, for every split that is read thereafter.

    Args:
        split: train_ds, validation_ds or test_ds; or GATE: what dataset.gate_split holds out of train_ds, else
            validation_ds.

    Raises:
        UserError: see data.readers.split.read_samples.
    """
    share = config.dataset.gate_split
    if split == GATE:
        if not share:
            return load_samples(config, "validation_ds", skipped)
        return split_off(_whole_split(config, "train_ds", skipped), share)[1]
    samples = _whole_split(config, split, skipped)
    return split_off(samples, share)[0] if split == "train_ds" and share else samples


def _whole_split(config: DictConfig, split: str, skipped: list[Skipped]) -> Samples:
    found = read_samples(config.dataset, split)
    config.dataset.labels = list(found.samples.labels)
    skipped.extend(found.skipped)
    if found.renamed:
        first = found.renamed[0]
        print(
            f"{source_of(config.dataset, split)}: {len(found.renamed)} images lie under another spelling of their "
            f"name, e.g. {first.name!r} as {first.path.name!r}; `python -m data.prepare check` lists them",
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
    """Batches of one split with `texts` of each image; what `features` lacks is computed first.

    shuffle: whether the images to train on come as configured, and not in order.
    """
    files = config.dataset[split]
    dataset = CaptionDataset(
        samples,
        preprocess=parts.captioner.vision.preprocess,
        template=parts.template,
        aligner=parts.aligner,
        texts_per_image=texts,
        seed=config.seed,
        max_frames=config.dataset.max_frames,
        max_pixels=config.dataset.max_pixels,
        tokens=features(split, samples),
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
