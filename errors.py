"""The one exception for faults that the user can mend."""


class UserError(Exception):
    """A wrong file, key or value: one sentence that names it and the way out.

    `run.py` and the other commands print the message without a traceback and exit with status 2;
    `HYDRA_FULL_ERROR=1` shows the traceback as well.
    """
