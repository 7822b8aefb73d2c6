"""Atomic writes: a reader finds the old file or the new one, never a partial one, even if the process is killed.

A file is written under the temporary name .NAME.HOST.PID.tmp in the same folder; a folder that is being replaced is
kept as .NAME.old. What a killed process leaves is removed when a file of the same name is written, or by `tidy`.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.faults import way_out, why_not_written

TEMPORARY = re.compile(r"\.(.+)\.\d+\.tmp", re.DOTALL)
REPLACED = re.compile(r"\.(.+)\.old", re.DOTALL)
FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet evaluates a cell that begins so


class WriteError(UserError, OSError):
    """A file or folder cannot be written: its name, the reason, the free space, the way out.

    Also an OSError, for callers that can do without the file; `strerror` is the reason.
    """

    def __init__(self, path: Path, error: Exception) -> None:
        reason = why_not_written(path, error)
        super().__init__(f"{path} cannot be written ({reason}): {way_out(error)}")
        self.strerror = reason


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Raise WriteError in place of an OSError."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(path, error) from error


def write_bytes(path: Path, pieces: Iterable[bytes], *, durable: bool = False) -> None:
    """Write `pieces` to a file, atomically.

    Args:
        durable: return only when the file is safe from a power cut; takes milliseconds, more on a network file system.

    Raises:
        WriteError: it cannot be written; an existing file is unchanged.
    """
    temporary = _temporary(path)
    with explain_write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)  # left by a killed process, or a link in a folder from somebody else
            with temporary.open("xb") as file:
                file.writelines(pieces)
            if durable:
                sync(temporary)
            temporary.replace(path)
            if durable:
                sync(path.parent)
        finally:
            with suppress(OSError):  # the first error matters
                temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str | Iterable[str], *, durable: bool = False) -> None:
    """Write text as UTF-8, see `write_bytes`; bytes of file names that are not UTF-8 are escaped: \\udce9."""
    pieces = [text] if isinstance(text, str) else text
    write_bytes(path, (piece.encode("utf-8", "backslashreplace") for piece in pieces), durable=durable)


def to_json(value: Any, *, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Return JSON text and a line end; NaN and infinity, which JSON lacks, become null. See json.dumps."""
    try:
        return json.dumps(value, ensure_ascii=ensure_ascii, allow_nan=False, indent=indent) + "\n"
    except ValueError:
        finite = json.loads(json.dumps(value), parse_constant=lambda name: None)
        return to_json(finite, ensure_ascii=ensure_ascii, indent=indent)


def write_json(path: Path, value: Any) -> None:
    write_text(path, to_json(value, indent=2))


def write_csv(path: Path, head: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table; text that a spreadsheet would evaluate ("=1+1.jpg") is prefixed with an apostrophe."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow(f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell for cell in row)
    write_text(path, table.getvalue())


def require_inside(path: Path, folder: Path, *, is_folder: bool = False) -> None:
    """Check that writing to `path` stays inside `folder`: a run from somebody else may hold links to other files.

    Raises:
        UserError: a symbolic link leads `path` out of `folder`, or it is not a file (a folder, if `is_folder`).
    """
    if path.exists() and not (path.is_dir() if is_folder else path.is_file()):
        raise UserError(f"{path} is not a {'folder' if is_folder else 'file'} and cannot be written: remove it")
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise UserError(
            f"{path} leads out of {folder} by a symbolic link, and nothing is written through it: remove it, or make "
            f"{folder} itself the link"
        )


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary folder, then rename it to `path`, replacing an existing folder; durable.

    The old or the new folder is complete at every moment; if the process is killed between the two renames, `tidy`
    restores the old one.
    """
    temporary, old = _temporary(path), path.with_name(f".{path.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        for inside in (*temporary.rglob("*"), temporary):
            sync(inside)
        _restore_or_remove(old, path)
        if path.exists():
            path.replace(old)
        temporary.replace(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _restore_or_remove(old, path)


def remove_folder(path: Path) -> None:
    """Remove a folder, atomically: a killed process leaves the whole folder or nothing under its name."""
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    path.replace(temporary)
    shutil.rmtree(temporary)


def tidy(folder: Path) -> None:
    """Remove temporary files of killed processes from `folder`, and restore folders that they had not yet replaced.

    No other process may be writing there.
    """
    for path in sorted(folder.glob(".*")):
        if match := REPLACED.fullmatch(path.name):
            _restore_or_remove(path, folder / match[1])
        elif TEMPORARY.fullmatch(path.name):
            _remove(path)


def sync(path: Path) -> None:
    """Flush a file, or the directory entries of a folder, to the disk."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return
    file = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(file)
    except OSError:
        if not is_folder:  # some file systems cannot sync folders
            raise
    finally:
        os.close(file)


def _temporary(path: Path) -> Path:
    """Return the temporary name for `path`, and remove what dead processes of this machine left for it."""
    begin = f".{path.name}.{platform.node()}."
    for left in path.parent.glob(f"{glob.escape(begin)}*.tmp"):
        number = left.name.removeprefix(begin).removesuffix(".tmp")
        if number.isdecimal() and not _is_running(number):
            _remove(left)
    return path.with_name(f"{begin}{os.getpid()}.tmp")


def _is_running(process: str) -> bool:
    import psutil  # imported here: almost never needed

    return len(process) < 10 and psutil.pid_exists(int(process))


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _restore_or_remove(old: Path, path: Path) -> None:
    if old.is_dir():
        shutil.rmtree(old) if path.exists() else old.replace(path)
