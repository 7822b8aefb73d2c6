"""The thread that owns the network, and the queue in front of it."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from common.errors import UserError
from common.faults import explain_errors
from data.images import ImageError, open_image
from trainer.interface import EmoScribe

_DECODING = threading.Lock()  # Pillow's limit of pixels is global; and one large picture in memory is enough


def decode(picture: bytes | Path, *, max_pixels: int) -> Image.Image:
    """Return a picture from the content of its file, or from its path.

    Raises:
        UserError: it cannot be used.
    """
    try:
        with _DECODING, explain_errors():
            return open_image(picture, max_pixels=max_pixels)
    except ImageError as error:
        raise UserError(f"the picture cannot be used: {error}") from error


class Busy(UserError):
    """Too many requests wait."""


@dataclass(slots=True, eq=False)
class _Job:
    """A function of the network, or a picture to explain; pictures with equal settings share a batch."""

    function: Callable[[EmoScribe], Any] | None = None
    picture: Image.Image | None = None
    settings: tuple[str | None, int] = (None, 1)  # emotion, number of explanations
    result: Future = field(default_factory=Future)


class Worker:
    """Runs requests of many threads one after the other, or in batches; results do not depend on who else waits.

    Args:
        waiting: requests that may wait; further ones raise Busy.
        batch_size: pictures that are explained at once.
    """

    def __init__(self, model: EmoScribe, *, waiting: int, batch_size: int) -> None:
        self.model, self.batch_size, self.waiting = model, batch_size, waiting
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._free = threading.Semaphore(waiting)
        self._thread = threading.Thread(target=self._work, name="network", daemon=True)
        self._thread.start()

    def explain(self, picture: Image.Image, *, emotion: str | None = None, n: int = 1) -> Future:
        """Return the Explanation to come, see EmoScribe.explain."""
        return self._submit(_Job(picture=picture, settings=(emotion, n)))

    def call(self, function: Callable[[EmoScribe], Any]) -> Future:
        """Return the result to come of a function of the network."""
        return self._submit(_Job(function))

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _submit(self, job: _Job) -> Future:
        if not self._free.acquire(blocking=False):
            raise Busy(f"{self.waiting} requests are waiting: try again later")
        self._jobs.put(job)
        return job.result

    def _work(self) -> None:
        pending: deque[_Job | None] = deque()
        while True:
            if not pending:
                pending.append(self._jobs.get())
            while not self._jobs.empty():
                pending.append(self._jobs.get())
            if pending[0] is None:
                return
            self._run(self._next(pending))

    def _next(self, pending: deque[_Job | None]) -> list[_Job]:
        """Remove and return the first job, with the other pictures of its settings as far as a batch has room."""
        first = pending[0]
        same = [job for job in pending if job and job.picture is not None and job.settings == first.settings]
        jobs = [first] if first.picture is None else same[: self.batch_size]
        for job in jobs:
            pending.remove(job)
        return jobs

    def _run(self, jobs: list[_Job]) -> None:
        for _ in jobs:
            self._free.release()
        jobs = [job for job in jobs if job.result.set_running_or_notify_cancel()]
        if not jobs:
            return
        try:
            emotion, n = jobs[0].settings
            pictures = [job.picture for job in jobs]
            function = jobs[0].function
            found = [function(self.model)] if function else self.model.explain(pictures, emotion=emotion, n=n)
        except BaseException as error:  # belongs to those who wait; the thread goes on
            for job in jobs:
                job.result.set_exception(error)
            return
        for job, result in zip(jobs, found, strict=True):
            job.result.set_result(result)
