"""The same work on many files, in processes of which none can take the others' results down with it."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from errors import UserError

Item, Result = TypeVar("Item"), TypeVar("Result")
AHEAD = 4  # items handed out to each process before their turn
DIED = "the process that was opening it died: its decoder crashed, or the memory was not enough"


def in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int
) -> Iterator[tuple[Item, Result | None]]:
    """Every item with `function(item)`, in the order in which they are done.

    When a process dies, the items that were under way are tried again one by one, and the one that a process dies of
    has None. Items are taken as they are needed, so there may be any number of them. `function` and the items are sent
    to new processes, and must be picklable.

    Raises:
        UserError: no process can be started. What `function` raises is raised here, and ends the work.
    """
    source = iter(items)
    while under_way := (yield from _pool(function, source, workers, AHEAD * workers)):
        suspects = iter(under_way)
        while culprit := (yield from _pool(function, suspects, 1, 1)):
            yield culprit[0], None


def _pool(
    function: Callable[[Item], Result], source: Iterator[Item], workers: int, ahead: int
) -> Generator[tuple[Item, Result], None, list[Item]]:
    """Works until `source` is empty or a process dies; then returns the items that were under way."""
    # Spawned, not forked: this process may have threads, whose locks a fork would copy as they are.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    pending: dict[Future[Result], Item] = {}
    try:
        _require_start(pool)
        while True:
            for item in islice(source, ahead - len(pending)):
                try:
                    pending[pool.submit(function, item)] = item
                except BrokenProcessPool:
                    return [*pending.values(), item]
            if not pending:
                return []
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                result = future.result()
                yield pending.pop(future), result
    except BrokenProcessPool:
        return list(pending.values())
    finally:
        pool.shutdown(cancel_futures=True)


def _require_start(pool: ProcessPoolExecutor) -> None:
    try:
        pool.submit(os.getpid).result()
    except (BrokenProcessPool, OSError) as error:
        raise UserError(f"worker processes cannot be started here ({error}); see what they wrote above") from None


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first process to answer
    warnings.simplefilter("ignore")  # about oddities of single files, without their names
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)  # killed before it could say so: without this the workers would wait for ever


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=count, default=os.cpu_count() or 1, help="processes (default: one per core)")


def count(text: str) -> int:
    """For argparse: a whole number of at least 1."""
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
