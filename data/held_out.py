"""Pictures that are held out of a training set, for what is fitted to predictions of pictures that nobody has seen."""

from __future__ import annotations

from hashlib import blake2b

from data.samples import Samples
from data.schema import Sample

RANGE = 1 << 64


def is_held_out(id: str, share: float) -> bool:
    """Decided by the picture's id alone: the same in every stage, whatever the order of a file and what else is in it."""
    return _number(f"held out/{id}") < share * RANGE


def split_off(samples: Samples, share: float) -> tuple[Samples, Samples]:
    """The samples without those that are held out, and these."""
    held = [is_held_out(samples[row].id, share) for row in range(len(samples))]
    return samples.pick([i for i, out in enumerate(held) if not out]), samples.pick(
        [i for i, out in enumerate(held) if out]
    )


def identity(sample: Sample) -> int:
    """A signed number of 64 bits for a picture: of its id and the name of its file, since ids of two sets may be alike."""
    return _number(f"{sample.id}\0{sample.path.name}") - RANGE // 2


def _number(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
