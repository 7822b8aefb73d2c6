"""Reads a pickle of somebody else without running anything in it.

A pickle is a program: it may name any function of any installed module and call it. Here a pickle is first looked
through without being run: it may hold only the instructions that plain data and objects of pickle's protocol 2 need,
and name only what the caller allows. Then every allowed name stands for a class of its own that keeps what it is given
and does nothing (`Built`), so that no code of the pickle's choosing runs, not even torch's.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import reprlib
from collections.abc import Callable, Collection
from typing import Any, BinaryIO

# fmt: off
INSTRUCTIONS = frozenset((
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS",
    "EMPTY_DICT", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
    "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID",
))
# fmt: on


class _Dict(dict):
    """An OrderedDict without attributes: a pickle could give it an `items` that is no function."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Attributes such as torch's _metadata, which nothing here needs."""


CONTAINERS = {"collections.OrderedDict": _Dict, "__builtin__.set": set, "builtins.set": set}
_SHORT = reprlib.Repr()
_SHORT.maxstring = 100


class Refused(Exception):
    """What a pickle holds that it must not."""


class Built:
    """What came of an allowed name: the arguments and the state that the pickle gave it.

    `type(built).__name__` is the name, with its module.
    """

    __slots__ = ("args", "state")

    def __new__(cls, *args: Any) -> Built:
        built = super().__new__(cls)
        built.args, built.state = args, None
        return built

    def __setstate__(self, state: Any) -> None:
        self.state = state


def load(stream: BinaryIO, *, allowed: Collection[str], persistent: Callable[[Any], Any] | None = None) -> Any:
    """The pickle that begins where `stream` is; the stream is behind it afterwards.

    Args:
        allowed: names with their modules, as `torch.nn.modules.linear.Linear`; dicts and sets are always allowed.
        persistent: what the ids of things outside the pickle stand for; None: there may be none.

    Raises:
        Refused: an instruction or a name that is not allowed; nothing was run.
        Exception: of many kinds, where the pickle is damaged.
    """
    start = stream.tell()
    look_through(stream, frozenset(allowed))
    length = stream.tell() - start
    stream.seek(start)
    return _Unpickler(io.BytesIO(stream.read(length)), allowed, persistent).load()


def look_through(stream: BinaryIO, allowed: frozenset[str]) -> None:
    """Reads a pickle to its end without doing what it says.

    Raises:
        Refused: see `load`. Exception: of many kinds, where it is damaged.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name not in INSTRUCTIONS:
            raise Refused(f"the instruction {opcode.name}")
        if opcode.name == "GLOBAL" and (name := argument.replace(" ", ".")) not in allowed and name not in CONTAINERS:
            raise Refused(f"the name {_SHORT.repr(name)}")
        if opcode.name == "LONG_BINPUT" and argument > count:  # its place in the memo, for which memory is taken
            raise Refused(f"the memo {argument}")


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, allowed: Collection[str], persistent: Callable[[Any], Any] | None) -> None:
        super().__init__(stream)
        # Classes of this one load: whatever a pickle does to them, the next one does not see.
        self._names = {name: type(name, (Built,), {"__slots__": ()}) for name in allowed}
        self._persistent = persistent

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in CONTAINERS:
            return CONTAINERS[full]
        if full not in self._names:
            raise Refused(f"the name {_SHORT.repr(full)}")
        return self._names[full]

    def persistent_load(self, id: Any) -> Any:
        if self._persistent is None:
            raise Refused("a persistent id")
        return self._persistent(id)
