"""Names of the splits of a data set, in the spellings that published files use."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from hashlib import blake2b

from common.errors import UserError

TRAIN, VAL, TEST = "train", "val", "test"
REST = "rest"  # of ArtEmis' own files: the rows of paintings with very many annotations, for no split
SPELLINGS = {TRAIN: ("training",), VAL: ("valid", "validation", "dev"), TEST: ("testing",), REST: ()}
SECTIONS = {"train_ds": TRAIN, "validation_ds": VAL, "test_ds": TEST}  # of the configuration
ENDS = {TEST: 0.10, VAL: 0.15}  # upper ends of the hash of a name
NAMES = {name: split for split, others in SPELLINGS.items() for name in (split, *others)}


def split_name(value: object, *, where: str) -> str:
    """Return TRAIN, VAL, TEST or REST for any of its spellings in any case; "" for an empty cell.

    Raises:
        UserError: another name; the message begins with `where`.
    """
    name = "" if value is None else str(value).strip().lower()
    if name and name not in NAMES:
        raise UserError(f"{where}: {value!r} is not the name of a split; accepted are {', '.join(NAMES)}")
    return NAMES.get(name, "")


def one_split_each(pairs: Iterable[tuple[str, str]], *, where: str) -> dict[str, str]:
    """Return the split of each painting from pairs (painting, split); REST and "" do not count.

    Raises:
        UserError: a painting is in two splits; the message begins with `where`, the file.
    """
    found: dict[str, str] = {}
    for painting, split in pairs:
        if split not in ("", REST) and (first := found.setdefault(painting, split)) != split:
            raise UserError(
                f"{where}: {painting} is in two splits, {first} and {split}; give all rows of a painting the same split"
            )
    return found


def split_by_hash(name: str, splits: Collection[str] = (TEST, VAL)) -> str:
    """Return the split of a picture without a named one: 10 % TEST and 5 % VAL, as far as in `splits`, else TRAIN."""
    place = place_of(name)
    found = next((split for split, end in ENDS.items() if place < end), TRAIN)
    return found if found in splits else TRAIN


def place_of(name: str) -> float:
    """Return a hash of a name from 0 to 1, by which pictures are divided."""
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8, person=b"split").digest()
    return int.from_bytes(digest) / 2**64
