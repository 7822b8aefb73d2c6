"""Predict shards: process r of n takes every n-th of those that are not finished, and waits for no other."""

from __future__ import annotations

import hashlib
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.errors import UserError
from common.progress import progress
from common.ranks import Agreed
from data.readers.shard_lists import Shard
from data.samples import Samples
from data.shard_stream import ShardStream
from data.shards import name_in
from data.workers import ignore_foreign_signals
from trainer.prediction.build import ranks_by_vle
from trainer.prediction.command import Host, load_host
from trainer.prediction.expert import further_sources
from trainer.prediction.identity import identity_of
from trainer.prediction.shard_results import Collected, ShardResults
from trainer.prediction.writer import predict_batch
from trainer.runs.checkpoint import Checkpoint
from trainer.runs.console import print_status
from trainer.runs.state import seed_everything
from trainer.runtime.processes import from_main_rank, gather_results

SHOW_EVERY = 5.0  # seconds between two counts of the shards that all processes have finished


def predict_shards(
    config: DictConfig,
    checkpoint: Checkpoint,
    shards: list[Shard],
    folder: Path,
    accelerator: Accelerator,
    *,
    overwrite: bool,
) -> tuple[ShardResults, dict[str, Any]]:
    """Predict the shards that have no results yet; return the results and, in the first process, their summary.

    Raises:
        UserError: settings that need all pictures at once, results of other settings, or processes that find other
            shards.
    """
    _refuse(config)
    seed_everything(config.seed)
    none = Samples.pack((), tuple(config.dataset.labels))
    host = load_host(config, checkpoint, none, accelerator, None)
    if host.predictor.expert is not None and further_sources(host.predictor.expert.about):
        raise UserError(
            "the gate of this run has further sources (expert.sources), which are not computed for shards: add "
            "expert.enabled=false, or predict folders"
        )
    identity = identity_of(config, checkpoint, none, host.predictor, precision=accelerator.mixed_precision)
    identity = {key: value for key, value in identity.items() if key != "images"} | {"save_as": config.save_as}
    names = hashlib.sha256(repr([shard.name for shard in shards]).encode()).hexdigest()
    if any(found != names for found in gather_results(accelerator, lambda: names)):
        raise Agreed("the processes do not find the same shards: let all machines read the same folders")
    results = ShardResults(folder, shards, save_as=config.save_as)
    todo = from_main_rank(accelerator, lambda: results.begin(identity, overwrite=overwrite))
    if done := len(shards) - len(todo):
        print_status(f"{folder}: {done:,} of {len(shards):,} shards are finished")
    begin = time.monotonic()
    if todo:
        if host.parts is not None:
            host.parts.optimize(bf16=accelerator.mixed_precision == "bf16")
        _predict(config, host, results, todo, accelerator)
    if not accelerator.is_main_process:
        return results, {}
    rate = results.pictures(todo) / (time.monotonic() - begin) if todo else None
    return results, results.summary() | {"pictures_per_second": rate and round(rate, 1)}


def _refuse(config: DictConfig) -> None:
    if config.group_by is not None:
        raise UserError(f"group_by={config.group_by} compares all pictures at once: leave it out for shards")
    if ranks_by_vle(config):
        raise UserError(
            "trainer.test.rank_by=vle opens pictures a second time: choose picture or contrastive for shards"
        )


def _predict(config: DictConfig, host: Host, results: ShardResults, todo: list[int], accelerator: Accelerator) -> None:
    """Predict this process's shards; in the first, wait until the others have finished theirs."""
    own = todo[accelerator.process_index :: accelerator.num_processes]
    labels = host.predictor.labels
    options = {"strict": config.dataset.strict, "emotion": labels.index(config.emotion) if config.emotion else None}
    collected: defaultdict[int, Collected] = defaultdict(Collected)
    total, initial = len(results.shards), len(results.shards) - len(todo)
    bar = progress(total, "predict", unit="shard", initial=initial, enabled=accelerator.is_main_process)
    shown = _Shown(bar, results, accelerator)
    with bar:
        for part in _loader(config, host, [results.shards[index] for index in own]):
            found = collected[part.shard]
            if part.batch is not None:
                found.add(*predict_batch(iter([part.batch]), part.samples, host.predictor, accelerator, **options))
                shown.update(len(part.samples))
                continue
            if part.skipped and config.dataset.strict:
                first = part.skipped[0]
                raise UserError(f"{name_in(first.path)}: {first.reason}; dataset.strict=false goes on")
            found.skipped += part.skipped
            results.write(own[part.shard], collected.pop(part.shard), part.signature)
            shown.update(0)
        if accelerator.is_main_process:
            results.wait_for(len(todo), minutes=config.trainer.timeout_minutes)
        shown.update(0, now=True)


def _loader(config: DictConfig, host: Host, shards: list[Shard]) -> DataLoader:
    files = config.dataset.test_ds
    stream = ShardStream(shards, host.loader.dataset, host.loader.collate_fn, files.batch_size, config.language or "")
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=min(files.num_workers, os.cpu_count() or 1, len(shards)),
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_foreign_signals,
        generator=torch.Generator(),  # separate: must not draw from that of the generation
    )


class _Shown:
    """The progress over the shards of all processes, on the bar of the first."""

    def __init__(self, bar: tqdm, results: ShardResults, accelerator: Accelerator) -> None:
        self.bar, self.results, self.accelerator = bar, results, accelerator
        self.initial, self.pictures, self.begin = bar.n, 0, time.monotonic()
        self.last = self.begin

    def update(self, pictures: int, *, now: bool = False) -> None:
        self.pictures += pictures
        time_now = time.monotonic()
        if not self.accelerator.is_main_process or not (now or time_now - self.last > SHOW_EVERY):
            return
        self.last = time_now
        rate = self.pictures * self.accelerator.num_processes / max(time_now - self.begin, 1e-9)
        self.bar.set_postfix_str(f"{rate:,.0f} pictures/s", refresh=False)
        self.bar.update(self.initial + self.results.finished() - self.bar.n)
