"""Digests of files, remembered so that an unchanged file is not read again."""

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
from data.shards import file_of, place_of, read_picture

# A file changed twice within one tick of its file system's clock (2 s on FAT) has one time for both contents.
TICK_NS = 2_000_000_000
MOST = 1_000_000  # remembered files; about 150 MB
BLOCK = 20_000  # files between two saves
THREADS = min(8, 2 * (os.cpu_count() or 1))  # hashing releases the GIL


class Signature(NamedTuple):
    """Metadata of a file; as in git's index, the same signature means the same content."""

    size: int
    mtime_ns: int
    ctime_ns: int  # of the last change; unlike mtime, no program can set it back
    inode: int


class Content(NamedTuple):
    digest: str | None  # of the bytes, in hex; None if unreadable
    signature: Signature | None


def signature_of(path: Path) -> Signature | None:
    """Return None if `path` is not an ordinary file; of a picture in a shard, the signature has the shard's times."""
    try:
        info = file_of(path).stat()
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(info.st_mode):
        return None
    size = info.st_size if (place := place_of(path)) is None else place.size
    return Signature(size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)


class FileDigests:
    """Digests of files, stored with their signatures in `memo`: JSON, {path: [size, mtime, ctime, inode, digest]}.

    If the memo cannot be read or written, the files are read again. None: nothing is stored.
    """

    def __init__(self, memo: Path | None) -> None:
        self.memo = memo
        self.known = {} if memo is None else _read(memo)

    def contents(self, paths: Iterable[Path], *, show: bool = True) -> dict[Path, Content]:
        """Return the content of every path; only new and changed files are read.

        Args:
            show: show a progress bar.
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
                block, stable = unknown[start : start + BLOCK], {}
                for path, (content, is_stable) in zip(block, pool.map(_content, block), strict=True):
                    found[path] = content
                    if is_stable:
                        stable[str(path)] = content
                    bar.update()
                if stable and self.memo is not None:
                    self._remember(stable)
        return found

    def _remember(self, new: dict[str, Content]) -> None:
        """Store the newest MOST; the memo would grow without limit if every job had its files in another folder."""
        known = {path: content for path, content in self.known.items() if path not in new} | new
        self.known = dict(islice(known.items(), max(0, len(known) - MOST), None))
        known = {path: [*content.signature, content.digest] for path, content in self.known.items()}
        with suppress(OSError):  # the folder is read-only
            write_text(self.memo, json.dumps(known))


def equal_files(first: Iterable[Path], second: Iterable[Path], memo: Path | None) -> list[tuple[Path, Path]]:
    """Return pairs of a file of `first` and one of `second` with the same bytes; only those of equal size are read."""
    sizes = [{path: signature.size for path in paths if (signature := signature_of(path))} for paths in (first, second)]
    shared = {*sizes[0].values()} & {*sizes[1].values()}
    ours, theirs = ([path for path, size in group.items() if size in shared] for group in sizes)
    contents = FileDigests(memo).contents([*ours, *theirs])
    by_digest = {digest: path for path in ours if (digest := contents[path].digest)}
    return [(by_digest[digest], path) for path in theirs if (digest := contents[path].digest) in by_digest]


def _content(path: Path) -> tuple[Content, bool]:
    """Return the content, and whether its signature will identify it from now on."""
    before, now = signature_of(path), time.time_ns()
    if before is None:
        return Content(None, None), False
    try:
        if (picture := read_picture(path)) is not None:
            digest = hashlib.blake2b(picture, digest_size=20).hexdigest()
        else:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=20)).hexdigest()
    except (OSError, ValueError):
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
