"""Cache of the frozen vision encoder's output: tokens of every image, computed once and stored on disk.

PATH/files.json              digests of the image files (data/cache/digests.py)
PATH/KEY/encoder.json        description of the encoder; KEY is its digest
PATH/KEY/….safetensors       digest of an image file → its tokens (T, P, Dv) in float16, many per file
PATH/KEY/lock                held by the run that adds tokens

An image is found by its content: a changed file is a new image, and the same image in two splits is stored once. A file
of tokens is written every 30 seconds and never changed, so a run may be killed at any moment. One run adds tokens at a
time, the others wait; on a file system without locks, two runs would do the same work twice. Nothing is ever removed:
delete PATH/KEY when that encoder is no longer used, or PATH.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from common.errors import UserError
from common.files import WriteError, tidy, write_json
from common.locks import locked
from common.progress import progress
from common.reading import expand_user
from data.cache.digests import Content, FileDigests, signature_of
from data.cache.token_files import CachedTokens, TokenWriter, read_places
from data.frames import FrameReader
from data.images import ImageError
from data.readers.mlslt import is_clip

MEMO = "files.json"
FORMAT = 1  # version of the files above, and of the way from image file to frames
GROUP = 32  # frames per call of the encoder, always: the last bit of a result may depend on the batch size
OFF = "set dataset.feature_cache=null to encode the images in every epoch"


@dataclass(frozen=True, slots=True)
class FrozenEncoder:
    """The vision encoder.

    Args:
        description: everything that determines its output, as JSON.
        shape: (P, Dv), tokens of one frame.
        encode: frames (group, 3, H, W) on the CPU → tokens (group, P, Dv); the position in the group has no effect.
        group: frames per call, None: GROUP; 1 if they differ in size.
    """

    description: Mapping[str, object]
    shape: tuple[int, int]
    encode: Callable[[Tensor], Tensor]
    group: int | None = None

    def content(self) -> dict[str, object]:
        """Return the content of encoder.json; equal content means equal tokens."""
        layout = {"format": FORMAT, "tokens of a frame": list(self.shape), "numbers": "float16, little-endian"}
        return {**layout, **self.description}

    @property
    def key(self) -> str:
        return blake2b(json.dumps(self.content(), sort_keys=True).encode(), digest_size=8).hexdigest()


class FeatureCache:
    """See the module docstring.

    Args:
        root: PATH.
        read: file → frames, the same as without a cache.
        num_workers: processes that read images.
        show: show progress bars.

    Raises:
        UserError: `root` is not a folder and cannot be created.
    """

    def __init__(
        self, root: Path, *, encoder: FrozenEncoder, read: FrameReader, num_workers: int, show: bool = True
    ) -> None:
        self.root = expand_user(root).resolve()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"dataset.feature_cache={root} is not a folder and cannot be created ({error.strerror}); name another"
            ) from error
        self.folder = self.root / encoder.key
        self.encoder, self.read = encoder, read
        self.num_workers, self.show = num_workers, show

    def tokens(self, paths: Iterable[Path]) -> CachedTokens:
        """Return the tokens of these files, in this order; missing ones are computed.

        An unusable file has the same reason as without a cache. A cached image is not opened, so dataset.max_pixels
        does not apply to it.

        Raises:
            UserError: too little space, no write permission, or tokens outside the range of float16.
        """
        paths = list(paths)
        contents = FileDigests(self.root / MEMO).contents(paths, show=self.show)
        names = [self._name(path, contents[path]) for path in paths]
        places = read_places(self.folder)
        reasons: dict[str, str] = {}
        if not places.keys() >= set(names):
            with self._lock():
                places = read_places(self.folder)
                missing = {name: path for name, path in zip(names, paths, strict=True) if name not in places}
                if missing:
                    reasons = self._add(missing, contents, done=len(set(names)) - len(missing))
                    places = read_places(self.folder)
        return CachedTokens(self.encoder.shape, names, places, reasons)

    def _name(self, path: Path, content: Content) -> str:
        """Return the key of a file's tokens."""
        if content.digest is None:
            return f"unread {path}"
        return f"{content.digest}/{self.read.max_frames}" if is_clip(path) else content.digest

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Admit one process at a time; without a lock if the folder is read-only."""
        with ExitStack() as stack:
            with suppress(OSError):
                self.folder.mkdir(exist_ok=True)
                stack.enter_context(locked(self.folder / "lock", purpose="filling the feature cache"))
                tidy(self.folder)
                if not (self.folder / "encoder.json").exists():
                    write_json(self.folder / "encoder.json", self.encoder.content())
            yield

    def _add(self, missing: Mapping[str, Path], contents: Mapping[Path, Content], *, done: int) -> dict[str, str]:
        """Compute and store the tokens of `missing`; return the reasons of unusable files."""
        self._require_space(missing)
        reasons: dict[str, str] = {}
        total, writer = done + len(missing), TokenWriter(self.folder)
        bar = progress(total, f"feature cache {self.root}", unit="image", initial=done, enabled=self.show)

        def frames() -> Iterator[tuple[str, Tensor]]:
            for name, loaded in zip(missing, self._loader(missing, contents), strict=True):
                if isinstance(loaded, str):
                    reasons[name] = loaded
                else:
                    yield from ((name, frame) for frame in loaded)
                bar.update()

        try:
            with bar, writer:
                for name, rows in groupby(self._encoded(frames(), missing), key=itemgetter(0)):
                    writer.add(name, np.stack([row for _, row in rows]))
        except WriteError as error:
            raise UserError(
                f"dataset.feature_cache={self.root} cannot be written ({error.strerror}) after "
                f"{done + writer.written:,} of {total:,} images, which stay stored; make room there and start again, "
                f"name another folder, or {OFF}"
            ) from error
        return reasons

    def _loader(self, missing: Mapping[str, Path], contents: Mapping[Path, Content]) -> DataLoader:
        workers = min(self.num_workers, os.cpu_count() or 1)
        ahead = 2 if any(map(is_clip, missing.values())) else 16  # a clip may take gigabytes
        return DataLoader(
            [(path, contents[path]) for path in missing.values()],
            collate_fn=partial(_read_frames, self.read),  # runs in the workers
            batch_size=None,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            generator=torch.Generator(),  # separate: must not draw from the generators of the training
        )

    def _encoded(self, frames: Iterator[tuple[str, Tensor]], missing: Mapping[str, Path]) -> Iterator[tuple]:
        """Map (name, frame) to (name, tokens (P, Dv)), encoding groups of constant size."""
        size = self.encoder.group or GROUP
        while group := list(islice(frames, size)):
            stacked = torch.stack([frame for _, frame in group])  # (N, 3, H, W), or tokens (N, P, D) to condense
            padded = pad(stacked, (0, 0) * (stacked.ndim - 1) + (0, size - len(group)))
            tokens = self.encoder.encode(padded)[: len(group)].to(torch.float16)
            finite = tokens.isfinite().flatten(1).all(dim=1).tolist()
            if not all(finite):
                raise UserError(
                    f"dataset.feature_cache: the vision encoder's tokens of {missing[group[finite.index(False)][0]]} "
                    f"are NaN or outside the range of float16 (65504); {OFF}"
                )
            yield from zip((name for name, _ in group), tokens.cpu().numpy(), strict=True)

    def _require_space(self, missing: Mapping[str, Path]) -> None:
        clips = [path for path in missing.values() if is_clip(path)]
        frames = len(missing) - len(clips) + round(len(clips) * self._mean_frames(clips))
        needed, free = 2 * frames * math.prod(self.encoder.shape), shutil.disk_usage(self.root).free  # float16
        if needed > free:
            raise UserError(
                f"dataset.feature_cache={self.root}: the tokens of {len(missing):,} images need {needed:,} bytes and "
                f"{free:,} are free there; make room, name a folder on a larger disk, or {OFF}"
            )
        if self.show:
            print(f"{len(missing):,} images to encode, once, into {self.folder}: {needed:,} bytes", file=sys.stderr)

    def _mean_frames(self, clips: list[Path], sample: int = 8) -> float:
        """Estimate the frames of a clip from a few of them, from first to last."""
        counts = []
        for path in clips[:: max(1, len(clips) // sample)][:sample]:
            try:
                counts.append(len(self.read(path)))
            except ImageError:
                continue
        return sum(counts) / len(counts) if counts else 0.0


def _read_frames(read: FrameReader, item: tuple[Path, Content]) -> Tensor | str:
    """Return the frames (T, 3, H, W) of a file, or the reason why there are none."""
    path, content = item
    try:
        frames = read(path)
    except ImageError as error:
        return str(error)
    if content.digest is None or signature_of(path) != content.signature:
        return "the file changed while it was read"
    return frames
