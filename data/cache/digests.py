"""What a file holds, by a digest of its bytes; a file that did not change is not read again to know it."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from common.files import write_text
from common.progress import progress
from common.reading import LARGEST_TEXT, read_json

# A file changed twice within one tick of its file system's clock (2 s on FAT) has one time for both contents.
TICK_NS = 2_000_000_000
MOST = 1_000_000  # files that are remembered; about 150 MB
BLOCK = 20_000  # files read between one saving and the next
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
    """Digests of files, kept with their signatures in `memo`: JSON, {path: [size, mtime, ctime, inode, digest]}.

    A memo that cannot be read or written costs reading the files again and nothing else. None: nothing is kept.
    """

    def __init__(self, memo: Path | None) -> None:
        self.memo = memo
        self.known = {} if memo is None else _read(memo)

    def contents(self, paths: Iterable[Path], *, show: bool = True) -> dict[Path, Content]:
        """The content of every path; only new and changed files are read.

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
                        lasting[str(path)] = content
                    bar.update()
                if lasting and self.memo is not None:
                    self._remember(lasting)
        return found

    def _remember(self, new: dict[str, Content]) -> None:
        """Keep the newest; files that lie elsewhere in every job would let the memo grow without end."""
        known = {path: content for path, content in self.known.items() if path not in new} | new
        self.known = dict(islice(known.items(), max(0, len(known) - MOST), None))
        known = {path: [*content.signature, content.digest] for path, content in self.known.items()}
        with suppress(OSError):  # a folder that is only read
            write_text(self.memo, json.dumps(known))


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


def _read(memo: Path) -> dict[str, Content]:
    try:
        known = read_json(memo, largest=LARGEST_TEXT).items()
        return {path: Content(str(digest), Signature(*map(int, numbers))) for path, (*numbers, digest) in known}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError):
        return {}
