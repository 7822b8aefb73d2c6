"""Hold out a share of a training set, for fitting the gate to predictions on images that were not trained on."""

from __future__ import annotations

from hashlib import blake2b

from data.samples import Samples
from data.schema import Sample

RANGE = 1 << 64


def is_held_out(id: str, share: float) -> bool:
    """Decide by a hash of the image id: the same in every stage, whatever else the file holds, in any order."""
    return _hash(f"held out/{id}") < share * RANGE


def split_off(samples: Samples, share: float) -> tuple[Samples, Samples]:
    """Return the samples that are not held out, and those that are."""
    held = [is_held_out(sample.id, share) for sample in samples]
    return tuple(samples.pick(row for row, is_out in enumerate(held) if is_out == out) for out in (False, True))


def identity(sample: Sample) -> int:
    """Return a signed 64-bit hash of id and file name; the id alone may occur in two data sets."""
    return _hash(f"{sample.id}\0{sample.path.name}") - RANGE // 2


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
