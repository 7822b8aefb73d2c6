"""Entry point of every command: exit status, one line per error, output without terminal escape sequences."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, NoReturn, TextIO

from common.errors import UserError
from common.faults import explain_errors
from common.ranks import world_size

# They could set the window title, write to the clipboard, type into the shell or hide text; direction marks could
# disguise a file name.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# In a terminal, what progress bars write by itself (line up) or first (carriage return), and a bold line, stay.
IN_TERMINAL = re.compile(
    r"(\A[\r\n]*(?:\x1b\[A)+\Z|\A\r|\r(?=\n)|\x1b\[0m|^\x1b\[1m(?=[^\x1b\n]*\x1b\[0m$))|" + CONTROL.pattern,
    re.MULTILINE,
)
STOPPED = 75  # exit status, EX_TEMPFAIL in sysexits.h: the same command resumes
# SIGUSR1: clusters send it some minutes before the time limit.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
MAX_LINE = 1200  # characters of one line of a message


def printable(text: str) -> str:
    """Return `text` with control characters (see IN_TERMINAL) escaped."""
    return IN_TERMINAL.sub(lambda match: match[1] or match[0].encode("unicode_escape").decode("ascii"), text)


class PrintableStream:
    """Escapes control characters on their way to `stream`; `line_open` is true while its last line is unfinished."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.line_open = stream, False

    def write(self, text: str) -> int:
        self.line_open = not text.endswith("\n") if text else self.line_open
        return self._stream.write(printable(text))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def exit_at_signals() -> None:
    """End this process at SIGINT with status 130, at SIGTERM and SIGUSR1 with STOPPED, unless they are ignored.

    With several processes nothing changes: Python's handlers do not run while a process waits for the others.
    """
    own = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a fork, such as a loader process
            os._exit(128 + number)
        interrupted = number == signal.SIGINT
        text = "interrupted" if interrupted else f"{signal.Signals(number).name}: stopped"
        os.write(sys.__stderr__.fileno(), f"\n{text}\n".encode())  # print would fail where it interrupts another print
        sys.exit(130 if interrupted else STOPPED)

    for number in STOP_SIGNALS if world_size() == 1 else ():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` and exit with its status; escape control characters and what the terminal's encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, PrintableStream(stream))
    try:
        try:
            status = main()
        except SystemExit as end:
            status = end.code
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141  # 128 + SIGPIPE
    sys.exit(status)


def exit_status(command: Callable[[], int], *, interrupted: str = "interrupted") -> int:
    """Return the status of `command`, 2 after a UserError or 130 after Ctrl-C; the last two print a line on stderr."""
    try:
        with explain_errors():
            return command()
    except UserError as error:
        report(error)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130


def report(error: UserError) -> None:
    """Print each line of the message on stderr after "error: ", and the traceback if HYDRA_FULL_ERROR=1."""
    if getattr(sys.stderr, "line_open", False):  # a progress bar is on the current line
        print(file=sys.stderr)
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exc()
    for line in str(error).splitlines():
        if len(line) > MAX_LINE:  # a message may quote a value of any length
            line = f"{line[: MAX_LINE * 2 // 3]} … {line[-MAX_LINE // 3 :]}"
        print(line if line.startswith(" ") else f"error: {line}", file=sys.stderr)
