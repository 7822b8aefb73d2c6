"""Atomic writes: a reader sees the old file or the new one, never half of one, whenever the process is killed.

What is being written lies beside under the name .NAME.PID.tmp, a folder that is being replaced under .NAME.old; `tidy`
sees to what a killed process left of them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.faults import way_out, why_not_written

UNFINISHED = re.compile(r"\.(.+)\.\d+\.tmp", re.DOTALL)
FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # what a cell begins with that spreadsheets compute
REPLACED = re.compile(r"\.(.+)\.old", re.DOTALL)


class WriteError(UserError, OSError):
    """A file or folder that cannot be written: its name, the reason, the space that is left, the way out.

    An OSError still, for those who can do without it; their `strerror` is the reason.
    """

    def __init__(self, path: Path, error: Exception) -> None:
        reason = why_not_written(path, error)
        super().__init__(f"{path} cannot be written ({reason}): {way_out(error)}")
        self.strerror = reason


def sha256(path: Path) -> str:
    """Of the file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises WriteError instead of what the system says when a file or folder cannot be written."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(path, error) from error


def write_bytes(path: Path, pieces: Iterable[bytes], *, durable: bool = False) -> None:
    """`durable`: safe from a power cut once this returns, which takes milliseconds, on a network file system more.

    Raises:
        WriteError: it cannot be written; what was there is as it was.
    """
    beside = _beside(path)
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.unlink(missing_ok=True)  # of a killed process; or a link out of a folder that somebody sent
            with beside.open("xb") as file:
                file.writelines(pieces)
            if durable:
                sync(beside)
            beside.replace(path)
            if durable:
                sync(path.parent)
        finally:
            with suppress(OSError):  # what went wrong before it is what counts
                beside.unlink(missing_ok=True)


def write_text(path: Path, text: str | Iterable[str], *, durable: bool = False) -> None:
    """`write_bytes` of a text in UTF-8; what cannot be encoded, as in the name of a file, becomes a question mark."""
    pieces = [text] if isinstance(text, str) else text
    write_bytes(path, (piece.encode("utf-8", "replace") for piece in pieces), durable=durable)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path, head: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A text that a spreadsheet would compute ("=1+1.jpg") gets an apostrophe in front."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(map(_as_text, row) for row in rows)
    write_text(path, table.getvalue())


def _as_text(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell


def require_inside(path: Path, folder: Path) -> None:
    """Raises UserError: `path` is a symbolic link, or below one, that leads out of `folder`; or a pipe or device.

    A run that somebody sent may hold links to files of this machine, which would then be written.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is neither a file nor a folder, and nothing is written into it: remove it")
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise UserError(
            f"{path} leads out of {folder} by a symbolic link, and nothing is written through it: remove it, or make "
            f"{folder} itself the link"
        )


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Fill a new folder beside `path`, then give it its name; an older folder of that name is replaced.

    Safe from a power cut once this returns. Of old and new one is whole at every moment, though a process killed
    between the two renamings leaves the old one for `tidy` to bring back.
    """
    beside, old = _beside(path), path.with_name(f".{path.name}.old")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        fill(beside)
        for inside in (*beside.rglob("*"), beside):
            sync(inside)
        _settle(old, path)
        if path.exists():
            path.replace(old)
        beside.replace(path)
        sync(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        _settle(old, path)


def remove_folder(path: Path) -> None:
    """Killed in between, this leaves the whole folder or none of that name, never half of one."""
    beside = _beside(path)
    shutil.rmtree(beside, ignore_errors=True)
    path.replace(beside)
    shutil.rmtree(beside)


def tidy(folder: Path) -> None:
    """Take away what killed processes left unfinished in `folder`, and bring back what they did not get to replace.

    Nobody else may be writing there.
    """
    for path in sorted(folder.glob(".*")):
        if match := REPLACED.fullmatch(path.name):
            _settle(path, folder / match[1])
        elif UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return
    file = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(file)
    except OSError:
        if not is_folder:  # some file systems cannot do it for folders
            raise
    finally:
        os.close(file)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _settle(old: Path, path: Path) -> None:
    """Of a folder and its replacement, one goes."""
    if old.is_dir():
        shutil.rmtree(old) if path.exists() else old.replace(path)
