"""Read the pictures of many shards in order, a shard in each loader process at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset, get_worker_info

from data.cache.digests import Signature, signature_of
from data.readers.shard_lists import Shard
from data.readers.shards import pictures_in
from data.samples import Samples
from data.schema import Sample, Skipped
from data.views import ImageDataset


class Part(NamedTuple):
    """A batch of a shard, or its end."""

    shard: int  # index in the list
    samples: list[Sample]  # of the batch
    batch: Any  # None at the end
    skipped: Sequence[Skipped] = ()  # at the end: what of the shard cannot be used, without the batches' own
    signature: Signature | None = None  # at the end: of the shard before it was read


class ShardStream(IterableDataset):
    """Yields the batches of each shard, then its end; no batch spans two shards, so their results are independent.

    Args:
        dataset: makes the items of the samples that are put into it.
        collate: items → batch.
        language: in which the pictures are explained; "" for the network's own.
    """

    def __init__(
        self, shards: Sequence[Shard], dataset: ImageDataset, collate: Callable, batch_size: int, language: str = ""
    ) -> None:
        self.shards, self.dataset, self.collate, self.batch_size = shards, dataset, collate, batch_size
        self.language = language

    def __iter__(self) -> Iterator[Part]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(first, len(self.shards), step):
            shard = self.shards[number]
            signature = signature_of(shard.path)
            found, skipped = pictures_in(shard)
            self.dataset.samples = samples = Samples.pack(replace(sample, language=self.language) for sample in found)
            for start in range(0, len(samples), self.batch_size):
                rows = range(start, min(start + self.batch_size, len(samples)))
                batch = self.collate([self.dataset[0, row] for row in rows])
                yield Part(number, [samples[row] for row in rows], batch)
            yield Part(number, [], None, skipped, signature)
