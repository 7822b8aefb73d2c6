"""A lock between processes that names the process that holds it."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from common.files import write_text
from common.reading import read_bytes

GRACE = 0.2  # seconds in which a new holder writes its name
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP}


class Busy(Exception):
    """Another process holds the lock; the message names it and the time since when."""


def holder_file(path: Path) -> Path:
    """Return the file with the holder's name: on Windows, other processes cannot read the locked file itself."""
    return path.with_name(f"{path.name}.holder")


@contextmanager
def locked(path: Path, *, purpose: str, wait: bool = True) -> Iterator[None]:
    """Hold the lock `path`; if another process holds it, print which one and wait.

    The operating system releases the lock when the process ends in any way. On a file system without locks nobody
    waits, so work by two processes at once must be harmless.

    Args:
        purpose: what the holder does, printed by waiting processes.
        wait: False: raise Busy instead.

    Raises:
        Busy: another process holds the lock, and `wait` is False.
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(path), holder_file(path)
    try:
        lock.acquire(timeout=GRACE)
    except Timeout:
        name = "another process"
        with suppress(OSError):
            name = read_bytes(holder).decode(errors="replace")
        if not wait:
            raise Busy(name) from None
        print(f"waiting for {name} ({path})", file=sys.stderr, flush=True)
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write_text(holder, f"process {os.getpid()} on {socket.gethostname()}, {purpose} since {since}")
        yield
    finally:
        for file in (holder, path):  # while locked: waiting processes then notice that the file is gone
            with suppress(OSError):
                file.unlink()
        lock.release()
