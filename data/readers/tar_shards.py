"""List the pictures of a tar archive with their places, and what is beside them; one pass over its headers.

A picture and what belongs to it have one name and different suffixes, KEY.jpg and KEY.json, as in WebDataset; but KEY
ends at the last dot, since names of paintings contain dots.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from common.errors import shorten
from data.image_files import id_of
from data.images import suffixes
from data.readers.shard_lists import Shard
from data.schema import Skipped
from data.shards import address

BESIDE = (".json", ".txt", ".cls")
LARGEST_BESIDE = 1 << 24  # bytes
END = bytes(tarfile.BLOCKSIZE)  # begins the end mark of an archive
USED = "only the pictures before are used ({count:,}); make the shard anew"


class Picture(NamedTuple):
    name: str  # of the member, as text
    path: Path  # its address
    beside: dict[str, tuple[int, int]]  # suffix → offset and size in bytes


class Contents(NamedTuple):
    pictures: list[Picture]
    skipped: list[Skipped]  # members that cannot be used; the shard itself if it is torn or empty


def read_tar(shard: Shard) -> Contents:
    """Return the pictures in the order of the archive; nothing is extracted. Raises OSError: it cannot be opened."""
    contents, beside = Contents([], []), {}
    seen: set[str | PurePosixPath] = set()  # names, of pictures without their suffix
    with shard.path.open("rb") as file:
        scan = _Scan(file, os.fstat(file.fileno()).st_size)
        for member in scan:
            name = id_of(member.name)
            path = PurePosixPath(name)
            suffix, key = path.suffix.lower(), str(path.with_suffix("")) if path.suffix else name
            if path.name.startswith(".") or suffix not in (*BESIDE, *suffixes()) or member.isdir():
                continue
            place = address(shard.path, member.offset_data, member.size, name)
            reason = None
            if not member.isreg() or member.issparse():
                reason = "it is a link or another special member of the archive, not a picture itself"
            elif (path if suffix in BESIDE else key) in seen:
                reason = "an earlier member of the shard has the same name, which is used alone"
            if reason:
                contents.skipped.append(Skipped(f"{shard.name}/{name}", place, reason))
                continue
            seen.add(path if suffix in BESIDE else key)
            if suffix in BESIDE:
                beside.setdefault(key, {})[suffix] = (member.offset_data, member.size)
            else:
                contents.pictures.append(Picture(name, place, beside.setdefault(key, {})))
    count = len(contents.pictures)
    if scan.fault is not None:
        contents.skipped.append(Skipped(shard.name, shard.path, f"{scan.fault}; {USED.format(count=count)}"))
    elif not contents.pictures and not contents.skipped:
        contents.skipped.append(Skipped(shard.name, shard.path, "the shard holds no picture"))
    return contents


class _Scan:
    """Iterates over the members that are there as a whole; then `fault` says where the archive is torn, or is None."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.fault = file, size, None

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        archive, begin = None, 0
        try:
            archive = tarfile.open(fileobj=self.file, mode="r:")  # noqa: SIM115 -- the file is closed by the caller
            while (member := archive.next()) is not None:
                begin = member.offset
                if member.isreg() and not member.issparse() and member.offset_data + member.size > self.size:
                    break
                begin = archive.offset
                yield member
            self.file.seek(begin)
            if self.file.read(len(END)) != END:
                self.fault = f"the shard is torn, or ends without its end mark, at byte {begin:,}"
        except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError, MemoryError) as error:
            begin = begin if archive is None else archive.offset
            self.fault = f"the shard is damaged at byte {begin:,} ({shorten(error, 80)})"
        if self.size == 0:
            self.fault = "the shard is an empty file"


def read_beside(shard: Path, place: tuple[int, int]) -> bytes:
    """Return the content of a file beside a picture; raises ValueError if it is too large."""
    offset, size = place
    if size > LARGEST_BESIDE:
        raise ValueError(f"it has {size:,} bytes, and the limit is {LARGEST_BESIDE:,}")
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(size)
