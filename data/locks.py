"""One at a time, across the processes of a machine."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class Busy(Exception):
    """Another process has the lock; the message says which one, and since when."""


@contextmanager
def locked(path: Path, *, purpose: str, wait: bool = True) -> Iterator[None]:
    """Hold the lock `path`; if another process has it, say which one and wait.

    The lock is fcntl's, of this process and not of those that it starts: the system frees it when the process ends,
    however it ends. Where there are no such locks (Windows; some network file systems), or where they do not reach
    other machines, nobody waits: two doing at once what is done under the lock must cost time and no more.

    Args:
        purpose: what the holder does, for those who wait.
        wait: False: raise Busy instead.

    Raises:
        Busy: another process has the lock, and `wait` is False.
        OSError: the file cannot be written.
    """
    file = _held(path, wait=wait)
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}, {purpose} since {since}".encode())
        try:
            yield
        finally:
            os.ftruncate(file, 0)
    finally:
        os.close(file)


def _held(path: Path, *, wait: bool) -> int:
    """The open file, with the lock; opened anew where its holder took the file away before he gave up the lock."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)  # it is emptied below
        try:
            _acquire(file, path, wait=wait)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.stat()):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _acquire(file: int, path: Path, *, wait: bool) -> None:
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # which of the two depends on the system
        holder = path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
        if not wait:
            raise Busy(holder) from None
        print(f"waiting for {holder} ({path})", file=sys.stderr, flush=True)
        fcntl.lockf(file, fcntl.LOCK_EX)
    except OSError:
        return  # this file system has no locks
