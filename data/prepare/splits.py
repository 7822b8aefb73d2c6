"""Split the paintings of ArtEmis v1 and v2 into train, val and test.

Paintings are drawn from their sorted names, so neither the order of the rows nor Python's hash seed matters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from data.prepare.rows import Row
from data.split_names import REST, TEST, TRAIN, VAL

SUBSETS = ("combined", "full", "new")
SUBSET_SEED = 42  # of v2's samples; independent of the seed of the split
REPETITIONS = range(5, 10)  # of v2's paintings that may be held out


class Shares(NamedTuple):
    """Shares of the data; they sum to 1."""

    train: float = 0.85
    val: float = 0.05
    test: float = 0.10

    @property
    def held_out(self) -> float:
        return self.val + self.test

    @property
    def test_of_held_out(self) -> float:
        return self.test / self.held_out if self.held_out else 0.0


class Annotation(NamedTuple):
    """The part of a row that is written; annotations are sorted by these values."""

    name: str
    emotion: int
    text: str
    new: bool
    split: str
    language: str = ""


def split_rows(rows: Sequence[Row], *, shares: Shares, seed: int, max_repetition: int) -> list[str]:
    """Return the split of every row: "train", "val", "test", or "rest" for paintings with many annotations.

    A painting is in one split, with one exception from v2: if v1 has more than `max_repetition` annotations of it,
    these are in "rest", even if v2 annotated it again and put it elsewhere.
    """
    repetitions = _repetitions(rows)
    ordinary = {key: count for key, count in repetitions.items() if count <= max_repetition}
    old = {name for name, new in ordinary if not new}
    new = {name: count for (name, new), count in ordinary.items() if new}
    if new:
        anchors = {row.anchor for row in rows if row.anchor is not None}
        annotations = sum(row.new and row.name in new for row in rows)
        split = contrastive_split(new, old, anchors, annotations=annotations, shares=shares, seed=seed)
    else:
        split = random_split(old, shares=shares, seed=seed)
    return [split[row.name] if (row.name, row.new) in ordinary else REST for row in rows]


def _repetitions(rows: Iterable[Row]) -> dict[tuple[str, bool], int]:
    """Return the annotations per painting and version (name, new): the file's own number, or else the rows.

    Of several languages, the one with the most rows counts.
    """
    given: dict[tuple[str, bool], int] = {}
    counted: Counter[tuple[str, bool, str]] = Counter()
    for row in rows:
        key = row.name, row.new
        counted[*key, row.language] += 1
        if row.repetition is not None:
            given[key] = max(given.get(key, 0), row.repetition)
    rows_of: dict[tuple[str, bool], int] = {}
    for (*key, _), count in counted.items():
        rows_of[tuple(key)] = max(rows_of.get(tuple(key), 0), count)
    return rows_of | given


def random_split(paintings: Collection[str], *, shares: Shares, seed: int) -> dict[str, str]:
    """Return the split of every painting of ArtEmis v1, the same as the original's.

    The original draws twice with scikit-learn's `train_test_split`: the held-out paintings by their share (rounded up),
    and the test paintings among them by their number (rounded to the nearest). Without a share for val, all held-out
    paintings are test.
    """
    names = _sorted(paintings)
    held_out, train = _draw(names, math.ceil(shares.held_out * len(names)), seed)
    count = round(shares.test * len(names)) if shares.val else len(held_out)
    test, val = _draw(held_out, count, seed)
    return _labelled(train, val, test)


def contrastive_split(
    new: Mapping[str, int],
    old: Collection[str],
    anchors: Collection[str],
    *,
    annotations: int,
    shares: Shares,
    seed: int,
) -> dict[str, str]:
    """Return the split of every painting of ArtEmis v1 (`old`) and v2 (`new`, with its annotations per painting).

    (a) Paintings of v2 are held out in the order of their repetition, 5 to 9, and name, as long as their annotations
        stay within the held-out share of all `annotations` of v2: first test, then val. The others are train.
    (b) Paintings of v1 that were anchors, and that v2 did not annotate, are train; those beyond the share of train, the
        last by name, are drawn as in (c).
    (c) The other paintings of v1 are drawn so that v1 as a whole has these shares.

    In the original, (b) and (c) follow the order of Python sets of strings, which changes from run to run. Here names
    are sorted first. Its (a) is sorted already, so v2's own test paintings are the same here.
    """
    taken = _within_budget(new, int(shares.held_out * annotations))
    end = int(len(taken) * shares.test_of_held_out)
    v2 = _labelled(new.keys() - set(taken), taken[end:], taken[:end])

    names = _sorted(set(old) - new.keys())
    quota = len(names) * shares.train
    fixed = [name for name in names if name in anchors][: int(quota)]
    remaining = _sorted(set(names) - set(fixed))
    wanted = len(names) * shares.held_out
    share = wanted / (wanted + (quota - len(fixed))) if wanted else 0.0
    held_out, train = _draw(remaining, math.ceil(share * len(remaining)), seed)
    count = math.ceil(shares.test_of_held_out * len(held_out)) if shares.val else len(held_out)
    test, val = _draw(held_out, count, seed)
    return v2 | _labelled([*fixed, *train], val, test)


def _within_budget(repetitions: Mapping[str, int], budget: int) -> list[str]:
    """Return paintings in the order of repetition and name with at most `budget` annotations together."""
    taken: list[str] = []
    for repetition in REPETITIONS:
        names = _sorted(name for name, count in repetitions.items() if count == repetition)
        taken += names[: max(budget, 0) // repetition]
        budget -= len(names) * repetition
    return taken


def parts(annotations: Sequence[Annotation], *, subset: str | None) -> dict[str, list[Annotation]]:
    """Return the annotations of each output file, sorted.

    v2's test sets are `test_new` with its own paintings, `test_ref` with all of v1's, `test_old` with half of these and
    `test_40` with paintings of many annotations; `test` is test_new with test_old, or for the subset "new" test_new.
    Samples are drawn from sorted annotations and names, not in the order of the file and of a set as in the original.

    Args:
        annotations: sorted.
        subset: of v2: "combined" (all of v2 and a sample of v1 of the same size, from all its splits, as in ArtEmis
            2.0), "full" (all of both) or "new" (v2 alone). None: of v1, or of a file with splits of its own.
    """
    new, old = [a for a in annotations if a.new], [a for a in annotations if not a.new]

    def of(split: str, chosen: Sequence[Annotation]) -> list[Annotation]:
        return [a for a in chosen if a.split == split]

    if subset is None:
        return {split: of(split, annotations) for split in (TRAIN, VAL, TEST, REST)}
    sample, _ = _draw(old, len(new), SUBSET_SEED)
    chosen = {"combined": sorted([*new, *sample]), "full": annotations, "new": new}[subset]
    test_new, test_ref = of(TEST, new), of(TEST, old)
    names = _sorted({a.name for a in test_ref})
    half = set(_draw(names, len(names) // 2, SUBSET_SEED)[0])
    test_old = [a for a in test_ref if a.name in half]
    return {
        TRAIN: of(TRAIN, chosen),
        VAL: of(VAL, chosen),
        TEST: test_new if subset == "new" else sorted([*test_new, *test_old]),
        "test_new": test_new,
        "test_old": test_old,
        "test_ref": test_ref,
        "test_40": of(REST, old),
    }


def _draw(items: Sequence, count: int, seed: int) -> tuple[list, list]:
    """Return at most `count` random items and the others, as drawn by scikit-learn and RandomState.choice."""
    from numpy.random import RandomState

    order = RandomState(seed).permutation(len(items)).tolist()
    return [items[i] for i in order[:count]], [items[i] for i in order[count:]]


def _sorted(names: Iterable[str]) -> list[str]:
    """Return the names sorted by style and painting joined, which is the original's key."""
    return sorted(names, key=lambda name: (name.replace("/", "", 1), name))


def _labelled(train: Iterable[str], val: Iterable[str], test: Iterable[str]) -> dict[str, str]:
    return {name: split for split, names in ((TRAIN, train), (VAL, val), (TEST, test)) for name in names}
