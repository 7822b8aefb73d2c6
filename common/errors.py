"""The one exception for errors that the user can fix."""

from __future__ import annotations


class UserError(Exception):
    """A wrong file, key or value: one sentence that names it and the way out.

    `run.py` and the other commands print the message without a traceback and exit with status 2;
    `HYDRA_FULL_ERROR=1` shows the traceback as well.
    """


def in_short(error: object, longest: int = 200) -> str:
    """The message of another library's error, on one line."""
    return " ".join(str(error).split())[:longest]
