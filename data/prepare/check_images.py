"""What the images of a split are like: which of them cannot be opened, how large they are, which are the same."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from data.images import ImageError, open_image
from data.mlslt import read_frames
from data.prepare.parallel import DIED, in_processes
from data.samples import Samples
from progress import progress

DIGEST = 16  # bytes


class Job(NamedTuple):
    index: int  # of the sample
    path: Path
    max_pixels: int
    max_frames: int  # 0: a picture, else a clip


class Look(NamedTuple):
    """What opening one image has shown."""

    width: int  # pixels
    height: int
    digest: bytes  # of the pixels; empty for a clip


@dataclass(slots=True)
class ImageStatistics:
    """The images of a split after they have been opened."""

    corrupt: dict[int, str] = field(default_factory=dict)  # index of the sample → reason
    widths: array = field(default_factory=lambda: array("l"))  # pixels, of those that can be opened, in no order
    heights: array = field(default_factory=lambda: array("l"))
    digests: dict[int, bytes] = field(default_factory=dict)  # index of the sample → digest of the pixels


def look(job: Job) -> Look | str:
    """Opens an image as training does; a clip whole. A text is the reason why it cannot be used."""
    try:
        if job.max_frames:
            limits = {"max_frames": job.max_frames, "max_pixels": job.max_pixels}
            sizes = read_frames(job.path, **limits, transform=_size)
            return Look(*sizes[0], b"")
        picture = open_image(job.path, max_pixels=job.max_pixels)
        digest = blake2b(b"%d %d " % picture.size, digest_size=DIGEST)
        digest.update(picture.tobytes())
        return Look(*picture.size, digest.digest())
    except ImageError as error:
        return str(error)
    except MemoryError:
        return "there is not enough memory for it"


def _size(image) -> tuple[int, int]:
    return image.size


def open_all(samples: Samples, dataset: Mapping, *, description: str, workers: int) -> ImageStatistics:
    """Opens every image of the samples, in parallel processes.

    Args:
        dataset: the section `dataset` of the configuration.
    """
    found = ImageStatistics()
    with progress(len(samples), description, unit="image") as bar:
        for job, result in in_processes(look, _jobs(samples, dataset), workers=workers):
            bar.update()
            if isinstance(result, Look):
                found.widths.append(result.width)
                found.heights.append(result.height)
                if result.digest:
                    found.digests[job.index] = result.digest
            else:
                found.corrupt[job.index] = result or DIED
    return found


def _jobs(samples: Samples, dataset: Mapping) -> Iterator[Job]:
    from data.frames import is_clip  # brings torch, which processes that open pictures do not need

    for index in range(len(samples)):
        path = samples.path(index)
        yield Job(index, path, dataset["max_pixels"], dataset["max_frames"] if is_clip(path) else 0)


def size_quantiles(found: ImageStatistics) -> dict[str, dict[str, int]]:
    """Smallest, median and largest of both sides in pixels; empty without images."""
    if not found.widths:
        return {}
    sides = {"width": sorted(found.widths), "height": sorted(found.heights)}
    return {name: {"min": s[0], "median": s[len(s) // 2], "max": s[-1]} for name, s in sides.items()}
