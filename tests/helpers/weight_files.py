"""For tests that read other projects' weights: a malicious pickle, memory use, and the error of a refused import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function: Callable, *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def anonymous_memory() -> int:
    """Return the bytes of this process's memory that are not mapped from files; skip the test outside Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("memory use is read from /proc")
    lines = status.read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def error_of(command: Callable[[], int], folder: Path, capsys: pytest.CaptureFixture) -> str:
    """Return the one error message of a command that exits with status 2 and leaves `folder` unchanged."""
    before = sorted(folder.rglob("*"))
    assert command() == 2
    assert sorted(folder.rglob("*")) == before
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line
