from __future__ import annotations

import sys

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from data.emotion_colors import EMOTION_COLORS
from data.emotions import EMOTIONS
from trainer.loop.figures import DPI, SIZE, confusion_figure, prediction_figure

WIDTH, HEIGHT = (round(side * DPI) for side in SIZE)


def row(best: int = 1, **more) -> dict:
    shares = [0.6 if i == best else 0.05 for i in range(9)]
    return {
        "emotion": EMOTIONS[best],
        "emotion_distribution": shares,
        "histogram": [1 / 9] * 9,
        "explanation": "the sky is wide",
    } | more


def picture(colour: str = "teal", size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.new("RGB", size, colour)


def color_of(emotion: str) -> np.ndarray:
    return np.array([int(EMOTION_COLORS[emotion][i : i + 2], 16) for i in (1, 3, 5)])


def pixels(figure: np.ndarray, colour: np.ndarray) -> int:
    return int((figure == colour).all(axis=-1).sum())


def test_size():
    figure = prediction_figure(picture(), row())
    assert figure.shape == (HEIGHT, WIDTH, 3) and figure.dtype == np.uint8 and figure.flags["C_CONTIGUOUS"]
    assert WIDTH < 600, "a card of TensorBoard is about 330 pixels wide"


def test_picture_begins_near_the_left_edge():
    figure = prediction_figure(picture("red"), row())
    (columns,) = (figure == (255, 0, 0)).all(axis=-1).any(axis=0).nonzero()
    assert 0.02 < columns[0] / WIDTH < 0.05


def test_confusions_are_colored_by_the_share_of_the_row():
    figure = confusion_figure([[1, 1], [0, 8]], ["calm", "fear"]).astype(int)
    half, whole = (np.array(colormaps["Blues"](share)[:3]) * 255 for share in (0.5, 1.0))
    areas = [(np.abs(figure - color).max(axis=-1) < 4).sum() for color in (half, whole)]
    assert areas[0] == pytest.approx(2 * areas[1], rel=0.1) and areas[1] > 1000


def test_bars_grow_with_the_share():
    low = prediction_figure(picture(), row(best=6))
    high = prediction_figure(picture(), row(best=1))
    assert pixels(high, color_of("awe")) > 5 * pixels(low, color_of("awe")) > 0


def test_image_texts_and_annotations_change_the_figure():
    plain = prediction_figure(picture(), row())
    assert pixels(plain, np.array(picture().getpixel((0, 0)))) > 5000
    for other in (
        prediction_figure(picture("red"), row()),
        prediction_figure(picture(), row(explanation="the sea is near")),
        prediction_figure(picture(), row(histogram=[0.2] + [0.1] * 8)),
        prediction_figure(picture(), row(references=["so calm"])),
    ):
        assert not np.array_equal(plain, other)
    assert np.array_equal(plain, prediction_figure(picture(), row()))


def test_paths_and_opened_images_give_the_same_figure(tmp_path):
    picture().save(tmp_path / "x.png")
    given = [picture(), tmp_path / "x.png", str(tmp_path / "x.png")]
    first, second, third = (prediction_figure(image, row()) for image in given)
    assert np.array_equal(first, second) and np.array_equal(first, third)


def test_given_image_is_not_modified():
    image = picture(size=(900, 600))
    prediction_figure(image, row())
    assert image.size == (900, 600)


def test_no_bars_without_emotions():
    none = {"emotion": None, "emotion_distribution": None, "histogram": None}
    figure = prediction_figure(picture(), row() | none)
    assert all(pixels(figure, color_of(name)) == 0 for name in EMOTIONS)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("words", ["costs $5 and $6_x^", "line\nbreak", "日本の絵", "", "word " * 500, "x" * 900])
def test_any_text_can_be_drawn(words):
    figure = prediction_figure(picture(), row(explanation=words, references=[words]))
    assert figure.shape == (HEIGHT, WIDTH, 3)


def test_unreadable_image_leaves_its_cell_empty(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no")
    assert prediction_figure(tmp_path / "x.jpg", row()).shape == (HEIGHT, WIDTH, 3)


def test_pyplot_is_not_imported():
    before = "matplotlib.pyplot" in sys.modules
    prediction_figure(picture(), row())
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_bars_of_other_labels():
    labels = ["joy", "anger", "surprise"]
    shares = {"labels": labels, "emotion": "anger", "emotion_distribution": [0.0, 1.0, 0.0], "histogram": None}
    figure = prediction_figure(picture(), row(**shares))
    assert pixels(figure, color_of("anger")) > 500 and not pixels(figure, color_of("awe"))


def test_figure_without_explanation():
    without = prediction_figure(picture(), row(explanation=None))
    empty = prediction_figure(picture(), row(explanation=""))
    assert without.shape == empty.shape and (without != empty).any()
