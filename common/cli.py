"""Running a program: exit statuses, one line for an error, and output that is harmless to a terminal."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

from common.errors import UserError
from common.faults import explaining

# What may reach a terminal besides characters: line ends, tabs, and what progress bars need (back to the start of the
# line, one line up, clear, colours). Other control characters could set the window's title, write the clipboard or
# make the terminal type; marks of direction make a text look like another one.
CONTROL = re.compile(r"(\x1b\[(?:A|K|[0-9;]*m))|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LONGEST = 1200  # characters of a line of a message


def printable(text: str) -> str:
    """`text` with its control characters (see CONTROL) escaped."""
    return CONTROL.sub(lambda found: found[1] or found[0].encode("unicode_escape").decode("ascii"), text)


class Printed:
    """A stream that writes only `printable` text.

    Args:
        line_open: whether the last line has no end yet, as under a progress bar.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.line_open = stream, False

    def write(self, text: str) -> int:
        self.line_open = not text.endswith("\n") if text else self.line_open
        return self._stream.write(printable(text))

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` and end the process with its status.

    Everything printed meanwhile is harmless to a terminal; characters that its encoding lacks are escaped.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Printed(stream))
    try:
        try:
            status = main()
        except SystemExit as end:
            status = end.code
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141  # as of a process that SIGPIPE ended
    sys.exit(status)


def exit_status(command: Callable[[], int], *, interrupted: str = "interrupted") -> int:
    """Return the command's own status, 2 after a UserError, or 130 after Ctrl-C; both with a line on stderr."""
    try:
        with explaining():
            return command()
    except UserError as error:
        report(error)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130


def report(error: UserError) -> None:
    """Print the message on stderr, each problem after "error: "; with HYDRA_FULL_ERROR=1 the traceback too."""
    if getattr(sys.stderr, "line_open", False):  # an exception may come while a progress bar is drawn
        print(file=sys.stderr)
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exc()
    for line in map(_shortened, str(error).splitlines()):
        print(line if line.startswith(" ") else f"error: {line}", file=sys.stderr)


def _shortened(line: str) -> str:
    """A message may quote a value of any length; drops the middle of a long line."""
    return line if len(line) <= LONGEST else f"{line[: LONGEST * 2 // 3]} … {line[-LONGEST // 3 :]}"
