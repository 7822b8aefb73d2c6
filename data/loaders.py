"""Samples → DataLoader. What an epoch shows is a pure function of (seed, epoch, index), in any number of workers."""

from __future__ import annotations

import functools
import itertools
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch.utils.data import DataLoader, Sampler

from common.errors import UserError
from data.cache.token_files import CachedTokens
from data.collate import TextItem, collate
from data.frames import FrameReader
from data.images import MAX_PIXELS
from data.pictures import PictureDataset
from data.samples import Samples
from data.schema import Batch, Sample, Skipped
from data.text import Template
from data.vad.align import VadAligner
from data.vad.pieces import PieceAligner
from data.views import ViewDataset
from data.workers import obey_parent_only


def shuffle_images(samples: Samples, *, seed: int) -> Samples:
    """Every sample gets another sample's image: the control that shows how much a model owes to the pictures."""
    order = list(range(len(samples)))
    random.Random(f"{seed}/images").shuffle(order)
    other = {order[i]: order[(i + 1) % len(order)] for i in range(len(order))}  # one cycle: nobody keeps its own
    return samples.with_images_of([other[i] for i in range(len(order))])


def choose_texts(sample: Sample, *, count: int, seed: int, epoch: int) -> list[int]:
    """Indices of the texts to show: one at random, then others of emotions that are not there yet.

    Without emotions, `count` different texts at random.
    """
    order = list(range(len(sample.texts)))
    random.Random(f"{seed}/{epoch}/{sample.id}").shuffle(order)
    if not sample.emotions:
        return order[:count]
    chosen: list[int] = []
    for index in order:
        if len(chosen) < count and all(sample.emotions[index] != sample.emotions[other] for other in chosen):
            chosen.append(index)
    return chosen


class CaptionDataset(PictureDataset):
    """Pictures with some of their texts; see PictureDataset.

    Args:
        preprocess: settings of the vision encoder's image transform.
        texts_per_image: texts shown of each image; 0 for generation.
        max_frames: longest clip, in frames; longer ones are sampled evenly.
        max_pixels: largest picture that is opened.
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
        chosen = self._chosen(sample, epoch)
        return [self._text(sample, text, first=text == chosen[0]) for text in chosen]

    def size(self, epoch: int, index: int) -> int:
        """Characters of the longest text that is shown of this sample."""
        sample = self.samples[index]
        return max((len(sample.texts[text]) for text in self._chosen(sample, epoch)), default=0)

    def _chosen(self, sample: Sample, epoch: int) -> list[int]:
        return choose_texts(sample, count=self.texts_per_image, seed=self.seed, epoch=epoch)

    def _text(self, sample: Sample, index: int, *, first: bool) -> TextItem:
        """Only the first text teaches its emotion: it is drawn as people voted, the others are drawn to differ."""
        emotion = sample.emotions[index] if sample.emotions else None
        text = sample.texts[index]
        if emotion is not None and not text:
            encoded = self.template.encode_name(emotion)
        else:
            encoded = self.template.encode(text, emotion, supervise_emotion=first)
        vad, known, target = self.aligner.align(encoded.input_ids)
        if encoded.truncated and isinstance(self.aligner, VadAligner):
            # The cut may have gone through a word, which then only looks complete; pieces are looked up as they are.
            target[-2 if encoded.input_ids[-1] == self.template.eos_id else -1] = False
        return TextItem(encoded, -1 if emotion is None else emotion, vad, known, target)


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, index) pairs: shuffled by (seed, epoch), or in order. `skip` leaves out what a resumed epoch has had.

    Args:
        buckets: groups to a window: those whose texts are of like length come together, since a batch is padded to its
            longest text. Who is in a window is drawn, and the groups come in a drawn order. 1 = as drawn.
        group: samples that are in step with one another: a batch of every process.
        size: length of the longest text that (epoch, index) shows.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        shuffle: bool,
        buckets: int = 1,
        group: int = 1,
        size: Callable[[int, int], int] | None = None,
    ) -> None:
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.buckets, self.group, self.size = buckets, group, size
        self.epoch = 0
        self.skip = 0

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
        """A window at a time, so that the first batch need not wait for all sizes."""
        window, rng = self.buckets * self.group, random.Random(f"{self.seed}/{self.epoch}/buckets")
        for start in range(0, len(order), window):
            drawn = sorted(order[start : start + window], key=lambda index: self.size(self.epoch, index))
            groups = [drawn[i : i + self.group] for i in range(0, len(drawn), self.group)]
            last = [groups.pop()] if len(groups[-1]) < self.group else []  # the epoch's short batch stays its last
            rng.shuffle(groups)
            yield from itertools.chain(*groups, *last)


def usable(loader: Iterable[Batch], skipped: list[Skipped], *, strict: bool) -> Iterator[Batch]:
    """The batches that have at least one image; what had to be left out is added to `skipped`.

    Raises:
        UserError: an unusable image, if `strict` (here and not in the loader, whose workers would wrap the message).
    """
    for batch in loader:
        if batch.skipped and strict:
            first = batch.skipped[0]
            raise UserError(f"{first.path} (image {first.id}): {first.reason}; dataset.strict=false skips it")
        skipped.extend(batch.skipped)
        if batch.ids:
            yield batch


def make_loader(
    dataset: CaptionDataset | ViewDataset,
    *,
    batch_size: int,
    num_workers: int,
    shuffle: bool,
    buckets: int = 1,
    processes: int = 1,
) -> tuple[DataLoader[Batch], EpochSampler]:
    """buckets: see EpochSampler; processes: of the job, each of which takes every so many-th batch."""
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
        num_workers=min(num_workers, os.cpu_count() or 1),  # more would only wait, and make torch warn
        collate_fn=functools.partial(collate, labels=len(dataset.labels)),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        worker_init_fn=obey_parent_only,
        generator=torch.Generator(),  # its own: beginning an epoch must not draw from dropout's generator
    )
    return loader, sampler
