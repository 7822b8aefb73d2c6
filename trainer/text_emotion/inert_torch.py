"""The tensors of a file that torch.save wrote, whatever objects they are in, without running anything in it.

Read are the zip file that torch has written since 1.6 and the form before it; torch's own `weights_only` reads no whole
modules of the latter. A module becomes what it is in the pickle: a name, its attributes and its tensors.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from errors import UserError
from trainer.text_emotion.inert_pickle import Built, Refused, load

LARGEST = 1 << 30  # bytes of a file
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what a file before torch 1.6 begins with
TAR = slice(257, 262), b"ustar"
DTYPES = {
    f"{module}.{name}Storage": dtype
    for module in ("torch", "torch.cuda")
    for name, dtype in (
        ("Float", torch.float32),
        ("Double", torch.float64),
        ("Half", torch.float16),
        ("Long", torch.int64),
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
        self.data = read_bytes(path)
        self._allowed = {*allowed, *DTYPES, REBUILD, PARAMETER}
        self._dtypes: dict[str, torch.dtype] = {}
        try:
            self.root, self._storage = self._read()
        except Refused as error:
            raise refusal(path, error) from None
        except UserError:
            raise
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
        if isinstance(found, Built) and type(found).__name__ == PARAMETER and found.args:
            found = found.args[0]
        if found is None:
            raise UserError(f"{self.path}: {name} is missing")
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
        place = offset * storage.dtype.itemsize
        flat = torch.frombuffer(self._storage(storage.key), dtype=storage.dtype, count=math.prod(size), offset=place)
        return flat.reshape(size).clone()

    # --- the two forms --------------------------------------------------------------------------------------------

    def _read(self) -> tuple[Any, Callable[[str], bytearray]]:
        where, mark = TAR
        if self.data[where] == mark:
            raise UserError(f"{self.path} is a tar file of torch before 0.2, which cannot be imported; save it anew")
        return self._read_zip() if self.data.startswith(b"PK\x03\x04") else self._read_legacy()

    def _read_zip(self) -> tuple[Any, Callable[[str], bytearray]]:
        archive = zipfile.ZipFile(io.BytesIO(self.data))
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise UserError(f"{self.path} is a compressed archive, which torch.save does not write; unpack it first")
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise UserError(f"{self.path} was written on a big-endian machine, which is not supported")
        root, _ = load(archive.read(pickled), allowed=self._allowed, persistent=self._persistent)
        return root, lambda key: bytearray(archive.read(f"{folder}data/{key}"))

    def _read_legacy(self) -> tuple[Any, Callable[[str], bytearray]]:
        """Three pickles of numbers, that of the object, one of the storages' keys, and the storages in that order."""
        magic, end = load(self.data, allowed=())
        protocol, end = load(self.data, end, allowed=())
        machine, end = load(self.data, end, allowed=())
        if (magic, protocol) != (MAGIC, PROTOCOL):
            raise UserError(f"{self.path} is not a file that torch.save wrote")
        if machine["little_endian"] is not True:
            raise UserError(f"{self.path} was written on a big-endian machine, which is not supported")
        root, end = load(self.data, end, allowed=self._allowed, persistent=self._persistent)
        keys, end = load(self.data, end, allowed=())
        storages = {}
        for key in keys:
            begin = end + 8  # behind the number of elements, in 8 bytes
            end = begin + int.from_bytes(self.data[end:begin], "little") * self._dtypes[key].itemsize
            storages[key] = slice(begin, end)
        return root, lambda key: bytearray(self.data[storages[key]])

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


def read_bytes(path: Path) -> bytes:
    """A whole file.

    Raises:
        UserError: it cannot be read, or is larger than 1 GiB.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than {LARGEST >> 30} GiB, so it is not what it should be")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None


def refusal(path: Path, error: Refused) -> UserError:
    return UserError(f"{path} is refused, and nothing in it was run: it holds {error}, which such a file does not need")
