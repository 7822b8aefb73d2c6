"""One-sentence explanations of errors from outside the program: full disk, out of memory, dead loader process."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import UserError

# Errors of the machine, with the way out; any other OSError may be a bug of the program.
WAYS_OUT = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "your quota there is used up: make room, or have it raised",
    errno.EFBIG: "no file may be that large there: see `ulimit -f`, or name a folder on another disk",
    errno.EROFS: "name a folder that is not read-only",
    errno.EACCES: "name a folder with write permission",
    errno.EPERM: "name a folder with write permission",
    errno.EIO: "the disk is failing: name a folder on another disk",
    errno.ESTALE: "the network file system was unavailable: start again",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "the machine has too many files open",
}
RESOURCE = set(WAYS_OUT) - {errno.EACCES, errno.EPERM}
WRONG_PATHS = {
    errno.ENOENT: "one of its folders was removed meanwhile: start again",
    errno.EISDIR: "remove the folder that is in its place",
    errno.ENOTDIR: "remove the file that is in the place of one of its folders",
    errno.EEXIST: "remove what is in its place",
    errno.ENAMETOOLONG: "name a folder with a shorter path",
}
NOT_THE_DISK = {errno.EROFS, errno.ESTALE, errno.EMFILE, errno.ENFILE, *WRONG_PATHS}
BY_NUMBER = re.compile(r"\(os error (\d+)\)")  # end of a message of Rust's libraries
NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|could not create a (?:primitive|memory)",  # oneDNN
    re.I,
)
DEAD = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (\w[\w ]*)|exited)")
REBUILDING = ("torch", "multiprocessing", "reductions.py")  # receives the tensors of another process
SHARED_MEMORY = re.compile(r"bus error|shared memory|unable to (?:write to|open|resize|mmap) .*/?torch_", re.I)


def why_not_written(path: Path, error: Exception) -> str:
    """Return why `path` could not be written and, if that matters, the free space on its disk."""
    number = _errno(error)
    reason = os.strerror(number) if number is not None else " ".join(str(error).split())
    if number not in NOT_THE_DISK:
        with suppress(OSError, StopIteration):
            existing = next(folder for folder in (path, *path.parents) if folder.exists())
            return f"{reason}; {gigabytes(shutil.disk_usage(existing).free)} free"
    return reason


def way_out(error: Exception) -> str:
    """Return what to do about an error of writing."""
    return (WAYS_OUT | WRONG_PATHS).get(_errno(error), "make room there, or name another folder")


def _errno(error: Exception) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = BY_NUMBER.search(str(error))
    return int(match[1]) if match else None


def gigabytes(count: float) -> str:
    """Format a number of bytes: 3.2 GB, or megabytes below 0.1 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def out_of_memory(error: BaseException) -> bool:
    """Return whether the machine or its GPU is out of memory; torch has an exception class only for the GPU."""
    torch = sys.modules.get("torch")  # if it was not imported, it did not raise
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None


def loader_died(error: BaseException) -> str | None:
    """Explain a loader process that died or ran out of shared memory; None for another error."""
    text = str(error)
    dead = DEAD.search(text)
    if not _cut_off(error) and not (isinstance(error, RuntimeError) and (dead or SHARED_MEMORY.search(text))):
        return None
    process = f"the loader process {dead[1]}" if dead else "a loader process"
    if SHARED_MEMORY.search(text.partition("It is possible")[0]):  # torch's guess after every signal
        free = "/dev/shm"
        with suppress(OSError):
            usage = shutil.disk_usage("/dev/shm")
            free = f"/dev/shm has {gigabytes(usage.total)}, of which {gigabytes(usage.free)} are free"
        return (
            f"{process} ran out of shared memory ({free}): give the container more (docker run --shm-size=8g, or "
            "--ipc=host), or load in this process (dataset.…_ds.num_workers=0)"
        )
    how = f"was killed by a signal ({dead[2].strip()})" if dead and dead[2] else "ended unexpectedly"
    return (
        f"{process} {how}; unless somebody killed it, the system did so because memory ran out: lower "
        "dataset.…_ds.num_workers, or request more memory"
    )


def _cut_off(error: BaseException) -> bool:
    """Return whether a loader process died while its tensors were being received; no message of a library says so."""
    frames = traceback.walk_tb(error.__traceback__) if isinstance(error, (ConnectionError, EOFError)) else ()
    return any(Path(frame.f_code.co_filename).parts[-3:] == REBUILDING for frame, _ in frames)


def explain_error(error: BaseException) -> str | None:
    """Explain an error from outside the program in one sentence; None for any other error."""
    dynamo = sys.modules.get("torch._dynamo.exc")  # imported once torch.compile was used
    if dynamo is not None and isinstance(error, dynamo.TorchDynamoException):
        return (
            f"torch.compile failed ({first_sentence(error)}): it needs a C++ compiler, and Triton on a GPU; set "
            "trainer.compile=false"
        )
    if died := loader_died(error):
        return died
    if out_of_memory(error):
        return (
            f"memory ran out ({first_sentence(error)}): lower dataset.train_ds.batch_size (in mode=test and "
            "mode=predict dataset.test_ds.batch_size, top_emotions, trainer.test.beam_width, best_of or max_length), "
            "or end other programs that use the memory"
        )
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: run make venv, or pip install -r requirements.txt"
    if isinstance(error, FileNotFoundError) and "checkpoints/step-" in str(error.filename):
        return (
            f"{error.filename} no longer exists: a running training has replaced it; repeat the command, or name a "
            "checkpoint that stays, such as the best"
        )
    if isinstance(error, OSError) and error.errno in RESOURCE:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror or error}: {way_out(error)}"
    return None


@contextmanager
def explain_errors() -> Iterator[None]:
    """Raise UserError in place of an error from outside the program."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (explanation := explain_error(error)) is None:
            raise
        raise UserError(explanation) from error


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of torch's message, without the place in its sources and its advice."""
    text = re.sub(r"^\[enforce fail at [^\]]*\][^.]*\. ", "", " ".join(str(error).split()))
    return re.split(r"\. (?:Error code|GPU \d|See |If )", text)[0] or type(error).__name__
