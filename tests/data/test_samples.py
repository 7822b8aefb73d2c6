"""Packing samples into arrays and back."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from data.emotions import EMOTIONS
from data.samples import Samples
from data.schema import Sample
from tests.helpers.tiny import make_samples

SHARES = (0.0, 0.5, 1 / 3, 1 / 6, 0.0, 0.0, 0.0, 0.0, 0.0)
ODD = [
    Sample("a", Path("/x/ü.jpg"), ("one", "", "zwölf 🎨"), (8, 0, 3), SHARES),
    Sample("", Path(os.fsdecode(b"/x/\xff.jpg")), ()),
    Sample("\ud800", Path("/y"), ("no emotion",)),
    Sample("d", Path("/z"), ("shares without emotions",), (), SHARES),
]


@pytest.mark.parametrize("samples", [ODD, [], ODD[1:2]])
def test_packing_is_lossless(samples: list[Sample]) -> None:
    packed = Samples.pack(iter(samples))
    assert len(packed) == len(samples) and [*packed] == samples
    assert [packed[i] for i in range(len(samples))] == samples
    assert [packed.path(i) for i in range(len(samples))] == [sample.path for sample in samples]


def test_sequence_protocol() -> None:
    packed = Samples.pack(ODD)
    assert packed[-1] == ODD[-1] and [*packed[1:3]] == ODD[1:3] and ODD[2] in packed
    for index in (4, -5):
        with pytest.raises(IndexError):
            packed[index]


def test_pickling() -> None:
    assert [*pickle.loads(pickle.dumps(Samples.pack(ODD)))] == ODD


def test_without_emotions(tmp_path: Path) -> None:
    samples = make_samples(tmp_path, 3)
    packed = Samples.pack(samples)
    assert packed.has_emotions and not packed.without_emotions().has_emotions
    assert [*packed.without_emotions()] == [replace(sample, emotions=(), histogram=None) for sample in samples]
    assert [*packed] == samples, "packed samples are immutable"


def test_with_images_of(tmp_path: Path) -> None:
    samples = make_samples(tmp_path, 3)
    moved = Samples.pack(samples).with_images_of([2, 0, 1])
    assert [sample.path for sample in moved] == [samples[i].path for i in (2, 0, 1)]
    assert [sample.texts for sample in moved] == [sample.texts for sample in samples]
    assert [*moved.with_images_of([1, 2, 0])] == samples


def test_labels_are_kept() -> None:
    labels = ("joy", "fear", "awe")
    samples = [Sample("a", Path("/a"), ("", "why"), (2, 0), (0.5, 0.0, 0.5)), Sample("b", Path("/b"), ())]
    packed = Samples.pack(samples, labels)
    assert [*packed] == samples and packed.histograms.shape == (2, 3)
    for other in (packed, packed[:1], packed.without_emotions(), packed.with_images_of([1, 0]), packed.without_texts()):
        assert other.labels == labels
    assert Samples.pack([]).labels is EMOTIONS and pickle.loads(pickle.dumps(packed)).labels == labels


def test_without_texts() -> None:
    packed = Samples.pack(ODD)
    assert packed.has_texts and not packed.without_texts().has_texts and not Samples.pack([]).has_texts
    assert [*packed.without_texts()] == [replace(sample, texts=("",) * len(sample.texts)) for sample in ODD]
    assert not Samples.pack([Sample("a", Path("/a"), ("", " "), (1, 1))]).has_texts
