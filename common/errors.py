"""The exception for errors that the user can fix."""

from __future__ import annotations


class UserError(Exception):
    """A wrong file, key or value: one sentence that names it and the way out.

    Commands print the message without a traceback and exit with status 2; HYDRA_FULL_ERROR=1 adds the traceback.
    """


def shorten(error: object, longest: int = 200) -> str:
    """Return the first `longest` characters of an error message, on one line."""
    return " ".join(str(error).split())[:longest]
