"""Process many files in parallel; if a worker process dies, only the file that it was processing is lost."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import islice
from typing import TypeVar

from common.errors import UserError

Item, Result = TypeVar("Item"), TypeVar("Result")
AHEAD = 4  # submitted items per process
DIED = "the process that was opening it died: its decoder crashed, or the memory was not enough"


def in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int
) -> Iterator[tuple[Item, Result | None]]:
    """Yield every item with `function(item)`, in order; with None if it made its process die.

    When a process dies, each unfinished item is tried again in a process of its own. Items are taken from the iterable
    as they are needed. `function` and the items must be picklable.

    Raises:
        UserError: no process can be started. Exceptions of `function` are raised here.
    """
    source, pool = iter(items), _pool(workers)
    pending, futures = deque(), deque()
    try:
        while True:
            try:
                for item in islice(source, AHEAD * workers - len(pending)):
                    pending.append(item)
                    futures.append(pool.submit(function, item))
                if not pending:
                    return
                result = futures[0].result()
            except BrokenProcessPool:
                yield from ((item, _alone(function, item)) for item in pending)
                pending.clear()
                futures.clear()
                pool = _pool(workers)
            else:
                futures.popleft()
                yield pending.popleft(), result
    finally:
        pool.shutdown(cancel_futures=True)


def _alone(function: Callable[[Item], Result], item: Item) -> Result | None:
    with _pool(1) as pool, suppress(BrokenProcessPool):
        return pool.submit(function, item).result()


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: a fork would copy the locks of other threads in their present state.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        pool.submit(os.getpid).result()
    except (BrokenProcessPool, OSError) as error:
        raise UserError(f"worker processes cannot be started ({error}); see their output above") from None
    return pool


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    warnings.simplefilter("ignore")  # about single files, without naming them
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)  # the workers of a killed parent would wait forever


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=count, default=os.cpu_count() or 1, help="processes (default: one per core)")


def count(text: str) -> int:
    """Return a positive integer, for argparse."""
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
