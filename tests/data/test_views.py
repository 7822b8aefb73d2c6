"""Random views for training a classifier depend only on seed, epoch and index."""

from __future__ import annotations

import torch

from data.loaders import make_loader
from data.samples import Samples
from data.schema import Skipped
from data.views import ViewDataset
from tests.helpers.tiny import make_samples

PREPROCESS = {"size": 24, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "interpolation": "bilinear"}


def make(folder, *, crop: float | None = 0.3, seed: int = 0, count: int = 6) -> ViewDataset:
    samples = make_samples(folder, count)
    for sample in samples:  # an image of a single color would look the same in every crop
        draw_gradient(sample.path)
    return ViewDataset(Samples.pack(samples), preprocess=PREPROCESS, seed=seed, max_pixels=10**6, smallest_crop=crop)


def draw_gradient(path) -> None:
    from PIL import Image

    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(path)


def test_views_are_reproducible(tmp_path):
    views = make(tmp_path)
    torch.manual_seed(7)
    first = views[2, 3].frames
    torch.rand(5)
    assert first.shape == (1, 3, 24, 24)
    assert torch.equal(first, views[2, 3].frames)
    assert not torch.equal(first, views[1, 3].frames)
    assert not torch.equal(first, make(tmp_path, seed=1)[2, 3].frames)


def test_global_generators_are_unchanged(tmp_path):
    views = make(tmp_path)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    views[0, 0]
    assert torch.equal(torch.rand(3), expected)


def test_without_crops_epochs_are_equal(tmp_path):
    views = make(tmp_path, crop=None)
    assert torch.equal(views[0, 1].frames, views[5, 1].frames)


def test_workers_make_no_difference(tmp_path):
    views = make(tmp_path)

    def frames(workers: int) -> torch.Tensor:
        loader, sampler = make_loader(views, batch_size=2, num_workers=workers, shuffle=True)
        sampler.epoch = 3
        return torch.cat([batch.frames for batch in loader])

    assert torch.equal(frames(0), frames(2))


def test_batches_without_texts(tmp_path):
    loader, _ = make_loader(make(tmp_path), batch_size=4, num_workers=0, shuffle=False)
    batch = next(iter(loader))
    assert batch.ids == ["id0", "id1", "id2", "id3"]
    assert batch.histogram.shape == (4, 9) and batch.input_ids.numel() == 0
    torch.testing.assert_close(batch.histogram.sum(dim=1), torch.ones(4))


def test_damaged_image_is_skipped_with_its_reason(tmp_path):
    views = make(tmp_path)
    views.samples.path(1).write_bytes(b"no picture")
    found = views[0, 1]
    assert isinstance(found, Skipped) and found.id == "id1"
