"""Jobs of several processes, as torchrun starts them, but quickly, and with nobody who watches over them."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from tests.helpers.launch import launch


def launch_job(
    keys: Mapping[str, object], logs: Path, *, count: int = 2, variables: Mapping[str, str] | None = None
) -> list:
    """The processes of one job `python run.py KEY=VALUE …`, their outputs in logs/0, logs/1, …

    variables: of the environment, as another launcher sets them besides.
    """
    logs.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    job |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), **(variables or {})}
    numbers = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count))
    return [
        launch(keys, logs / number["RANK"], first=partial(set_environment, {**job, **number})) for number in numbers
    ]


def set_environment(variables: Mapping[str, str]) -> None:
    os.environ.update(variables)


def finish_job(job: list, logs: Path, *, status: int = 0, seconds: float = 60) -> list[str]:
    """What each process printed, once all have ended with `status`."""
    for process in job:
        process.join(seconds)
    printed = [(logs / str(rank)).read_text(errors="replace") for rank in range(len(job))]
    assert [process.exitcode for process in job] == [status] * len(job), "\n".join(text[-3000:] for text in printed)
    return printed
