"""Pipelines of questions, matching and regions: results of the plain forward, batches, overlays, refused inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from common.errors import UserError
from model.vle.heads import VLEForITM, VLEForPBC, VLEForVQA
from model.vle.overlay import draw_overlay
from model.vle.pipelines import VLEForITMPipeline, VLEForPBCPipeline, VLEForVQAPipeline, VLEPipeline
from model.vle.processor import VLEProcessor
from tests.helpers.vle import ANSWERS, tiny_model, write_processor

QUESTIONS = ["what is shown?", "is it a boat?", "how many dogs are in the painting and which colour is the sky?"]


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> VLEProcessor:
    return VLEProcessor.from_pretrained(write_processor(tmp_path_factory.mktemp("vle")))


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = [(40, 50, 3), (32, 32, 3), (60, 33, 3), (35, 90, 3)]
    return [Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)) for size in sizes]


@pytest.fixture(scope="module")
def vqa(processor: VLEProcessor) -> VLEForVQAPipeline:
    return VLEForVQAPipeline(model=tiny_model(VLEForVQA), device="cpu", vle_processor=processor)


@pytest.fixture(scope="module")
def itm(processor: VLEProcessor) -> VLEForITMPipeline:
    return VLEForITMPipeline(model=tiny_model(VLEForITM), device="cpu", vle_processor=processor)


@pytest.fixture(scope="module")
def pbc(processor: VLEProcessor) -> VLEForPBCPipeline:
    return VLEForPBCPipeline(model=tiny_model(VLEForPBC), device="cpu", vle_processor=processor)


def forward(pipeline: VLEPipeline, image: Image.Image, text: str) -> Tensor:
    """Return the logits of the model's forward for one picture and text."""
    inputs = pipeline.vle_processor(text=[text], images=[image], padding=True, return_tensors="pt")
    with torch.no_grad():
        return pipeline.model(**inputs).logits[0]


def flatten(results: Any) -> list[float]:
    """Return the numbers in nested results, in their order."""
    if isinstance(results, dict):
        return [number for key in results if key != "image" for number in flatten(results[key])]
    if isinstance(results, list | tuple):
        return [number for item in results for number in flatten(item)]
    return [results] if isinstance(results, float) else []


@pytest.fixture
def encoded(vqa: VLEForVQAPipeline) -> Iterator[list[int]]:
    """Numbers of pictures in each call of the image tower."""
    counts: list[int] = []
    tower, original = vqa.model.vle, vqa.model.vle.get_image_features
    tower.get_image_features = lambda pixels: counts.append(len(pixels)) or original(pixels)
    yield counts
    del tower.get_image_features


def test_vqa_scores_are_the_softmax_of_the_forward(vqa: VLEForVQAPipeline, images: list[Image.Image]) -> None:
    probabilities = forward(vqa, images[0], QUESTIONS[0]).softmax(dim=-1)
    answers = vqa(image=images[0], question=QUESTIONS[0], top_k=5)
    order = probabilities.argsort(descending=True).tolist()
    assert [answer["answer"] for answer in answers] == [ANSWERS[number] for number in order]
    assert [answer["score"] for answer in answers] == pytest.approx(probabilities[order].tolist(), abs=1e-6)
    assert vqa(images[0], QUESTIONS[0]) == answers[:1]


@pytest.mark.parametrize(("top_k", "count"), [(0, 0), (1, 1), (3, 3), (99, 5)])
def test_top_k(vqa: VLEForVQAPipeline, images: list[Image.Image], top_k: int, count: int) -> None:
    assert len(vqa(images[0], QUESTIONS[0], top_k=top_k)) == count


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
@pytest.mark.parametrize("name", ["vqa", "itm", "pbc"])
def test_batches_equal_single_calls(
    name: str, batch_size: int, images: list[Image.Image], request: pytest.FixtureRequest
) -> None:
    pipeline = request.getfixturevalue(name)
    pairs = [(images[n % 4], QUESTIONS[n % 3]) for n in (0, 1, 4, 3, 8, 2, 5)]
    single = [pipeline(image, text) for image, text in pairs]
    several = type(pipeline)(pipeline.model, "cpu", pipeline.vle_processor, batch_size=batch_size)
    results = several([{"image": image, pipeline.text_key: text} for image, text in pairs])
    assert len(results) == len(pairs)
    assert flatten(results) == pytest.approx(flatten(single), abs=1e-5)
    assert len({tuple(flatten(result)) for result in results}) == len(set(map(str, pairs)))


