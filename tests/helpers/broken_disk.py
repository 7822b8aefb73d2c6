"""Faults inside a process: a disk that is full for some files, permissions that also apply to root."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CAPABILITIES = 0x20080522  # version 3 of capset(2)


def full_for(name: str) -> Callable[[], None]:
    """Return a function after whose call opening a file of this name, or its temporary file, raises ENOSPC."""
    return partial(_full_for, name)


def _full_for(name: str) -> None:
    def audit(event: str, args: tuple) -> None:
        if event == "open" and isinstance(args[2], int) and args[2] & WRITING and isinstance(args[0], str | bytes):
            opened = Path(os.fsdecode(args[0])).name
            if opened == name or opened.startswith(f".{name}."):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), args[0])

    sys.addaudithook(audit)


def bound_by_permissions() -> None:
    """Make permissions apply to this process even if it runs as root."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())
