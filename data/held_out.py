"""Pictures that are held out of a training set, for what is fitted to predictions of pictures that nobody has seen."""

from __future__ import annotations

from hashlib import blake2b

from data.samples import Samples
from data.schema import Sample

RANGE = 1 << 64


def is_held_out(id: str, share: float) -> bool:
    """Decided by the picture's id alone: the same in every stage, whatever else is in the file, in any order."""
    return _number(f"held out/{id}") < share * RANGE


def split_off(samples: Samples, share: float) -> tuple[Samples, Samples]:
    """The samples without those that are held out, and these."""
    held = [is_held_out(sample.id, share) for sample in samples]
    return tuple(samples.pick(row for row, is_out in enumerate(held) if is_out == out) for out in (False, True))


def identity(sample: Sample) -> int:
    """A signed number of 64 bits for a picture: of its id and its file's name, since ids of two sets may be alike."""
    return _number(f"{sample.id}\0{sample.path.name}") - RANGE // 2


def _number(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
