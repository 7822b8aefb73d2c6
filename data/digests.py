"""What a file holds, by a digest of its bytes; a file that did not change is not read again to know it."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from files import write_text
from foreign import LARGEST_TEXT, require_file
from progress import progress

# A file changed twice within one tick of its file system's clock (2 s on FAT) has one time for both contents.
TICK_NS = 2_000_000_000
LONGEST = 1_000_000  # lines; about 150 MB
BLOCK = 1000  # files remembered at once
NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # a memo that came with a cache may be a link to any file of the user's
THREADS = min(8, 2 * (os.cpu_count() or 1))  # they wait for the disk, and hash without holding the interpreter


class Signature(NamedTuple):
    """What the file system says of a file; as in git's index, a file with the same signature has the same content."""

    size: int
    mtime_ns: int
    ctime_ns: int  # of the last change of any kind; unlike mtime, no program can set it back
    inode: int


class Content(NamedTuple):
    """digest: of the file's bytes, in hex; None where they cannot be read."""

    digest: str | None
    signature: Signature | None


def signature_of(path: Path) -> Signature | None:
    """None where there is no ordinary file."""
    try:
        info = path.stat()
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(info.st_mode):
        return None
    return Signature(info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)


class FileDigests:
    """Digests of files, kept with their signatures in `memo`: one JSON line [path, size, mtime, ctime, inode, digest].

    Later lines win. Lines are appended whole; a torn one, or a memo that cannot be read or written, costs reading
    the files again and nothing else. None: nothing is kept.
    """

    def __init__(self, memo: Path | None) -> None:
        self.memo = memo
        self.known: dict[str, Content] = {}
        lines = 0
        for path, content in _read(memo) if memo is not None else ():
            lines += 1
            self.known.pop(path, None)  # so that the order is that of the last lines
            self.known[path] = content
        if lines > LONGEST:
            self._shorten()

    def contents(self, paths: Iterable[Path], *, show: bool = True) -> dict[Path, Content]:
        """The content of every path; the bytes are read of files that are new or changed.

        Args:
            show: a line of progress where anything has to be read.
        """
        found: dict[Path, Content] = {}
        unknown: list[Path] = []
        for path in dict.fromkeys(paths):
            content, signature = self.known.get(str(path)), signature_of(path)
            if content is not None and content.signature == signature:
                found[path] = content
            else:
                unknown.append(path)
        if not unknown:
            return found
        with (
            progress(len(unknown), "reading new and changed files", unit="file", enabled=show) as bar,
            ThreadPoolExecutor(THREADS) as pool,
        ):
            for start in range(0, len(unknown), BLOCK):
                some, lasting = unknown[start : start + BLOCK], {}
                for path, (content, lasts) in zip(some, pool.map(_content, some), strict=True):
                    found[path] = content
                    if lasts:
                        lasting[path] = content
                    bar.update()
                if lasting and self.memo is not None:
                    self._remember(lasting)
        return found

    def _remember(self, contents: dict[Path, Content]) -> None:
        self.known |= {str(path): content for path, content in contents.items()}
        text = "".join(map(_line, contents, contents.values()))
        try:
            self.memo.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.memo, os.O_WRONLY | os.O_APPEND | os.O_CREAT | NO_LINK, 0o666)
            try:
                os.write(file, f"\n{text}".encode("ascii"))  # the line end closes one that a killed run tore
            finally:
                os.close(file)
        except OSError:
            return  # a folder that is only read: the files are read again next time

    def _shorten(self) -> None:
        """Keep the newer half; files that lie elsewhere in every job would let the memo grow without end."""
        self.known = dict(islice(self.known.items(), max(0, len(self.known) - LONGEST // 2), None))
        try:
            write_text(self.memo, "".join(map(_line, self.known, self.known.values())))
        except OSError:
            return


def _content(path: Path) -> tuple[Content, bool]:
    """The file's content, and whether its signature may stand for it from now on."""
    before, now = signature_of(path), time.time_ns()
    if before is None:
        return Content(None, None), False
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=20)).hexdigest()
    except OSError:
        return Content(None, before), False
    if signature_of(path) != before:
        return Content(None, before), False
    return Content(digest, before), max(before.mtime_ns, before.ctime_ns) + TICK_NS < now


def _line(path: Path | str, content: Content) -> str:
    return json.dumps([str(path), *content.signature, content.digest]) + "\n"


def _read(memo: Path) -> Iterator[tuple[str, Content]]:
    try:
        require_file(memo, largest=LARGEST_TEXT)
        with memo.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    path, *numbers, digest = json.loads(line)
                    if isinstance(path, str) and isinstance(digest, str) and all(type(n) is int for n in numbers):
                        yield path, Content(digest, Signature(*numbers))
                except (ValueError, TypeError, RecursionError):
                    continue
    except OSError:
        return
