"""What the processes of a job tell one another, and what is said when one of them is gone."""

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

from data.schema import Batch
from errors import UserError
from launcher import Agreed, Lost, rank, world_size

T = TypeVar("T")
# As gloo and NCCL say it; torch has no class of its own for what gloo raises.
GONE = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe|Socket", re.I)
LATE = re.compile(r"time(d )?.?out", re.I)


def exchanged(accelerator: Accelerator, work: Callable[[], T]) -> list[T]:
    """What `work` gives in each process, in the order of the processes, in all of them.

    Raises:
        UserError: that of any of them; all end with it then, and none waits for one that is no more.
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
    """What `work` gives in the first process, which alone does it; a UserError is raised in all."""
    return exchanged(accelerator, work if accelerator.is_main_process else lambda: None)[0]


def in_step(
    accelerator: Accelerator,
    loaded: Iterable[Batch],
    size: int,
    *,
    keep: Callable[[Iterable[Batch]], Iterable[Batch]],
) -> Iterator[list[Batch]]:
    """What every process makes its next step of: `size` batches, or fewer at the end, of those that `keep` leaves.

    Several processes count what they have loaded, or they would not be at the same place any more where `keep` leaves
    out a batch of one of them; if it leaves one of them nothing at all, none makes a step of what it has there.
    """
    if accelerator.num_processes == 1:
        yield from windows(keep(loaded), size)
        return
    for window in (list(keep(window)) for window in windows(loaded, size)):
        if _all(accelerator, bool(window)):
            yield window


def windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches; the last may be shorter."""
    iterator = iter(batches)
    while window := list(itertools.islice(iterator, size)):
        yield window


def _all(accelerator: Accelerator, answer: bool) -> bool:
    votes = torch.tensor(float(answer), device=accelerator.device)
    return int(accelerator.reduce(votes, reduction="sum")) == accelerator.num_processes


def agreed(accelerator: Accelerator, *questions: object) -> list[bool]:
    """Each question's answer: yes, where any process says so."""
    answers = [bool(question) for question in questions]
    if accelerator.num_processes == 1:
        return answers
    votes = torch.tensor(answers, dtype=torch.float32, device=accelerator.device)
    return (accelerator.reduce(votes, reduction="sum") > 0).tolist()


@contextmanager
def explain_lost_peer() -> Iterator[None]:
    """One sentence instead of a traceback where another process of the job is gone, or lets this one wait too long.

    Raises:
        Lost: in place of what torch.distributed raised.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:  # OSError: of the store by which the processes find one another
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
