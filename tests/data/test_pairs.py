"""Pictures with texts: items, batches, and the encoder's arguments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from common.errors import UserError
from data.loaders import make_loader
from data.pairs import IGNORED, PairDataset, PairItem, PairText, collate_pairs
from data.readers.picture_rows import PictureRows
from data.schema import Sample, Skipped
from tests.helpers.vle_runs import write_picture, write_rows


class Corner:
    """A view of the upper left 8 × 8 pixels."""

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        return (
            torch.tensor(list(picture.crop((0, 0, 8, 8)).tobytes()), dtype=torch.float32).view(8, 8, 3).movedim(-1, 0)
        )

    def part(self, width: int, height: int) -> tuple[float, ...]:
        return 0.0, 0.0, 8 / width, 8 / height


class Texts:
    """`index` texts of each picture; records its arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __call__(self, index: int, epoch: int, part: tuple[float, ...]) -> list[PairText]:
        self.calls.append((index, epoch, part))
        if index == 4:
            raise UserError("its boxes are damaged")
        return [PairText([1, *range(9, 9 + index), 2], {"match": number}) for number in range(index)]


@pytest.fixture
def rows(tmp_path) -> PictureRows:
    return PictureRows(write_rows(tmp_path, "train", 5), tmp_path / "images", strict=True)


def item(name: str, *texts: PairText) -> PairItem:
    return PairItem(Sample(name, Path(name), ()), torch.full((3, 8, 8), float(len(texts))), list(texts))


def test_an_item_has_the_pictures_pixels_and_texts(rows):
    texts = Texts()
    found = PairDataset(rows.samples, view=Corner(), texts=texts, seed=0)[3, 2]
    assert (found.sample.id, found.pixels.shape, len(found.texts)) == ("p2", (3, 8, 8), 2)
    assert texts.calls == [(2, 3, (0.0, 0.0, 8 / 60, 8 / 40))]


def test_unusable_pictures_and_rows_are_skipped_with_their_reason(rows, tmp_path):
    (tmp_path / "images" / "p1.png").write_bytes(b"no picture")
    write_picture(tmp_path / "images" / "p3.png", "red", size=(100, 100))
    data = PairDataset(rows.samples, view=Corner(), texts=Texts(), seed=0, max_pixels=5000)
    reasons = {i: data[0, i].reason for i in (1, 3, 4)}
    assert all(isinstance(data[0, i], Skipped) for i in reasons)
    assert "not a readable image" in reasons[1]
    assert "pixels" in reasons[3]
    assert reasons[4] == "its boxes are damaged"


def test_a_batch_holds_pictures_with_a_text_once_and_lists_the_others(rows, tmp_path):
    (tmp_path / "images" / "p1.png").write_bytes(b"no picture")
    data = PairDataset(rows.samples, view=Corner(), texts=Texts(), seed=0)
    loader, _ = make_loader(data, batch_size=5, num_workers=0, shuffle=False, collate_fn=collate_pairs)
    (batch,) = loader
    assert batch.ids == ["p2", "p3"], "p0 has no text, p1 no picture, p4 a fault"
    assert [skipped.id for skipped in batch.skipped] == ["p1", "p4"]
    assert batch.pixels.shape == (2, 3, 8, 8)
    assert batch.text_image.tolist() == [0, 0, 1, 1, 1]
    assert batch.targets["match"].tolist() == [0, 1, 0, 1, 2]
    assert batch.input_ids.tolist() == [[1, 9, 10, 2, 0]] * 2 + [[1, 9, 10, 11, 2]] * 3
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0]] * 2 + [[1] * 5] * 3


def test_a_batch_without_a_text_is_empty():
    batch = collate_pairs([item("a"), Skipped("b", Path("b"), "gone")])
    assert (batch.ids, batch.texts, len(batch.input_ids), len(batch.skipped)) == ([], [], 0, 1)


def test_words_are_padded_with_ignored_labels():
    masked = PairText([1, 5, 2], {}, words=[IGNORED, 7, IGNORED])
    batch = collate_pairs([item("a", PairText([1, 5, 6, 2]), masked)])
    assert batch.targets["words"].tolist() == [[IGNORED] * 4, [IGNORED, 7, IGNORED, IGNORED]]


def test_encoder_gets_boxes_only_if_a_text_has_some():
    plain, boxed = PairText([1, 5, 2]), PairText([1, 2], boxes=[[0, 1], [3]], box_types=[2, 3], token_types=[0, 2])
    defaults = PairText([1, 2], boxes=[[2]])
    batch = collate_pairs([item("a", plain), item("b", boxed, defaults)])
    assert batch.inputs(torch.tensor([0])).keys() == {"input_ids", "attention_mask", "pixel_values", "image_index"}
    inputs = batch.inputs()
    assert inputs["patch_ids"] == [[], [[0, 1], [3]], [[2]]]
    assert inputs["extend_token_type_ids"] == ([[], [2, 3], [1]], [[], [0, 2], []])
    chosen = batch.inputs(torch.tensor([False, True, False]))
    assert chosen["patch_ids"] == [[[0, 1], [3]]]
    assert chosen["image_index"].tolist() == [1] and len(chosen["pixel_values"]) == 2
    assert torch.equal(chosen["input_ids"], batch.input_ids[1:2])
