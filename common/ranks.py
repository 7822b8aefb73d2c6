"""Rank and world size of this process, from the environment that torchrun and `accelerate launch` set."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from common.errors import UserError

LAUNCHED = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "ROLE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
PATIENCE = 5.0  # seconds in which the launcher ends the other processes after one has failed


class Agreed(UserError):
    """An error that all ranks raise together; only rank 0 prints it."""


class Lost(UserError):
    """Another rank has ended or hangs."""


def rank() -> int:
    return _number("RANK", 0)


def world_size() -> int:
    return _number("WORLD_SIZE", 1)


def leave_job() -> None:
    """Make this process one that no launcher started, for work that a single process does."""
    for name in [name for name in os.environ if name in LAUNCHED or name.startswith(("TORCHELASTIC_", "ACCELERATE_"))]:
        del os.environ[name]


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else default


def command_line() -> list[str]:
    """Return the command line of this process, or of the launcher that started it."""
    own = list(sys.orig_argv)
    if world_size() > 1:
        import psutil  # imported here: not needed for --help

        with suppress(psutil.Error, AttributeError):  # the parent has ended or may not be inspected
            parents = psutil.Process().parent().cmdline()
            script = next((i for i, word in enumerate(own) if word.endswith(".py")), len(own))
            if own[script:] and parents[-len(own[script:]) :] == own[script:]:
                return parents
    return own


@contextmanager
def mute_other_ranks() -> Iterator[None]:
    """Discard stdout and stderr in every rank but 0."""
    if rank() == 0:
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def should_report(error: UserError) -> bool:
    """Return whether this rank should print the error; may wait PATIENCE seconds first.

    A configuration or data error occurs in every rank: rank 0 prints it, and the launcher ends the others while they
    wait. A rank that survives the wait was the only one with the error, or there is no launcher. A rank that lost a
    peer waits too, since the peer or the launcher reports the cause.
    """
    if world_size() > 1 and (rank() > 0 or isinstance(error, Lost)):
        time.sleep(PATIENCE)
    return not (isinstance(error, Agreed) and rank() > 0)
