"""The same work on many items in threads, for work that waits more than it computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple, TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


class Stopped(Exception):
    """For `function`, to give up an item because `stop` is set."""


class _Done(NamedTuple):
    item: object
    result: object
    fault: BaseException | None


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, stop: threading.Event
) -> Iterator[tuple[Item, Result]]:
    """Every item with `function(item)`, in the order in which they are done; items are taken as they are needed.

    What `function` raises is raised here, and so is Ctrl-C, both after all results that are there; `stop` is then set,
    and the threads are not waited for.
    """
    todo: queue.SimpleQueue = queue.SimpleQueue()
    done: queue.SimpleQueue = queue.SimpleQueue()
    source = iter(items)
    for _ in range(threads):
        threading.Thread(target=_work, args=(function, todo, done, stop), daemon=True).start()
    try:
        pending = 0
        while True:
            for item in islice(source, threads - pending):
                todo.put(item)
                pending += 1
            if not pending:
                return
            finished = _next(done)
            if finished.fault is not None:
                yield from _rest(done)
                raise finished.fault
            pending -= 1
            yield finished.item, finished.result
    finally:
        stop.set()
        for _ in range(threads):
            todo.put(None)


def _work(function: Callable, todo: queue.SimpleQueue, done: queue.SimpleQueue, stop: threading.Event) -> None:
    while (item := todo.get()) is not None and not stop.is_set():
        try:
            done.put(_Done(item, function(item), None))
        except Stopped:
            return
        except BaseException as fault:  # it belongs to the thread that waits for the result
            done.put(_Done(item, None, fault))


def _next(done: queue.SimpleQueue) -> _Done:
    try:
        return done.get()
    except KeyboardInterrupt as interrupt:
        return _Done(None, None, interrupt)


def _rest(done: queue.SimpleQueue) -> Iterator[tuple]:
    while not done.empty():
        finished = done.get()
        if finished.fault is None:
            yield finished.item, finished.result
