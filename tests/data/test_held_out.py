"""Images held out for fitting the gate."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from data.held_out import identity, is_held_out, split_off
from data.samples import Samples
from data.schema import Sample


def make(ids) -> Samples:
    return Samples.pack(Sample(str(id), Path(f"/x/{id}.jpg"), ("text",), (0,), None) for id in ids)


def ids(samples: Samples) -> list[str]:
    return [sample.id for sample in samples]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_split_is_a_partition(share):
    samples = make(range(2000))
    kept, held = split_off(samples, share)
    of_held = {*ids(held)}
    assert not {*ids(kept)} & of_held
    assert sorted([*ids(kept), *ids(held)]) == sorted(ids(samples))
    assert abs(len(held) / 2000 - share) < 0.04
    assert ids(kept) == [id for id in ids(samples) if id not in of_held]


def test_split_depends_on_the_id_only():
    numbers = list(range(500))
    _, held = split_off(make(numbers), 0.2)
    random.Random(1).shuffle(numbers)
    _, shuffled = split_off(make([*numbers, *range(1000, 1500)]), 0.2)
    assert {*ids(held)} == {id for id in ids(shuffled) if int(id) < 500}


def test_larger_share_is_a_superset():
    assert all(is_held_out(str(id), 0.3) for id in range(1000) if is_held_out(str(id), 0.1))
    assert not any(is_held_out(str(id), 0.0) for id in range(1000))


def test_samples_are_unchanged():
    sample = Sample("a", Path("/x/a.jpg"), ("one", "two"), (1, 0), (0.5, 0.5, 0.0))
    samples = Samples.pack([sample], ("joy", "fear", "awe"))
    parts = split_off(samples, 0.5)
    assert [one for part in parts for one in part] == [sample]
    assert all(part.labels == ("joy", "fear", "awe") for part in parts)


def test_identity_depends_on_id_and_file_name():
    one = Sample("1", Path("/train/a.jpg"), ())
    assert identity(one) == identity(Sample("1", Path("/elsewhere/a.jpg"), ("text",)))
    assert identity(one) != identity(Sample("1", Path("/validation/b.jpg"), ()))
    assert identity(one) != identity(Sample("2", Path("/train/a.jpg"), ()))
    assert -(2**63) <= identity(one) < 2**63
