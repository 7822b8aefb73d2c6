"""Jobs of several processes like those of torchrun, but quick to start and without supervision."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from common import ranks
from tests.helpers.launch import launch


def launch_job(
    keys: Mapping[str, object],
    logs: Path,
    *,
    count: int = 2,
    variables: Mapping[str, str] | None = None,
    first: Callable[[], object] | None = None,
) -> list:
    """Start the processes of one job `python run.py KEY=VALUE …`, with their output in logs/0, logs/1, …

    variables: additional environment variables of a launcher; first: called in each process before the command.
    """
    logs.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    job |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), **(variables or {})}
    numbers = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count))
    return [
        launch(keys, logs / number["RANK"], first=partial(set_environment, {**job, **number}, first))
        for number in numbers
    ]


def set_environment(variables: Mapping[str, str], then: Callable[[], object] | None = None) -> None:
    os.environ.update(variables)
    ranks.PATIENCE = 0.5  # seconds for a launcher to end this process, which has none
    if then is not None:
        then()


def finish_job(job: list, logs: Path, *, status: int = 0, seconds: float = 300) -> list[str]:
    """Wait until all processes have ended with `status`; return their output."""
    for process in job:
        process.join(seconds)
    printed = [(logs / str(rank)).read_text(errors="replace") for rank in range(len(job))]
    assert [process.exitcode for process in job] == [status] * len(job), "\n".join(text[-3000:] for text in printed)
    return printed
