"""Files of tokens and their indexes: written to the end only, read as memory maps. Who uses them: feature_cache.py."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.images import ImageError
from foreign import read_bytes

DTYPE = np.dtype("<f2")
COMMIT_SECONDS = 5.0  # what a power cut or a kill may cost


class WriteError(Exception):
    """The disk took no more, and why."""


class Place(NamedTuple):
    """Where the tokens of one picture or clip are."""

    file: str  # of the pair of files, without suffix
    first: int  # row
    rows: int


def row_bytes(shape: tuple[int, int]) -> int:
    """Of one frame's tokens."""
    return DTYPE.itemsize * shape[0] * shape[1]


def read_places(folder: Path, shape: tuple[int, int]) -> dict[str, Place]:
    """All that is there whole, by name: lines that are not torn, of rows that the file of tokens holds."""
    places: dict[str, Place] = {}
    for index in sorted(folder.glob("*.jsonl")):
        tokens = index.with_suffix(".tokens")
        try:
            there = tokens.stat().st_size // row_bytes(shape)
            lines = read_bytes(index).decode("utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            try:
                name, first, rows = json.loads(line)
                if type(first) is type(rows) is int and 0 <= first < first + rows <= there:
                    places.setdefault(name, Place(index.stem, first, rows))
            except (ValueError, TypeError, RecursionError):
                continue
    return places


class TokenWriter:
    """A new pair of files, NNNN.tokens and NNNN.jsonl, made with the first tokens.

    Every few seconds, and at the end, the tokens are brought to the disk and after them the lines that name them.

    Raises:
        WriteError: see there; lines are written for what is there whole, if there is room for them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written = 0  # pictures and clips whose lines are on the disk
        self._tokens = self._index = -1
        self._rows = 0
        self._lines: list[str] = []
        self._committed = time.monotonic()

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, *_) -> None:
        """After an error too: what has been computed is kept."""
        if self._tokens < 0:
            return
        try:
            self._commit()
        finally:
            os.close(self._tokens)
            os.close(self._index)

    def add(self, name: str, tokens: np.ndarray) -> None:
        """tokens: (T, P, Dv) float16."""
        if self._tokens < 0:
            self._create()
        data = memoryview(np.ascontiguousarray(tokens, dtype=DTYPE)).cast("B")
        try:
            _write(self._tokens, data)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._tokens, self._rows * data.nbytes // len(tokens))  # makes room for the lines
            raise WriteError(error.strerror) from error
        self._lines.append(json.dumps([name, self._rows, len(tokens)]) + "\n")
        self._rows += len(tokens)
        if time.monotonic() - self._committed > COMMIT_SECONDS:
            self._commit()

    def _create(self) -> None:
        """Under the first number that is free, also for others who look for one at this moment."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            number = max((int(path.stem) for path in self.folder.iterdir() if path.stem.isdecimal()), default=-1) + 1
            while self._index < 0:
                try:
                    self._index = os.open(self.folder / f"{number:04d}.jsonl", flags, 0o666)
                except FileExistsError:
                    number += 1
            self._tokens = os.open(self.folder / f"{number:04d}.tokens", flags, 0o666)
        except OSError as error:
            raise WriteError(error.strerror) from error

    def _commit(self) -> None:
        lines, self._lines = self._lines, []  # tried once: after a failure, a second fsync may promise what was lost
        try:
            os.fsync(self._tokens)
            _write(self._index, memoryview("".join(lines).encode()))
            os.fsync(self._index)
        except OSError as error:
            raise WriteError(error.strerror) from error
        self.written += len(lines)
        self._committed = time.monotonic()


def _write(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]


class CachedTokens:
    """index → tokens (T, P, Dv) float16 of a sample's picture or clip.

    A few small arrays: every worker process opens the memory maps itself.

    Args:
        names: of the samples' contents, as in `places`.
        reasons: by name, why there are no tokens; indexing raises ImageError with it.
    """

    def __init__(
        self,
        folder: Path,
        shape: tuple[int, int],
        names: Sequence[str],
        places: Mapping[str, Place],
        reasons: Mapping[str, str],
    ) -> None:
        self.shape = shape
        files = {name: i for i, name in enumerate(sorted({places[name].file for name in names if name in places}))}
        self.paths = [folder / f"{name}.tokens" for name in files]
        self.file = np.full(len(names), -1, dtype=np.int32)
        self.first, self.rows = np.zeros(len(names), dtype=np.int64), np.zeros(len(names), dtype=np.int32)
        self.reasons: dict[int, str] = {}
        for index, name in enumerate(names):
            if name in places:
                place = places[name]
                self.file[index], self.first[index], self.rows[index] = files[place.file], place.first, place.rows
            else:
                self.reasons[index] = reasons.get(name, "the feature cache does not have it")
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.file)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_maps": {}}

    def __getitem__(self, index: int) -> Tensor:
        if index in self.reasons:
            raise ImageError(self.reasons[index])
        file, first, rows = int(self.file[index]), int(self.first[index]), int(self.rows[index])
        if file not in self._maps:
            self._maps[file] = self._open(self.paths[file])
        tokens = self._maps[file][first : first + rows]
        if len(tokens) < rows:
            raise ImageError(f"its tokens are no longer in {self.paths[file]}")
        return torch.from_numpy(np.array(tokens, dtype=np.float16))

    def _open(self, path: Path) -> np.ndarray:
        try:
            rows = path.stat().st_size // row_bytes(self.shape)
            return np.memmap(path, dtype=DTYPE, mode="r", shape=(rows, *self.shape))
        except (OSError, ValueError) as error:
            raise ImageError(f"its tokens in {path} cannot be read ({error})") from error
