"""Communication between the processes of a job, and the error when one of them is lost."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
LATE = re.compile(r"time(d )?.?out", re.I)


def exchanged(accelerator: Accelerator, work: Callable[[], T]) -> list[T]:
    """Return, in every process, the results of `work` of all of them, in the order of their ranks.

    Raises:
        UserError: of any process, in all of them, so that none waits for one that has ended.
    """
    if accelerator.num_processes == 1:
        return [work()]
    found, fault = None, None
    try:
        found = work()
    except UserError as error:
        fault = error
    everyone = gather_object([(found, fault and str(fault))])
    for _, text in everyone:
        if text is not None:
            raise Agreed(text) from fault
    return [found for found, _ in everyone]


def from_first(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Return in every process what `work` returns in the first, which alone does it; all raise its UserError."""
    return exchanged(accelerator, work if accelerator.is_main_process else lambda: None)[0]


def in_step(
    accelerator: Accelerator,
    loaded: Iterable[Batch],
    size: int,
    *,
    keep: Callable[[Iterable[Batch]], Iterable[Batch]],
) -> Iterator[list[Batch]]:
    """Yield the batches of each step: `size` of them, or fewer at the end, without those that `keep` drops.

    Several processes count what was loaded, so that they stay in step when `keep` drops a batch of one of them; where
    it leaves one of them nothing at all, all leave the step out.
    """
    if accelerator.num_processes == 1:
        yield from windows(keep(loaded), size)
        return
    for window in (list(keep(window)) for window in windows(loaded, size)):
        (empty,) = agreed(accelerator, not window)
        if not empty:
            yield window


def windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches; the last may be shorter."""
    iterator = iter(batches)
    while window := list(itertools.islice(iterator, size)):
        yield window


def agreed(accelerator: Accelerator, *questions: object) -> list[bool]:
    """For each question, return whether it is true in any process."""
    answers = [bool(question) for question in questions]
    if accelerator.num_processes == 1:
        return answers
    votes = torch.tensor(answers, dtype=torch.float32, device=accelerator.device)
    return (accelerator.reduce(votes, reduction="sum") > 0).tolist()


@contextmanager
def explain_lost_peer() -> Iterator[None]:
    """Raise Lost instead of torch.distributed's error where another process has ended, or is waited for too long."""
    try:
        yield
    except (RuntimeError, OSError) as error:  # OSError: of the rendezvous store
        distributed = isinstance(error, torch.distributed.DistError) or GONE.search(str(error)) is not None
        if world_size() == 1 or isinstance(error, UserError) or not distributed:
            raise
        me = f"process {rank()} of {world_size()} (counted from 0)"
        if LATE.search(str(error)):
            raise Lost(
                f"{me} has waited for another process for as long as trainer.timeout_minutes allows: one is stuck, or "
                "needs longer than that"
            ) from error
        raise Lost(
            f"{me} has lost another process, which died or was killed: the launcher names it, and what that process "
            "printed last is the reason"
        ) from error