def test_a_picture_is_encoded_once(vqa: VLEForVQAPipeline, images: list[Image.Image], encoded: list[int]) -> None:
    vqa([{"image": image, "question": text} for text in QUESTIONS for image in images[:2]])
    assert encoded == [2]
    encoded.clear()
    pipeline = VLEForVQAPipeline(vqa.model, "cpu", vqa.vle_processor, batch_size=4)
    pipeline([{"image": images[n % 2], "question": QUESTIONS[0]} for n in range(11)])  # a picture in two batches
    assert sum(encoded) == 2


def test_same_pixels_in_two_objects_are_two_pictures(
    vqa: VLEForVQAPipeline, images: list[Image.Image], encoded: list[int]
) -> None:
    vqa([{"image": image, "question": QUESTIONS[0]} for image in (images[0], images[0].copy())])
    assert encoded == [2]


def test_a_path_is_encoded_once(
    vqa: VLEForVQAPipeline, images: list[Image.Image], encoded: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    images[0].save(path)
    results = vqa([{"image": image, "question": QUESTIONS[0]} for image in (path, str(path))])
    assert encoded == [1]
    assert flatten(results) == pytest.approx(flatten([vqa(images[0], QUESTIONS[0])] * 2), abs=1e-6)


def test_ways_to_call(vqa: VLEForVQAPipeline, images: list[Image.Image]) -> None:
    one = {"image": images[0], "question": QUESTIONS[0]}
    expected = vqa(image=images[0], question=QUESTIONS[0], top_k=2)
    assert vqa(one, top_k=2) == expected
    assert vqa([one], top_k=2) == [expected]
    assert vqa((item for item in [one]), top_k=2) == [expected]


@pytest.mark.parametrize(("bias", "match"), [([30.0, 0.0], "False"), ([0.0, 30.0], "True"), (None, None)])
def test_itm(processor: VLEProcessor, images: list[Image.Image], bias: list[float] | None, match: str | None) -> None:
    pipeline = VLEForITMPipeline(model=tiny_model(VLEForITM), device="cpu", vle_processor=processor)
    if bias is not None:
        pipeline.model.itm_score.fc.bias.data = torch.tensor(bias)
    for image, text in zip(images, [*QUESTIONS, "the sea"], strict=True):
        result = pipeline(image=image, text=text)
        no, yes = forward(pipeline, image, text).softmax(dim=-1).tolist()
        assert result["score"] == pytest.approx([no, yes], abs=1e-6)
        assert result["match"] == (match or str(yes > no))


def test_pbc(pbc: VLEForPBCPipeline, images: list[Image.Image]) -> None:
    logits = forward(pbc, images[0], QUESTIONS[0])
    result = pbc(image=images[0], text=QUESTIONS[0])
    assert np.allclose(result["score"], logits.softmax(dim=-1), atol=1e-6) and len(result["score"]) == 16
    assert (result["image"].mode, result["image"].size) == (images[0].mode, images[0].size)
    assert result["image"].tobytes() == draw_overlay(images[0], logits[:, 1]).tobytes()


def painted(image: Image.Image, logits: Tensor) -> np.ndarray:
    """The overlay pixel by pixel: grey of each patch's level over the picture, (height, width, 3)."""
    weights = logits.double().softmax(dim=-1)
    lowest, highest = weights.min(), weights.max()
    black = lowest + 0.4 * (highest - lowest)
    result = np.asarray(image).astype(float)
    for y in range(image.height):
        for x in range(image.width):
            weight = weights[(4 * y // image.height) * 4 + 4 * x // image.width]
            grey = float(((weight - black) / (highest - black)).clamp(0, 1))
            opacity = 0.7 * (1 - grey)
            result[y, x] = (1 - opacity) * result[y, x] + opacity * 255 * grey
    return result


@pytest.mark.parametrize("size", [(40, 24), (64, 64)])
def test_overlay_equals_the_formula(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, logits = Image.fromarray(pixels), torch.randn(16)
    np.testing.assert_allclose(np.asarray(draw_overlay(image, logits)), painted(image, logits), atol=3)


def test_overlay_darkens_all_but_the_largest() -> None:
    image, logits = Image.new("RGB", (40, 40), (200, 200, 200)), torch.zeros(16)
    logits[6] = 3.0  # row 1, column 2
    pixels = np.asarray(draw_overlay(image, logits))
    assert (pixels[10:20, 20:30] == 200).all()
    pixels = pixels.copy()
    pixels[10:20, 20:30] = 60
    assert (np.abs(pixels.astype(int) - 60) <= 1).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1"])
def test_overlay_keeps_mode_and_size(mode: str) -> None:
    image = Image.new("RGB", (41, 23), (200, 180, 20)).convert(mode)
    before = image.tobytes()
    result = draw_overlay(image, torch.arange(16.0))
    assert (result.mode, result.size) == (image.mode, image.size)
    assert image.tobytes() == before


def test_overlay_of_equal_values() -> None:
    pixels = np.asarray(draw_overlay(Image.new("RGB", (8, 8), "white"), torch.zeros(4)))
    assert (np.abs(pixels.astype(int) - 77) <= 1).all()


def test_overlay_on_the_centre_crop(pbc: VLEForPBCPipeline) -> None:
    wide = Image.new("RGB", (128, 64), "white")
    pipeline = VLEForPBCPipeline(pbc.model, "cpu", pbc.vle_processor, grid="crop")
    stretched, cropped = pbc(wide, QUESTIONS[0]), pipeline(wide, QUESTIONS[0])
    assert stretched["score"] == cropped["score"]
    pixels = np.asarray(cropped["image"]).astype(int)
    assert (np.abs(pixels[:, :32] - 77) <= 1).all() and (np.abs(pixels[:, 96:] - 77) <= 1).all()  # not seen
    square = np.asarray(draw_overlay(wide.resize((64, 64)), forward(pbc, wide, QUESTIONS[0])[:, 1]))
    np.testing.assert_array_equal(pixels[:, 32:96], square)
    assert not np.array_equal(pixels, np.asarray(stretched["image"]))


def test_limit_of_a_text(vqa: VLEForVQAPipeline, images: list[Image.Image]) -> None:
    assert vqa(images[0], "blue " * 300)
    pipeline = VLEForVQAPipeline(vqa.model, "cpu", vqa.vle_processor, max_length=7)
    assert pipeline(images[0], "blue " * 5)
    with pytest.raises(UserError, match=r"the question 'blue .* has 8 tokens, and max_length=7"):
        pipeline([{"image": images[0], "question": text} for text in ("blue", "blue " * 6)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "empty list"),
        ({}, "input 1 must be"),
        ({"image": None}, "has: image"),
        ([{"image": None, "question": "a"}, {"picture": None}], "input 2 .* has: picture"),
        ([{"image": None, "question": 3}], "input 1 must be"),
        ("a.png", "needs image= and question="),
        (None, "needs image= and question="),
        (Image.new("RGB", (2, 2)), "needs image= and question="),
        ([Image.new("RGB", (2, 2))], "has: Image"),
        ({"image": None, "question": "a"}, "not NoneType"),
        ({"image": "missing.png", "question": "a"}, "missing.png cannot be read"),
    ],
)
def test_refused_inputs(vqa: VLEForVQAPipeline, given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        vqa(given)


def test_refused_options(vqa: VLEForVQAPipeline, pbc: VLEForPBCPipeline, images: list[Image.Image]) -> None:
    with pytest.raises(UserError, match="VLEForITMPipeline needs a VLEForITM, not a VLEForVQA"):
        VLEForITMPipeline(vqa.model, "cpu", vqa.vle_processor)
    with pytest.raises(UserError, match="needs vle_processor="):
        VLEForVQAPipeline(vqa.model, "cpu")
    with pytest.raises(UserError, match="batch_size=0"):
        VLEForVQAPipeline(vqa.model, "cpu", vqa.vle_processor, batch_size=0)
    with pytest.raises(UserError, match="grid='round' must be one of stretch, crop"):
        VLEForPBCPipeline(pbc.model, "cpu", pbc.vle_processor, grid="round")
    with pytest.raises(UserError, match="top_k=-1"):
        vqa(images[0], "a", top_k=-1)


def test_device_and_mode(vqa: VLEForVQAPipeline) -> None:
    pipeline = VLEForVQAPipeline(tiny_model(VLEForVQA).train(), -1, vqa.vle_processor)
    assert pipeline.device == torch.device("cpu") and not pipeline.model.training


def test_pictures_of_another_size(vqa: VLEForVQAPipeline, tmp_path: Path, images: list[Image.Image]) -> None:
    processor = VLEProcessor.from_pretrained(write_processor(tmp_path, size=48))
    with pytest.raises(UserError, match="48"):
        VLEForVQAPipeline(vqa.model, "cpu", processor)(images[0], "a")
