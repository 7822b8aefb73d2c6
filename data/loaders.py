"""Data loaders. An item is a pure function of (seed, epoch, index), whatever the number of workers."""

from __future__ import annotations

import functools
import itertools
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from common.errors import UserError
from data.cache.token_files import CachedTokens
from data.collate import TextItem, collate
from data.frames import FrameReader
from data.images import MAX_PIXELS
from data.samples import Samples
from data.schema import Batch, Sample, Skipped
from data.text import Template
from data.vad.align import VadAligner
from data.vad.pieces import PieceAligner
from data.views import ImageDataset
from data.workers import ignore_foreign_signals


def shuffle_images(samples: Samples, *, seed: int) -> Samples:
    """Give every sample the image of another one: a control that measures how much a model depends on the images."""
    order = list(range(len(samples)))
    random.Random(f"{seed}/images").shuffle(order)
    other = dict(zip(order, [*order[1:], *order[:1]], strict=True))  # one cycle: no sample keeps its own
    return samples.with_images_of([other[i] for i in range(len(order))])


def choose_texts(sample: Sample, *, count: int, seed: int, epoch: int) -> list[int]:
    """Return indices of up to `count` random texts: with different emotions, or any if there are no emotions."""
    order = list(range(len(sample.texts)))
    random.Random(f"{seed}/{epoch}/{sample.id}").shuffle(order)
    if not sample.emotions:
        return order[:count]
    chosen: list[int] = []
    for index in order:
        if len(chosen) < count and all(sample.emotions[index] != sample.emotions[other] for other in chosen):
            chosen.append(index)
    return chosen


class CaptionDataset(ImageDataset):
    """Images with a sample of their texts.

    Args:
        preprocess, max_frames, max_pixels: see FrameReader.
        texts_per_image: at most; 0 for generation.
        seed, tokens: see ImageDataset.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        preprocess: Mapping,
        template: Template,
        aligner: VadAligner | PieceAligner,
        texts_per_image: int,
        seed: int,
        max_frames: int,
        max_pixels: int = MAX_PIXELS,
        tokens: CachedTokens | None = None,
    ) -> None:
        read = FrameReader(preprocess, max_frames=max_frames, max_pixels=max_pixels)
        super().__init__(samples, read=read, seed=seed, tokens=tokens)
        self.template, self.aligner, self.texts_per_image = template, aligner, texts_per_image

    @property
    def labels(self) -> tuple[str, ...]:
        return self.template.labels

    def texts(self, sample: Sample, epoch: int) -> list[TextItem]:
        return [self._text(sample, text, first=i == 0) for i, text in enumerate(self._chosen(sample, epoch))]

    def size(self, epoch: int, index: int) -> int:
        """Return the length in characters of the longest chosen text."""
        sample = self.samples[index]
        return max((len(sample.texts[text]) for text in self._chosen(sample, epoch)), default=0)

    def _chosen(self, sample: Sample, epoch: int) -> list[int]:
        return choose_texts(sample, count=self.texts_per_image, seed=self.seed, epoch=epoch)

    def _text(self, sample: Sample, index: int, *, first: bool) -> TextItem:
        """Supervise the emotion of the first text only: it is drawn from the votes, the others are chosen to differ."""
        emotion = sample.emotions[index] if sample.emotions else None
        text = sample.texts[index]
        if emotion is not None and not text:
            encoded = self.template.encode_name(emotion)
        else:
            encoded = self.template.encode(text, emotion, supervise_emotion=first, language=sample.language)
        vad, known, target = self.aligner.align(encoded.input_ids)
        if encoded.truncated and isinstance(self.aligner, VadAligner):
            # The last word may be truncated and only look complete; pieces are looked up one by one.
            target[-2 if encoded.input_ids[-1] == self.template.eos_id else -1] = False
        return TextItem(encoded, -1 if emotion is None else emotion, vad, known, target)


@dataclass(eq=False)
class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index): shuffled by (seed, epoch), or in order; the first `skip` were seen before a resume.

    Args:
        buckets: groups per window. A window of shuffled samples is sorted by text length and split into groups, which
            are shuffled: less padding per batch. 1: no sorting.
        group: samples per step: the batches of all processes.
        size: (epoch, index) → length of its longest text.
    """

    length: int
    _: KW_ONLY
    seed: int
    shuffle: bool
    buckets: int = 1
    group: int = 1
    size: Callable[[int, int], int] | None = None
    epoch: int = 0
    skip: int = 0

    def __len__(self) -> int:
        return self.length - self.skip

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order: Iterable[int] = list(range(self.length))
        if self.shuffle:
            random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
            if self.buckets > 1 and self.size is not None:
                order = self._bucketed(order)
        return ((self.epoch, index) for index in itertools.islice(order, self.skip, None))

    def _bucketed(self, order: list[int]) -> Iterator[int]:
        """Sort one window at a time: the first batch does not wait for all sizes."""
        window, rng = self.buckets * self.group, random.Random(f"{self.seed}/{self.epoch}/buckets")
        for start in range(0, len(order), window):
            by_size = sorted(order[start : start + window], key=lambda index: self.size(self.epoch, index))
            groups = [by_size[i : i + self.group] for i in range(0, len(by_size), self.group)]
            last = [groups.pop()] if len(groups[-1]) < self.group else []  # the short batch of an epoch stays last
            rng.shuffle(groups)
            yield from itertools.chain(*groups, *last)


def drop_empty_batches(loader: Iterable[Batch], skipped: list[Skipped], *, strict: bool) -> Iterator[Batch]:
    """Yield the batches that have an image, and add skipped images to `skipped`.

    Raises:
        UserError: an unusable image, if `strict`; raised here, as a worker of the loader would wrap the message.
    """
    for batch in loader:
        if batch.skipped and strict:
            first = batch.skipped[0]
            raise UserError(f"{first.path} (image {first.id}): {first.reason}; dataset.strict=false skips it")
        skipped.extend(batch.skipped)
        if batch.ids:
            yield batch


def make_loader(
    dataset: Dataset,
    *,
    batch_size: int,
    num_workers: int,
    shuffle: bool,
    buckets: int = 1,
    processes: int = 1,
    collate_fn: Callable | None = None,
) -> tuple[DataLoader[Batch], EpochSampler]:
    """Return a loader and its sampler, see EpochSampler; each of `processes` gets every n-th batch.

    Args:
        collate_fn: items → batch; None: data.collate.collate, for a data set with labels.
    """
    sampler = EpochSampler(
        len(dataset),
        seed=dataset.seed,
        shuffle=shuffle,
        buckets=buckets,
        group=batch_size * processes,
        size=dataset.size if buckets > 1 else None,
    )
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=min(num_workers, os.cpu_count() or 1),  # torch warns about more
        collate_fn=collate_fn or functools.partial(collate, labels=len(dataset.labels)),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        worker_init_fn=ignore_foreign_signals,
        generator=torch.Generator(),  # separate: starting an epoch must not draw from the generator of dropout
    )
    return loader, sampler
