"""What tests do to a process from within: a disk that is full for some files, permissions that bind root too."""

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
    """To be called in a process: from then on there is no space to open a file of this name, or what becomes it, in."""
    return partial(_full_for, name)


def _full_for(name: str) -> None:
    def audit(event: str, args: tuple) -> None:
        if event == "open" and isinstance(args[2], int) and args[2] & WRITING and isinstance(args[0], str | bytes):
            opened = Path(os.fsdecode(args[0])).name
            if opened == name or opened.startswith(f".{name}."):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), args[0])

    sys.addaudithook(audit)


def bound_by_permissions() -> None:
    """To be called in a process: what permissions forbid is forbidden for root too."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())
