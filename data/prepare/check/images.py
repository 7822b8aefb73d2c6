"""What the images of a split are like: which of them cannot be opened, how large they are, which are the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from common.progress import progress
from data.images import ImageError, open_image
from data.prepare.parallel import DIED, in_processes
from data.readers.mlslt import is_clip, read_frames
from data.samples import Samples

DIGEST = 16  # bytes


class Look(NamedTuple):
    """What opening one image has shown."""

    width: int  # pixels
    height: int
    digest: bytes  # of the pixels; empty for a clip


@dataclass(slots=True)
class ImageStatistics:
    """The images of a split after they have been opened."""

    corrupt: dict[int, str] = field(default_factory=dict)  # index of the sample → reason
    widths: list[int] = field(default_factory=list)  # pixels, of those that can be opened
    heights: list[int] = field(default_factory=list)
    digests: dict[int, bytes] = field(default_factory=dict)  # index of the sample → digest of the pixels


def look(path: Path, *, max_pixels: int, max_frames: int) -> Look | str:
    """Open a picture, or a clip whole, as training does; return a text where it cannot be used: the reason."""
    try:
        if is_clip(path):
            sizes = read_frames(path, max_frames=max_frames, max_pixels=max_pixels, transform=attrgetter("size"))
            return Look(*sizes[0], b"")
        picture = open_image(path, max_pixels=max_pixels)
        digest = blake2b(b"%d %d " % picture.size, digest_size=DIGEST)
        digest.update(picture.tobytes())
        return Look(*picture.size, digest.digest())
    except ImageError as error:
        return str(error)
    except MemoryError:
        return "there is not enough memory for it"


def open_all(samples: Samples, dataset: Mapping, *, description: str, workers: int) -> ImageStatistics:
    """Open every image of the samples, in parallel processes.

    Args:
        dataset: the section `dataset` of the configuration.
    """
    found = ImageStatistics()
    function = partial(look, max_pixels=dataset["max_pixels"], max_frames=dataset["max_frames"])
    paths = (samples.path(index) for index in range(len(samples)))
    with progress(len(samples), description, unit="image") as bar:
        for index, (_, result) in enumerate(in_processes(function, paths, workers=workers)):
            bar.update()
            if isinstance(result, Look):
                found.widths.append(result.width)
                found.heights.append(result.height)
                if result.digest:
                    found.digests[index] = result.digest
            else:
                found.corrupt[index] = result or DIED
    return found


def size_quantiles(found: ImageStatistics) -> dict[str, dict[str, int]]:
    """Smallest, median and largest of both sides in pixels; empty without images."""
    if not found.widths:
        return {}
    sides = {"width": sorted(found.widths), "height": sorted(found.heights)}
    return {name: {"min": s[0], "median": s[len(s) // 2], "max": s[-1]} for name, s in sides.items()}
