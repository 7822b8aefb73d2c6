"""Samples with the emotions that data and network share."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import UserError
from data.emotions import EMOTIONS
from data.samples import Samples
from data.schema import Sample
from trainer.setup.shared_labels import share_labels

THEIRS = ("joy", "sadness", "surprise", "happiness")


def sample(id: str, histogram: tuple[float, ...], *pairs: tuple[str, str]) -> Sample:
    texts, emotions = (tuple(text for text, _ in pairs), tuple(THEIRS.index(name) for _, name in pairs))
    return Sample(id, Path(f"/{id}.jpg"), texts, emotions, histogram)


SAMPLES = Samples.pack(
    [
        sample("a", (0.25, 0.25, 0.25, 0.25), ("a", "joy"), ("b", "sadness"), ("c", "surprise"), ("d", "happiness")),
        sample("b", (0, 0, 1, 0), ("e", "surprise")),
        sample("c", (0, 1, 0, 0), ("f", "sadness")),
    ],
    THEIRS,
)


def test_votes_of_others_are_left_out_counted_and_the_rest_adds_up_to_one():
    found, note = share_labels(SAMPLES, EMOTIONS, ["joy=amusement", "Happiness = amusement"])
    assert found.labels == ("amusement", "sadness")
    [a, c] = found
    assert (a.id, a.texts, a.emotions) == ("a", ("a", "b", "d"), (0, 1, 0))
    assert a.histogram == pytest.approx((2 / 3, 1 / 3)) and c.histogram == (0, 1)
    assert note == (
        "scored on the 2 emotions that network and data share (amusement, sadness); the network's others: awe, "
        "contentment, excitement, anger, disgust, fear, something else; left out: 2 annotations with surprise; images "
        "left out: 1 of 3"
    )


def test_data_with_some_of_the_nine_drops_the_networks_others_only():
    eight = Samples.pack([Sample("x", Path("/x.jpg"), ("t",), (7,), (0,) * 7 + (1,))], EMOTIONS[:8])
    found, note = share_labels(eight, EMOTIONS, [])
    assert found.labels == EMOTIONS[:8] and [*found] == [*eight]
    assert note.endswith("the network's others: something else; images left out: 0 of 1")


@pytest.mark.parametrize(
    ("network", "pairs", "message"),
    [
        (EMOTIONS, [], "share 1 emotions; name more of them"),
        (EMOTIONS, ["joy"], "'joy' must be THEIRS=OURS"),
        (EMOTIONS, ["joy=delight"], "'joy=delight' must be"),
        (("surprise", "joy"), ["happiness=joy", "sadness=surprise"], None),
        (("happiness", "joy"), [], "no image has any of the shared emotions"),
    ],
)
def test_unusable_maps_are_refused(network, pairs, message):
    samples = SAMPLES.pick([1]) if network[0] == "happiness" else SAMPLES
    if message is None:
        assert len(share_labels(samples, network, pairs)[0]) == 3
        return
    with pytest.raises(UserError, match=message):
        share_labels(samples, network, pairs)
