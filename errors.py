"""The one exception for faults that the user can mend, and what commands make of it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """A wrong file, key or value: one sentence that names it and the way out.

    `run.py` and the other commands print the message without a traceback and exit with status 2;
    `HYDRA_FULL_ERROR=1` shows the traceback as well.
    """


def run_program(main: Callable[[], int]) -> NoReturn:
    """Ends the process with the status of `main`; names of files that the terminal's encoding lacks are escaped."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    sys.exit(main())


def exit_status(command: Callable[[], int], *, interrupted: str = "interrupted") -> int:
    """Status of a command: its own, or 2 with the fault as a line on stderr, or 130 after Ctrl-C.

    HYDRA_FULL_ERROR=1 shows the whole traceback of a fault.
    """
    try:
        return command()
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
