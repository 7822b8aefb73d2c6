"""Storage of the feature cache: tokens of images in safetensors files that are never changed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from common.files import write_bytes
from common.reading import require_file
from data.images import ImageError

SECONDS = 30.0  # between two files: the work that a kill may cost
LARGEST = 1 << 27  # bytes of tokens per file


def read_places(folder: Path) -> dict[str, Path]:
    """Return the file with the tokens of each image or clip, by name; incomplete files are ignored."""
    places: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with suppress(OSError, SafetensorError):
            require_file(path, largest=sys.maxsize)
            with safe_open(path, "np") as file:
                places |= dict.fromkeys(file.keys(), path)
    return places


class TokenWriter:
    """Writes tokens to a new file from time to time, and on exit, also after an error.

    Raises:
        files.WriteError: a file cannot be written; the earlier ones stay.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written = 0  # images and clips on the disk
        self._tokens: dict[str, np.ndarray] = {}
        self._size, self._last = 0, time.monotonic()

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, *_) -> None:
        self._write()

    def add(self, name: str, tokens: np.ndarray) -> None:
        """tokens: (T, P, Dv) float16."""
        self._tokens[name] = np.ascontiguousarray(tokens)  # safetensors writes raw memory
        self._size += tokens.nbytes
        if self._size >= LARGEST or time.monotonic() - self._last >= SECONDS:
            self._write()

    def _write(self) -> None:
        tokens, self._tokens = self._tokens, {}
        if tokens:
            name = blake2b(json.dumps(list(tokens)).encode(), digest_size=8).hexdigest()
            write_bytes(self.folder / f"{name}.safetensors", [save(tokens)], durable=True)
        self.written += len(tokens)
        self._size, self._last = 0, time.monotonic()


class CachedTokens:
    """Maps the index of a sample to its tokens (T, P, Dv) float16; every worker process opens the files itself.

    Args:
        shape: (P, Dv).
        names: name of each sample's content.
        places: file of each name.
        reasons: by name, why there are no tokens; indexing raises ImageError with it.
    """

    def __init__(
        self, shape: tuple[int, int], names: Sequence[str], places: Mapping[str, Path], reasons: Mapping[str, str]
    ) -> None:
        self.shape = shape
        self.paths = sorted({places[name] for name in names if name in places})
        number = {path: i for i, path in enumerate(self.paths)}
        self.file = np.array([number[places[name]] if name in places else -1 for name in names], dtype=np.int32)
        self.names = np.array([name.encode() if name in places else b"" for name in names], dtype=np.bytes_)
        missing = "the feature cache does not have it"
        self.reasons = {i: reasons.get(name, missing) for i, name in enumerate(names) if name not in places}
        self._open: dict[int, safe_open] = {}

    def __len__(self) -> int:
        return len(self.file)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}

    def __getitem__(self, index: int) -> Tensor:
        if index in self.reasons:
            raise ImageError(self.reasons[index])
        file = int(self.file[index])
        try:
            if file not in self._open:
                self._open[file] = safe_open(self.paths[file], "pt")
            tokens = self._open[file].get_tensor(self.names[index].decode())
        except (OSError, SafetensorError) as error:
            raise ImageError(f"its tokens in {self.paths[file]} cannot be read ({error})") from error
        if tokens.dtype != torch.float16 or tokens.ndim != 3 or tuple(tokens.shape[1:]) != self.shape:
            raise ImageError(f"its tokens in {self.paths[file]} have another shape")
        return tokens.clone()  # the file is memory-mapped
