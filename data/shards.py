"""Addresses of pictures in shards (tar archives, parquet and Arrow files), which stand for the path of a file.

SHARD/@PLACE/NAME, as in /data/0000.tar/@1536+4231/monet.jpg. PLACE is OFFSET+SIZE in bytes in a tar, GROUP.ROW in a
parquet file (row group, and row in it), and 0.ROW in an Arrow file. NAME is the picture's, for people and its suffix;
nothing is ever extracted.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from common.reading import LARGEST_TEXT

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as parquet

TAR, PARQUET, ARROW = SUFFIXES = (".tar", ".parquet", ".arrow")
ADDRESS = re.compile(r"(.+\.(?:tar|parquet|arrow))/@(\d+)([+.])(\d+)/(.+)", re.DOTALL | re.IGNORECASE)
NAMES = ("image", "img", "picture", "jpg", "png")  # columns of pictures, if there are several of bytes
_reading = threading.Lock()  # threads that compute digests would each read the same row group


class Place(NamedTuple):
    """A picture in a shard."""

    shard: Path
    first: int  # byte, or row group
    second: int  # bytes, or row in the group
    name: str

    @property
    def size(self) -> int:
        """Bytes of the picture; -1 for a row, whose size is not known without reading it."""
        return self.second if self.shard.suffix.lower() == TAR else -1


def address(shard: Path, first: int, second: int, name: str) -> Path:
    """Return the address of a picture; of its name, only what stays below the shard is kept."""
    parts = [part for part in PurePosixPath(name.replace("\0", "")).parts if part not in ("/", "//", "..")]
    sign = "+" if shard.suffix.lower() == TAR else "."
    return Path(f"{shard}/@{first}{sign}{second}/{'/'.join(parts) or 'picture'}")


def place_of(path: Path | str) -> Place | None:
    """Return the place that an address stands for; None for the path of a file."""
    text = path.as_posix() if isinstance(path, Path) else path
    found = ADDRESS.fullmatch(text) if "/@" in text else None
    return found and Place(Path(found[1]), int(found[2]), int(found[4]), found[5])


def file_of(path: Path) -> Path:
    """Return the file on disk: the shard of an address, or `path` itself."""
    place = place_of(path)
    return path if place is None else place.shard


def name_in(path: Path) -> Path:
    """Return SHARD/NAME for an address, as in 0000.tar/monet.jpg, for messages and groups; else `path` itself."""
    place = place_of(path)
    return path if place is None else place.shard / place.name


def read_picture(path: Path) -> bytes | None:
    """Return the bytes at an address; None for the path of a file.

    Raises:
        OSError, ValueError: the shard cannot be read, or ends before.
    """
    place = place_of(path)
    if place is None:
        return None
    if place.shard.suffix.lower() == TAR:
        return _read_bytes(place)
    with _reading, arrow_errors():
        cell = _pictures(place.shard, place.first, place.shard.stat().st_mtime_ns)[place.second].as_py()
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if content is None:
        raise ValueError("its row holds no bytes")
    return content


@contextmanager
def arrow_errors() -> Iterator[None]:
    """Raise ValueError in place of pyarrow's errors, not all of which are one, for a damaged file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (OSError, ValueError)) or not type(error).__module__.startswith("pyarrow"):
            raise
        raise ValueError(str(error)) from error


def _read_bytes(place: Place) -> bytes:
    if place.second > LARGEST_TEXT:
        raise ValueError(f"it has {place.second:,} bytes, and the limit is {LARGEST_TEXT:,}")
    with place.shard.open("rb") as file:
        file.seek(place.first)
        content = file.read(place.second)
    if len(content) < place.second:
        raise ValueError(f"the shard ends {place.second - len(content):,} bytes before its end")
    return content


def picture_column(schema: pa.Schema) -> str | None:
    """Return the column of bytes, or of structs with a field `bytes` as the library datasets writes them."""
    import pyarrow.types as types

    def holds(kind: pa.DataType) -> bool:
        if types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return types.is_binary(kind) or types.is_large_binary(kind)

    found = [field.name for field in schema if holds(field.type)]
    return min(found, key=lambda name: (name.lower() not in NAMES, found.index(name)), default=None)


@lru_cache(maxsize=2)
def _pictures(shard: Path, group: int, changed: int) -> pa.ChunkedArray:
    """Return the pictures of a row group, or of a whole Arrow file, which is mapped and not read.

    Args:
        changed: time of the shard's last change; another one is another key of this cache.
    """
    table = arrow_table(shard) if shard.suffix.lower() == ARROW else None
    column = picture_column(_parquet(shard, changed).schema_arrow if table is None else table.schema)
    if column is None:
        raise ValueError("the shard has no column of pictures")
    if table is None:
        table = _parquet(shard, changed).read_row_group(group, columns=[column], use_threads=False)
    return table.column(column)


@lru_cache(maxsize=4)
def _parquet(shard: Path, changed: int) -> parquet.ParquetFile:
    import pyarrow.parquet as parquet  # imported here: an optional package

    return parquet.ParquetFile(shard)


def arrow_table(shard: Path) -> pa.Table:
    """Return the table of an Arrow file, in the form of a stream (as datasets writes it) or of a file."""
    import pyarrow as pa

    source = pa.memory_map(str(shard))
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_file(source).read_all()
