"""The file of logits: nothing in it is computed again, even after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from common.errors import UserError
from data.samples import Samples
from data.schema import Sample
from trainer.runs.logits import complete_logits, digests_of, read_logits

LABELS = ("joy", "fear")


def make(count: int) -> Samples:
    return Samples.pack((Sample(f"ü{i}", Path(f"/x/{i}.jpg"), ()) for i in range(count)), LABELS)


def digests(samples: Samples) -> list[str]:
    return [f"of {sample.path.name}" for sample in samples]


class Source:
    """The logits of an image are its number and twice that; counts its calls."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def compute(self, batch) -> dict[str, torch.Tensor]:
        self.asked += batch.ids
        numbers = torch.tensor([float(id[1:]) for id in batch.ids])
        return {"source": torch.stack([numbers, 2 * numbers + 1 / 3], dim=1)}

    def complete(self, path: Path, samples: Samples, *, of: str = "a") -> dict:
        def loader(missing: Samples):
            ids = [sample.id for sample in missing]
            return [SimpleNamespace(ids=ids[i : i + 2]) for i in range(0, len(ids), 2)]

        return complete_logits(path, samples, digests(samples), self.compute, of=of, loader=loader, what="test")


def test_existing_logits_are_not_computed_again(tmp_path):
    path, source = tmp_path / "logits.jsonl", Source()
    source.complete(path, make(3))
    before, file = path.read_bytes(), path.stat().st_ino
    found = source.complete(path, make(5))
    assert source.asked == ["ü0", "ü1", "ü2", "ü3", "ü4"]
    assert path.read_bytes().startswith(before) and path.stat().st_ino == file
    assert set(found) == {sample.id for sample in make(5)}
    torch.testing.assert_close(found["ü4"]["source"], torch.tensor([4.0, 8 + 1 / 3]), atol=1e-4, rtol=0)
    again = read_logits(path, make(5), digests(make(5)))
    assert all(torch.equal(found[key]["source"], again[key]["source"]) for key in found)


def test_incomplete_line_is_computed_again(tmp_path):
    path, source = tmp_path / "logits.jsonl", Source()
    source.complete(path, make(4))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    source.asked.clear()
    source.complete(path, make(4))
    assert source.asked == ["ü3"]
    assert path.read_bytes() == whole


def test_names_may_contain_unicode_line_separators(tmp_path):
    path, source = tmp_path / "logits.jsonl", Source()
    samples = Samples.pack([Sample("ü1", Path("/x/a\u2028b\x85\udcff.jpg"), ())], LABELS)
    source.complete(path, samples)
    assert set(source.complete(path, samples)) == {"ü1"} and source.asked == ["ü1"]


def test_logits_of_another_network_are_replaced(tmp_path):
    path, source = tmp_path / "logits.jsonl", Source()
    source.complete(path, make(2))
    source.asked.clear()
    source.complete(path, make(2), of="b")
    assert source.asked == ["ü0", "ü1"]


def test_logits_of_other_images_are_not_returned(tmp_path):
    path, source = tmp_path / "logits.jsonl", Source()
    source.complete(path, make(4))
    assert set(source.complete(path, make(2))) == {"ü0", "ü1"}


def test_images_are_identified_by_their_content(tmp_path):
    """Two splits share an id and a name; one image occurs twice; one cannot be read."""
    names = {"train/1.png": "red", "val/1.png": "blue", "val/2.png": "red", "val/3.png": None}
    for name, colour in names.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if colour:
            Image.new("RGB", (8, 8), colour).save(tmp_path / name)

    def samples_of(split: str) -> Samples:
        paths = sorted(tmp_path / name for name in names if name.startswith(split))
        return Samples.pack((Sample(f"ü{path.stem}", path, ()) for path in paths), LABELS)

    train, val = samples_of("train"), samples_of("val")
    (red,), (blue, *rest) = digests_of(train, None), digests_of(val, str(tmp_path / "cache"))
    assert red != blue and rest == [red, None] and not list((tmp_path / "cache").glob("*/*"))
    compute = lambda batch: {"source": torch.tensor([[float(id[1:]), 0.0] for id in batch.ids])}  # noqa: E731
    loader = lambda missing: [SimpleNamespace(ids=[sample.id]) for sample in missing]  # noqa: E731
    shared = {"of": "a", "loader": loader, "what": "test"}
    complete_logits(tmp_path / "l.jsonl", train, [red], compute, **shared)
    found = complete_logits(tmp_path / "l.jsonl", val, [blue, *rest], compute, **shared)
    assert {id: values["source"].tolist() for id, values in found.items()} == {"ü1": [1.0, 0.0], "ü2": [1.0, 0.0]}
    lines = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert [(line["id"], line["image"], line["digest"]) for line in lines[1:]] == [
        ("ü1", "1.png", red),
        ("ü1", "1.png", blue),
    ]


def test_interruption_keeps_finished_batches(tmp_path):
    path, source = tmp_path / "logits.jsonl", Source()
    compute = source.compute

    def broken(batch):
        if "ü2" in batch.ids:
            raise KeyboardInterrupt
        return compute(batch)

    source.compute = broken
    with pytest.raises(KeyboardInterrupt):
        source.complete(path, make(4))
    assert [json.loads(line).get("id") for line in path.read_text(encoding="utf-8").splitlines()] == [None, "ü0", "ü1"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("", "is not a file of logits"),
        ("[1, 2]\n", "is not a file of logits"),
        ('{"labels": ["fear", "joy"], "of": "a"}\n', "was made for the emotions fear, joy; here they are joy, fear"),
    ],
)
def test_other_files_are_refused(tmp_path, content, said):
    path = tmp_path / "logits.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=said):
        read_logits(path, make(1), digests(make(1)))


def test_invalid_lines_are_ignored(tmp_path):
    path = tmp_path / "logits.jsonl"
    lines = ['{"labels": ["joy", "fear"], "of": "a"}', '{"digest": "of 0.jpg", "source": [1, 2, 3]}', "[]"]
    lines += ['{"digest": "of 1.jpg", "source": [1, true]}', '{"digest": "of 2.jpg", "source": [1, 2]}']
    lines += ['{"digest": 3, "source": [1, 2]}', '{"id": "ü3", "image": "3.jpg", "source": [1, 2]}']
    path.write_text("\n".join(lines) + "\n")
    assert set(read_logits(path, make(4), digests(make(4)))) == {"ü2"}
