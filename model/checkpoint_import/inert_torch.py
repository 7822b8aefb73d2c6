"""The tensors of a file that torch.save wrote, whatever objects they are in, without running anything in it.

Read are the zip file that torch has written since 1.6 and the form before it; torch's own `weights_only` reads no whole
modules of the latter, and no objects of foreign classes. A module becomes what it is in the pickle: a name, its
attributes and its tensors. The file is mapped into memory: what is not asked for is not read.
"""

from __future__ import annotations

import io
import math
import mmap
import zipfile
import zlib
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from errors import UserError
from model.checkpoint_import.inert_pickle import Built, Refused, load

LARGEST_PICKLE = 1 << 26  # bytes of the objects, which hold no numbers of the tensors: 1 MB for 500 M parameters
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what a file before torch 1.6 begins with
TAR = slice(257, 262), b"ustar"
DTYPES = {
    f"{module}.{name}Storage": dtype
    for module in ("torch", "torch.cuda")
    for name, dtype in (
        ("Float", torch.float32),
        ("Double", torch.float64),
        ("Half", torch.float16),
        ("BFloat16", torch.bfloat16),
        ("Long", torch.int64),
        ("Byte", torch.uint8),
        ("Bool", torch.bool),
    )
}
REBUILD, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str


class TorchFile:
    """A file of torch.save.

    Args:
        allowed: names of classes and functions that may be in it, besides those of tensors.

    Raises:
        UserError: the file cannot be read, or is refused.
    """

    def __init__(self, path: Path, *, allowed: Collection[str]) -> None:
        self.path = path
        self._allowed = {*allowed, *DTYPES, REBUILD, PARAMETER}
        self._dtypes: dict[str, torch.dtype] = {}
        try:
            with path.open("rb") as stream:  # a private copy: torch wants memory that could be written to
                self.data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
            self.root, self._place = self._read()
        except Refused as error:
            raise refusal(path, error) from None
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
        except Exception as error:  # a damaged file fails in many ways
            raise UserError(f"{path} cannot be read as a file of torch.save ({type(error).__name__})") from error

    def module(self, name: str) -> Built:
        """A module by its name; the empty name is the outermost."""
        found = self.root
        for part in name.split(".") if name else ():
            found = self._entry(found, "_modules", part)
        if not isinstance(found, Built) or not isinstance(found.state, dict):
            raise UserError(f"{self.path} holds no module {name!r}".replace(" ''", ""))
        return found

    def attribute(self, name: str, key: str) -> Any:
        """What is set on a module; None where nothing is, a module where that is one."""
        state = self.module(name).state
        modules = state.get("_modules")
        return modules[key] if isinstance(modules, dict) and key in modules else state.get(key)

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer by its full name, on the CPU, in memory of its own.

        Raises:
            UserError: it is not there, or no ordinary tensor.
        """
        if isinstance(self.root, dict):
            found = self.root.get(name)
        else:
            path, _, last = name.rpartition(".")
            module = self.module(path)
            found = self._entry(module, "_parameters", last) or self._entry(module, "_buffers", last)
        if found is None:
            raise UserError(f"{self.path}: {name} is missing")
        return self.mapped(found, name).clone()

    def mapped(self, found: Any, name: str) -> Tensor:
        """The tensor that an object of the file stands for, as it lies in the mapped file: nothing is copied.

        Raises:
            UserError: it is no ordinary tensor, or its bytes are not those that were written.
        """
        if isinstance(found, Built) and type(found).__name__ == PARAMETER and found.args:
            found = found.args[0]
        try:
            return self._tensor(*found.args[:4])
        except Exception as error:
            raise UserError(f"{self.path}: {name} is no ordinary tensor, or damaged") from error

    @staticmethod
    def _entry(module: Any, group: str, key: str) -> Any:
        state = module.state if isinstance(module, Built) else None
        entries = state.get(group) if isinstance(state, dict) else None
        return entries.get(key) if isinstance(entries, dict) else None

    def _tensor(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        """Raises an exception of any kind where the four are not those of a contiguous tensor inside its storage."""
        if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)):
            raise TypeError("storage, offset, size and stride")
        steps = [math.prod(size[i + 1 :]) for i in range(len(size))]
        if any(length != 1 and step != wanted for length, step, wanted in zip(size, stride, steps, strict=True)):
            raise ValueError("not contiguous")
        place, count = self._place(storage.key), math.prod(size)
        begin = place.start + offset * storage.dtype.itemsize
        if not count or begin + count * storage.dtype.itemsize > place.stop:
            raise ValueError("not inside its storage")
        return torch.frombuffer(self.data, dtype=storage.dtype, count=count, offset=begin).reshape(size)

    # --- the two forms: the object, and where in the file the bytes of a storage are ------------------------------

    def _read(self) -> tuple[Any, Callable[[str], range]]:
        where, mark = TAR
        if self.data[where] == mark:
            raise UserError(f"{self.path} is a tar file of torch before 0.2, which cannot be imported; save it anew")
        return self._read_zip() if self.data[:4] == b"PK\x03\x04" else self._read_legacy()

    def _read_zip(self) -> tuple[Any, Callable[[str], range]]:
        with zipfile.ZipFile(self.path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
                raise UserError(
                    f"{self.path} is a compressed archive, which torch.save does not write; unpack it first"
                )
            (pickled,) = (name for name in entries if name.endswith("/data.pkl"))
            folder = pickled.removesuffix("data.pkl")
            if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") != b"little":
                raise UserError(f"{self.path} was written on a big-endian machine, which is not supported")
            if entries[pickled].file_size > LARGEST_PICKLE:
                raise Refused(f"{entries[pickled].file_size} bytes of objects")
            stream = io.BytesIO(archive.read(pickled))
        root = load(stream, allowed=self._allowed, persistent=self._persistent)
        return root, cache(lambda key: self._inside(entries[f"{folder}data/{key}"]))

    def _inside(self, entry: zipfile.ZipInfo) -> range:
        """Where a file of the archive lies: behind a header of 30 bytes, its name and what else the header has."""
        header = self.data[entry.header_offset : entry.header_offset + 30]
        begin = entry.header_offset + 30 + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
        with memoryview(self.data) as whole, whole[begin : begin + entry.file_size] as part:
            if header[:4] != b"PK\x03\x04" or len(part) != entry.file_size or zlib.crc32(part) != entry.CRC:
                raise ValueError("damaged")
        return range(begin, begin + entry.file_size)

    def _read_legacy(self) -> tuple[Any, Callable[[str], range]]:
        """Three pickles of numbers, that of the object, one of the storages' keys, and the storages in that order."""
        magic, protocol, machine = (load(self.data, allowed=()) for _ in range(3))
        if (magic, protocol) != (MAGIC, PROTOCOL):
            raise UserError(f"{self.path} is not a file that torch.save wrote")
        if machine["little_endian"] is not True:
            raise UserError(f"{self.path} was written on a big-endian machine, which is not supported")
        root = load(self.data, allowed=self._allowed, persistent=self._persistent)
        keys, end = load(self.data, allowed=()), self.data.tell()
        places = {}
        for key in keys:
            begin = end + 8  # behind the number of elements, in 8 bytes
            end = begin + int.from_bytes(self.data[end:begin], "little") * self._dtypes[key].itemsize
            places[key] = range(begin, min(end, len(self.data)))
        return root, places.__getitem__

    def _persistent(self, id: Any) -> Any:
        match id:
            case ("module", type() as kind, _, _):  # before torch 1.6 a module's class comes with its source code
                return kind
            case ("storage", type(__name__=name), str(key), _, _) | (
                "storage",
                type(__name__=name),
                str(key),
                _,
                _,
                None,
            ) if name in DTYPES:
                if self._dtypes.setdefault(key, DTYPES[name]) != DTYPES[name]:
                    raise Refused("a storage of two types")
                return _Storage(DTYPES[name], key)
        raise Refused("an unusual persistent id")


def refusal(path: Path, error: Refused) -> UserError:
    return UserError(f"{path} is refused, and nothing in it was run: it holds {error}, which such a file does not need")
