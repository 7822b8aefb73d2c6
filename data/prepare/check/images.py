"""Open every image of a split: which are corrupt, how large the others are, and which are the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path

from common.progress import progress
from data.images import ImageError, open_image
from data.prepare.parallel import DIED, in_processes
from data.readers.mlslt import is_clip, read_frames
from data.samples import Samples

DIGEST = 16  # bytes
DARK = 26  # of 255: a picture with no brighter value is nearly black


@dataclass(slots=True)
class ImageStatistics:
    """Results of opening the images of a split."""

    corrupt: dict[int, str] = field(default_factory=dict)  # index of the sample → reason
    sizes: list[tuple[int, int]] = field(default_factory=list)  # width and height in pixels, of all but the corrupt
    digests: dict[int, bytes] = field(default_factory=dict)  # index of the sample → digest of the pixels; not of clips
    dark: dict[int, int] = field(default_factory=dict)  # index of the sample → brightest value, below DARK


def inspect(path: Path, *, max_pixels: int, max_frames: int) -> tuple[tuple[int, int], bytes, int] | str:
    """Open a picture, or all frames of a clip, as training does.

    Returns:
        Width and height in pixels, a digest of the pixels, and the brightest value (for a clip: no digest, 255); or why
        it cannot be opened.
    """
    try:
        if is_clip(path):
            sizes = read_frames(path, max_frames=max_frames, max_pixels=max_pixels, transform=attrgetter("size"))
            return sizes[0], b"", 255
        picture = open_image(path, max_pixels=max_pixels)
        digest = blake2b(b"%d %d " % picture.size, digest_size=DIGEST)
        digest.update(picture.tobytes())
        return picture.size, digest.digest(), max(high for _, high in picture.getextrema())
    except ImageError as error:
        return str(error)
    except MemoryError:
        return "there is not enough memory for it"


def open_all(samples: Samples, dataset: Mapping, *, description: str, workers: int) -> ImageStatistics:
    """Open every image of the samples in parallel processes, within the limits of the section `dataset`."""
    found = ImageStatistics()
    function = partial(inspect, max_pixels=dataset["max_pixels"], max_frames=dataset["max_frames"])
    paths = (samples.path(index) for index in range(len(samples)))
    with progress(len(samples), description, unit="image") as bar:
        for index, (_, result) in enumerate(in_processes(function, paths, workers=workers)):
            bar.update()
            if not isinstance(result, tuple):
                found.corrupt[index] = result or DIED
                continue
            size, digest, brightest = result
            found.sizes.append(size)
            if brightest < DARK:
                found.dark[index] = brightest
            if digest:
                found.digests[index] = digest
    return found
