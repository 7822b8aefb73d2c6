"""This process among those of its job, as torchrun and `accelerate launch` number them in the environment."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from errors import UserError

PATIENCE = 5.0  # seconds in which a launcher ends the others once one has ended


class Agreed(UserError):
    """A fault that every process of the job raises at once: the first one says it."""


class Lost(UserError):
    """Another process of the job is gone or stuck."""


def rank() -> int:
    return _number("RANK", 0)


def world_size() -> int:
    return _number("WORLD_SIZE", 1)


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else otherwise


def command_line() -> list[str]:
    """Of this process; of the launcher, where one started it."""
    own = list(sys.orig_argv)
    if world_size() > 1:
        import psutil  # of accelerate's; not needed for --help

        with suppress(psutil.Error, AttributeError):  # a parent that is gone, or nobody's to look at
            parents = psutil.Process().parent().cmdline()
            script = next((i for i, word in enumerate(own) if word.endswith(".py")), len(own))
            if own[script:] and parents[-len(own[script:]) :] == own[script:]:
                return parents
    return own


@contextmanager
def mute_other_ranks() -> Iterator[None]:
    """What is printed meanwhile, by whomever, is the first process's; an exception leaves with the streams restored."""
    if rank() == 0:
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def should_report(fault: UserError) -> bool:
    """Whether this process is the one to print `fault`, after some patience where another may be.

    Faults of the configuration or the data meet every process: the first says it, and while the others wait, the
    launcher ends them. Who is still there afterwards has met it alone, or there is no launcher. A process that lost
    another one waits in the same way, as that one has said why it ended, or its launcher does.
    """
    silent = isinstance(fault, Agreed) and rank() > 0
    if world_size() > 1 and (rank() > 0 or isinstance(fault, Lost)):
        time.sleep(PATIENCE)
    return not silent
