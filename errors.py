"""The one exception for faults that the user can mend, and what commands make of it."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

# What may reach a terminal besides characters: line ends, tabs, and what progress bars need (back to the start of the
# line, one line up, clear, colours). Other control characters could set the window's title, write the clipboard or
# make the terminal type; marks of direction make a text look like another one.
CONTROL = re.compile(r"(\x1b\[(?:A|K|[0-9;]*m))|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


LONGEST = 1200  # characters of a line of a message


class UserError(Exception):
    """A wrong file, key or value: one sentence that names it and the way out.

    `run.py` and the other commands print the message without a traceback and exit with status 2;
    `HYDRA_FULL_ERROR=1` shows the traceback as well.
    """


def in_short(error: object, longest: int = 200) -> str:
    """What an error of another library says, on one line."""
    return " ".join(str(error).split())[:longest]


def printable(text: str) -> str:
    """`text` with its control characters escaped (see CONTROL), so that they are seen and not obeyed."""
    return CONTROL.sub(lambda found: found[1] or found[0].encode("unicode_escape").decode("ascii"), text)


def shortened(text: str) -> str:
    """`text` without the middle of lines that nobody would read: a message may quote a value of any length."""
    lines = text.split("\n")
    return "\n".join(
        line if len(line) <= LONGEST else f"{line[: LONGEST * 2 // 3]} … {line[-LONGEST // 3 :]}" for line in lines
    )


class Printed:
    """A stream of which everything is `printable`, and the rest as the stream has it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(printable(text))

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Ends the process with the status of `main`.

    Names of files, texts and messages that are printed meanwhile are harmless to a terminal; what its encoding lacks is
    escaped.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Printed(stream))
    sys.exit(main())


def exit_status(command: Callable[[], int], *, interrupted: str = "interrupted") -> int:
    """Status of a command: its own, or 2 with the fault as a line on stderr, or 130 after Ctrl-C.

    HYDRA_FULL_ERROR=1 shows the whole traceback of a fault.
    """
    from faults import explaining

    try:
        with explaining():
            return command()
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        print(f"error: {shortened(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
