"""The frozen vision encoder's tokens of every picture, computed once and kept on disk.

PATH/files.json              which content which file had (data/cache/digests.py)
PATH/KEY/encoder.json        what the tokens were made with, in words; KEY is its digest
PATH/KEY/….safetensors       digest of a file's content → its tokens (T, P, Dv) in float16, of many pictures and clips
PATH/KEY/lock                who is adding now

A picture is found by its content, so a changed file is a new picture, and the same picture in two splits is one. A file
of tokens is written whole, every 30 seconds, and never changed, so a run may be killed at any moment.
One run adds at a time and the others wait for it; on a file system without locks two runs would do the same work twice.
Nothing is ever removed: delete PATH/KEY when that encoder is no longer used, or PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.errors import UserError
from common.files import WriteError, tidy, write_json
from common.locks import locked
from common.progress import progress
from common.reading import expanded
from data.cache.digests import Content, FileDigests, signature_of
from data.cache.token_files import CachedTokens, TokenWriter, read_places, row_bytes
from data.frames import FrameReader
from data.images import ImageError
from data.readers.mlslt import is_clip

MEMO = "common.files.json"  # a folder with this file is a feature cache
FORMAT = 1  # of the files above, and of how data/images.py and data/readers/mlslt.py turn a file into frames
GROUP = 32  # frames encoded at once, always: the shape of a computation can decide its last bit
OFF = "dataset.feature_cache=null encodes the images anew in every epoch"


@dataclass(frozen=True, slots=True)
class FrozenEncoder:
    """The vision encoder as the cache sees it.

    description: all that decides its tokens, as JSON.
    shape: (P, Dv) of a frame's tokens.
    encode: frames (GROUP, 3, H, W) on the CPU → tokens (GROUP, P, Dv), the same for the same frame at any place.
    """

    description: Mapping[str, object]
    shape: tuple[int, int]
    encode: Callable[[Tensor], Tensor]

    def words(self) -> dict[str, object]:
        """What stands in encoder.json; equal words, equal tokens."""
        layout = {"format": FORMAT, "tokens of a frame": list(self.shape), "numbers": "float16, little-endian"}
        return {**layout, **self.description}

    @property
    def key(self) -> str:
        return blake2b(json.dumps(self.words(), sort_keys=True).encode(), digest_size=8).hexdigest()


class FeatureCache:
    """See the top of this file.

    Args:
        root: PATH above.
        read: file → frames, the same as where there is no cache.
        num_workers: loader processes that open and transform.
        show: whether there are lines of progress.

    Raises:
        UserError: `root` is no folder and cannot become one.
    """

    def __init__(
        self, root: Path, *, encoder: FrozenEncoder, read: FrameReader, num_workers: int, show: bool = True
    ) -> None:
        self.root = expanded(root).resolve()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"dataset.feature_cache={root} is not a folder and cannot become one ({error.strerror}); name another, "
                "which may be new"
            ) from error
        self.folder = self.root / encoder.key
        self.encoder, self.read = encoder, read
        self.num_workers, self.show = num_workers, show

    def tokens(self, paths: Iterable[Path]) -> CachedTokens:
        """The tokens of these files, in this order; those that the cache lacks are computed now.

        A file that cannot be used has its reason instead, the same as without a cache. A picture that is in the cache
        is not opened, so that dataset.max_pixels has no say in it.

        Raises:
            UserError: too little space, no permission to write, or tokens that float16 cannot hold.
        """
        paths = list(paths)
        contents = FileDigests(self.root / MEMO).contents(paths, show=self.show)
        names = [self._name(path, contents[path]) for path in paths]
        places = read_places(self.folder)
        reasons: dict[str, str] = {}
        if not places.keys() >= set(names):
            with self._alone():
                places = read_places(self.folder)
                missing = {name: path for name, path in zip(names, paths, strict=True) if name not in places}
                if missing:
                    reasons = self._add(missing, contents, done=len(set(names)) - len(missing))
                    places = read_places(self.folder)
        return CachedTokens(self.encoder.shape, names, places, reasons)

    def _name(self, path: Path, content: Content) -> str:
        """Under which the file's tokens are kept."""
        if content.digest is None:
            return f"unread {path}"
        return f"{content.digest}/{self.read.max_frames}" if is_clip(path) else content.digest

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time; where nothing can be written nobody has to wait, for nothing will be."""
        with ExitStack() as stack:
            with suppress(OSError):
                self.folder.mkdir(exist_ok=True)
                stack.enter_context(locked(self.folder / "lock", purpose="filling the feature cache"))
                tidy(self.folder)
                if not (self.folder / "encoder.json").exists():
                    write_json(self.folder / "encoder.json", self.encoder.words())
            yield

    # ------------------------------------------------------------------ adding

    def _add(self, missing: Mapping[str, Path], contents: Mapping[Path, Content], *, done: int) -> dict[str, str]:
        """Compute and keep the tokens of `missing`; the reasons of those that cannot be used."""
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
                f"dataset.feature_cache={self.root} holds {done + writer.written:,} of {total:,} images and takes no "
                f"more ({error.strerror}); make room there and start again (what is done is kept), name another "
                f"folder, or {OFF}"
            ) from error
        return reasons

    def _loader(self, missing: Mapping[str, Path], contents: Mapping[Path, Content]) -> DataLoader:
        workers = min(self.num_workers, os.cpu_count() or 1)
        ahead = 2 if any(map(is_clip, missing.values())) else 16  # a clip may have gigabytes
        return DataLoader(
            _Files([(path, contents[path]) for path in missing.values()], self.read),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            generator=torch.Generator(),  # its own: filling must not draw from the generators of the training
        )

    def _encoded(self, frames: Iterator[tuple[str, Tensor]], missing: Mapping[str, Path]) -> Iterator[tuple]:
        """(name, frame) → (name, its tokens), in groups of one size whatever they are frames of."""
        while group := list(islice(frames, GROUP)):
            stacked = torch.stack([frame for _, frame in group])
            filled = torch.cat([stacked, stacked.new_zeros(GROUP - len(group), *stacked.shape[1:])])
            tokens = self.encoder.encode(filled)[: len(group)].to(torch.float16)
            finite = tokens.isfinite().flatten(1).all(dim=1).tolist()
            if not all(finite):
                raise UserError(
                    f"dataset.feature_cache: the vision encoder's tokens of {missing[group[finite.index(False)][0]]} "
                    f"are beyond what float16 holds (65504); {OFF}"
                )
            yield from zip((name for name, _ in group), tokens.cpu().numpy(), strict=True)

    def _require_space(self, missing: Mapping[str, Path]) -> None:
        clips = [path for path in missing.values() if is_clip(path)]
        frames = len(missing) - len(clips) + round(len(clips) * self._mean_frames(clips))
        needed, free = frames * row_bytes(self.encoder.shape), shutil.disk_usage(self.root).free
        if needed > free:
            raise UserError(
                f"dataset.feature_cache={self.root}: the tokens of {len(missing):,} images need {needed:,} bytes and "
                f"{free:,} are free there; make room, name a folder on a larger disk, or {OFF}"
            )
        if self.show:
            print(f"{len(missing):,} images to encode, once, into {self.folder}: {needed:,} bytes", file=sys.stderr)

    def _mean_frames(self, clips: list[Path], sample: int = 8) -> float:
        """Frames of a clip, by a few of them from first to last."""
        counts = []
        for path in clips[:: max(1, len(clips) // sample)][:sample]:
            try:
                counts.append(len(self.read(path)))
            except ImageError:
                continue
        return sum(counts) / len(counts) if counts else 0.0


class _Files(Dataset):
    """Index → frames (T, 3, H, W), or the reason why there are none."""

    def __init__(self, items: list[tuple[Path, Content]], read: FrameReader) -> None:
        self.items, self.read = items, read

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor | str:
        path, content = self.items[index]
        try:
            frames = self.read(path)
        except ImageError as error:
            return str(error)
        if content.digest is None or signature_of(path) != content.signature:
            return "the file was being changed while it was read"
        return frames
