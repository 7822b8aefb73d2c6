"""Communication between the processes of a job, and the error when one of them is lost."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import gather_object

from common.errors import UserError
from common.ranks import Agreed, Lost, rank, world_size
from data.schema import Batch

T = TypeVar("T")
# Messages of gloo and NCCL; torch has no exception class for gloo's.
GONE = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe|Socket", re.I)
FAILED, STORE_TIMEOUT = "emoscribe/failed", timedelta(seconds=5)
LATE = re.compile(r"time(d )?.?out", re.I)


def first_batches(loader: Iterable[T], limit: int | None, accelerator: Accelerator) -> Iterable[T]:
    """Return this process's batches of the first `limit`, which the processes take in turn; None: all."""
    if limit is None:
        return loader
    return itertools.islice(loader, len(range(accelerator.process_index, limit, accelerator.num_processes)))


def gather_results(accelerator: Accelerator, work: Callable[[], T]) -> list[T]:
    """Call `work` in every process; return in each of them all results, in the order of the ranks.

    Raises:
        UserError: of any process, in all of them, so that none waits for one that has ended.
    """
    if accelerator.num_processes == 1:
        return [work()]
    result, fault = None, None
    try:
        result = work()
    except UserError as error:
        fault = error
    everyone = gather_object([(result, fault and str(fault))])
    for _, text in everyone:
        if text is not None:
            raise Agreed(text) from fault
    return [result for result, _ in everyone]


def from_main_rank(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Call `work` in the first process alone; return its result in every process, or raise its UserError in all."""
    return gather_results(accelerator, work if accelerator.is_main_process else lambda: None)[0]


def step_batches(
    accelerator: Accelerator, loaded: Iterable[Batch], size: int, *, keep: Callable[[Iterable[Batch]], Iterable[Batch]]
) -> Iterator[list[Batch]]:
    """Yield the batches of each step: `size` of them, or fewer at the end, without those that `keep` drops.

    Several processes group the batches before `keep` drops any, so that their steps stay aligned; a step for which one
    process has no batch is skipped by all.
    """
    if accelerator.num_processes == 1:
        yield from grouped(keep(loaded), size)
        return
    for batches in (list(keep(group)) for group in grouped(loaded, size)):
        (empty,) = any_rank(accelerator, not batches)
        if not empty:
            yield batches


def grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield lists of `size` batches; the last may be shorter."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def any_rank(accelerator: Accelerator, *flags: object) -> list[bool]:
    """For each flag, return whether it is true in any process."""
    if accelerator.num_processes == 1:
        return [bool(flag) for flag in flags]
    votes = torch.tensor([bool(flag) for flag in flags], dtype=torch.float32, device=accelerator.device)
    return (accelerator.reduce(votes, reduction="sum") > 0).tolist()


def lost_peer(error: BaseException) -> bool:
    """Return whether the error is torch.distributed's: another process has ended or does not respond in time."""
    distributed = isinstance(error, torch.distributed.DistError) or GONE.search(str(error)) is not None
    return world_size() > 1 and not isinstance(error, UserError) and distributed


def announce_failure() -> None:
    """Leave a note for the other processes that this one ends by an error between two steps."""
    with suppress(torch.distributed.DistError):
        _store().set(FAILED, str(rank()))


def announced_failure() -> bool:
    """Return whether a process has announced its failure; one that was killed has not."""
    with suppress(torch.distributed.DistError):
        return _store().check([FAILED])
    return False


def _store() -> torch.distributed.TCPStore:
    """Return the store by which the processes found each other."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return torch.distributed.TCPStore(address, port, is_master=False, timeout=STORE_TIMEOUT)


@contextmanager
def explain_lost_peer() -> Iterator[None]:
    """Raise Lost instead of torch.distributed's error if another process has ended or does not respond in time."""
    try:
        yield
    except (RuntimeError, OSError) as error:  # OSError: of the rendezvous store
        if not lost_peer(error):
            raise
        text = f"process {rank()} of {world_size()} (counted from 0) "
        if LATE.search(str(error)):
            text += "has waited for another process for as long as trainer.timeout_minutes allows: one is stuck, or "
            text += "needs longer than that"
        else:
            text += "has lost another process, which died or was killed: the launcher names it, and the reason is in "
            text += "the last lines of that process"
        raise Lost(text) from error
