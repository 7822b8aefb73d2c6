"""Reading images and clips as frames."""

from __future__ import annotations

import pickle

import pytest
import torch

from data.frames import FrameReader, is_clip
from data.images import ImageError, build_transform, open_image
from tests.helpers.clips import write_clip
from tests.helpers.tiny import write_pictures


@pytest.fixture
def picture(tmp_path):
    return write_pictures(tmp_path, 1)[0]


def test_image_is_one_frame(picture):
    frames = FrameReader({"size": 16}, max_frames=4)(picture)
    assert torch.equal(frames, build_transform({"size": 16})(open_image(picture))[None])


@pytest.mark.parametrize(("count", "limit", "expected"), [(3, 4, 3), (9, 4, 4)])
def test_clip_has_up_to_max_frames(tmp_path, count, limit, expected):
    path = write_clip(tmp_path / "A.MP4", count)
    assert is_clip(path)
    assert FrameReader({"size": 16}, max_frames=limit)(path).shape == (expected, 3, 16, 16)


def test_unusable_files(picture, tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        FrameReader({"size": 16}, max_frames=4)(tmp_path / "none.png")
    with pytest.raises(ImageError, match="too many pixels"):
        FrameReader({"size": 16}, max_frames=4, max_pixels=100)(picture)


def test_pickling(picture):
    reader = FrameReader({"size": 16}, max_frames=4)
    assert torch.equal(pickle.loads(pickle.dumps(reader))(picture), reader(picture))
