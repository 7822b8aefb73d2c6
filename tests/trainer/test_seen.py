"""The images that a network was trained on, and the check against them."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import UserError
from data.samples import Samples
from data.schema import Sample
from trainer.runs.seen import FILE, read_seen, require_unseen, seen_in, write_seen


def make(*ids: str) -> Samples:
    return Samples.pack(Sample(id, Path(f"/x/{id}.jpg"), ()) for id in ids)


def test_seen_images_survive_a_round_trip(tmp_path):
    write_seen(tmp_path, {"captioner": seen_in(make("a", "b")), "teacher": seen_in(make("c"))})
    found = read_seen(tmp_path)
    assert {name: len(images) for name, images in found.items()} == {"captioner": 2, "teacher": 1}
    require_unseen(make("d", "e"), found, where="the gate's split")


def test_order_of_images_does_not_matter():
    assert seen_in(make("a", "b", "c")).equal(seen_in(make("c", "a", "b")))


def test_training_image_is_refused_by_its_id(tmp_path):
    seen = {"captioner": seen_in(make("a")), "teacher": seen_in(make("b", "c"))}
    with pytest.raises(UserError) as caught:
        require_unseen(make("x", "c", "b"), seen, where="dataset.validation_ds")
    said = str(caught.value)
    assert said.startswith("2 of the 3 images in dataset.validation_ds were trained on by the teacher, the first is c")
    assert "dataset.gate_split" in said


def test_checkpoint_without_the_file_has_no_seen_images(tmp_path):
    assert read_seen(tmp_path) == {}


def test_damaged_file_is_reported(tmp_path):
    (tmp_path / FILE).write_bytes(b"\x00" * 20)
    with pytest.raises(UserError, match="cannot be read"):
        read_seen(tmp_path)
