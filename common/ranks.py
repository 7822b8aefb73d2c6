"""Rank and world size of this process, from the environment that torchrun and `accelerate launch` set."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from common.errors import UserError

PATIENCE = 5.0  # seconds in which a launcher ends the other processes after one has failed


class Agreed(UserError):
    """An error that every process of the job raises at once; the first prints it."""


class Lost(UserError):
    """Another process of the job has ended or is stuck."""


def rank() -> int:
    return _number("RANK", 0)


def world_size() -> int:
    return _number("WORLD_SIZE", 1)


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else otherwise


def command_line() -> list[str]:
    """The command line of this process, or of the launcher that started it."""
    own = list(sys.orig_argv)
    if world_size() > 1:
        import psutil  # installed with accelerate; not needed for --help

        with suppress(psutil.Error, AttributeError):  # a parent that has ended or may not be inspected
            parents = psutil.Process().parent().cmdline()
            script = next((i for i, word in enumerate(own) if word.endswith(".py")), len(own))
            if own[script:] and parents[-len(own[script:]) :] == own[script:]:
                return parents
    return own


@contextmanager
def mute_other_ranks() -> Iterator[None]:
    """Silence stdout and stderr in this context in every process but the first."""
    if rank() == 0:
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def should_report(fault: UserError) -> bool:
    """Whether this process should print the error; may wait for PATIENCE first.

    An error in the configuration or data reaches every process: rank 0 prints it, and the launcher ends the others
    while they wait. One that is still running afterwards was the only one with the error, or there is no launcher. A
    process that lost a peer waits too, as the peer or the launcher reports the cause.
    """
    silent = isinstance(fault, Agreed) and rank() > 0
    if world_size() > 1 and (rank() > 0 or isinstance(fault, Lost)):
        time.sleep(PATIENCE)
    return not silent
