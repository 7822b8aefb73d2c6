"""What goes wrong around a program and not in it, as sentences with a way out: full disks, memory, dead processes."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError

# OSErrors that tell of the machine, with the way out; any other may be a mistake of the program's own.
WAYS_OUT = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "your quota there is used up: make room, or have it raised",
    errno.EFBIG: "no file may be that large there: see `ulimit -f`, or name a folder of another disk",
    errno.EROFS: "name a folder that can be written",
    errno.EACCES: "name a folder that you may write into",
    errno.EPERM: "name a folder that you may write into",
    errno.EIO: "the disk itself fails: name a folder of another one",
    errno.ESTALE: "its network file system went away for a while: start again",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "the machine has too many files open",
}
RESOURCE = set(WAYS_OUT) - {errno.EACCES, errno.EPERM}
BY_NUMBER = re.compile(r"\(os error (\d+)\)")  # as Rust's libraries end their messages
NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|could not create a (?:primitive|memory)",  # oneDNN's words for it
    re.I,
)
DEAD = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (\w[\w ]*)|exited)")
REBUILDING = ("torch", "multiprocessing", "reductions.py")  # tensors of another process
SHARED_MEMORY = re.compile(r"bus error|shared memory|unable to (?:write to|open|resize|mmap) .*/?torch_", re.I)


def why_not_written(path: Path, error: Exception) -> str:
    """The reason for which a file or folder could not be written, and how much space its disk has left."""
    number = _number(error)
    reason = os.strerror(number) if number is not None else " ".join(str(error).split())
    return reason + _space(path, number)


def way_out(error: Exception) -> str:
    """What to do about an error of writing."""
    return WAYS_OUT.get(_number(error), "make room there, or name another folder")


def _number(error: Exception) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = BY_NUMBER.search(str(error))
    return int(found[1]) if found else None


def _space(path: Path, number: int | None) -> str:
    if number in RESOURCE - {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}:
        return ""
    there = next((folder for folder in (path, *path.parents) if folder.exists()), None)
    try:
        return f"; {gigabytes(shutil.disk_usage(there).free)} free" if there is not None else ""
    except OSError:
        return ""


def gigabytes(count: float) -> str:
    """3.2 GB; below a tenth of it in megabytes."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def out_of_memory(error: BaseException) -> bool:
    """Of the machine or of its GPU; torch has a class for the GPU only."""
    torch = sys.modules.get("torch")  # if it was not imported, it did not raise
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None


def loader_died(error: BaseException) -> str | None:
    """Of a loader process that is no more, or that found no shared memory: what to do. None: it is another error."""
    text = str(error)
    dead = DEAD.search(text)
    if not _cut_off(error) and not (isinstance(error, RuntimeError) and (dead or SHARED_MEMORY.search(text))):
        return None
    who = f"the loader process {dead[1]}" if dead else "a loader process"
    if SHARED_MEMORY.search(text.partition("It is possible")[0]):  # torch suspects it after every signal
        return (
            f"{who} found no room in shared memory ({_shared_memory()}): give the container more (docker run "
            "--shm-size=8g, or --ipc=host), or load in this process (dataset.…_ds.num_workers=0)"
        )
    how = f"was killed by a signal ({dead[2].strip()})" if dead and dead[2] else "ended unexpectedly"
    return (
        f"{who} {how}; where nobody did it by hand, the system did, as memory ran out: lower "
        "dataset.…_ds.num_workers, or ask for more memory"
    )


def _cut_off(error: BaseException) -> bool:
    """Whether a loader process was gone while its tensors were being fetched: no library says so in words."""
    frames = traceback.walk_tb(error.__traceback__) if isinstance(error, (ConnectionError, EOFError)) else ()
    return any(Path(frame.f_code.co_filename).parts[-3:] == REBUILDING for frame, _ in frames)


def _shared_memory() -> str:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return "/dev/shm"
    return f"/dev/shm has {gigabytes(usage.total)}, of which {gigabytes(usage.free)} are free"


def not_compiled(error: BaseException) -> bool:
    """Whether torch.compile has failed; its errors are in a module that is there once it was used."""
    dynamo = sys.modules.get("torch._dynamo.exc")
    return dynamo is not None and isinstance(error, dynamo.TorchDynamoException)


def explained(error: BaseException) -> str | None:
    """One sentence of an error that came from outside the program; None of any other."""
    if not_compiled(error):
        return (
            f"torch.compile failed ({first_line(error)}): it needs a C++ compiler, and Triton on a GPU; set "
            "trainer.compile=false"
        )
    if died := loader_died(error):
        return died
    if out_of_memory(error):
        return (
            f"memory ran out ({first_line(error)}): lower dataset.train_ds.batch_size (in mode=test and mode=predict "
            "dataset.test_ds.batch_size, top_emotions, trainer.test.beam_width, best_of or max_length), or end what "
            "else uses the memory"
        )
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: run make venv, or pip install -r requirements.txt"
    if isinstance(error, FileNotFoundError) and "checkpoints/step-" in str(error.filename):
        return (
            f"{error.filename} is gone: the training that goes on there has replaced it meanwhile; repeat the command, "
            "or name a checkpoint that stays, such as the best"
        )
    if isinstance(error, OSError) and error.errno in RESOURCE:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror or error}: {way_out(error)}"
    return None


@contextmanager
def explaining() -> Iterator[None]:
    """Raises UserError instead of an error that came from outside the program."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (said := explained(error)) is None:
            raise
        raise UserError(said) from error


def first_line(error: BaseException) -> str:
    """What was asked for, without the place in torch's sources and its advice."""
    text = re.sub(r"^\[enforce fail at [^\]]*\][^.]*\. ", "", " ".join(str(error).split()))
    return re.split(r"\. (?:Error code|GPU \d|See |If )", text)[0] or type(error).__name__
