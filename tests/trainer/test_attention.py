"""Attention in the report: words and their tokens, and the visible part of an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.emotions import INDEX
from data.images import MAX_PIXELS, build_transform
from data.vad.pieces import PieceAligner
from tests.helpers.tiny import LEXICON, make_aligner, make_captioner
from trainer.report.attention import attention_examples, strongest, token_words, visible_box
from trainer.setup.parts import Parts


@pytest.fixture(params=["word", "piece"])
def parts(template, request) -> Parts:
    aligner = make_aligner(template)
    if request.param == "piece":
        aligner = PieceAligner(aligner.lexicon, template.tokenizer)
    return Parts(make_captioner(template, gates=0.7), template, aligner, with_emotions=True)


def row(folder: Path, text: str = "the gloomy storm makes me feel small", emotion: str | None = "fear") -> dict:
    path = folder / "x.png"
    Image.effect_noise((60, 40), 80).convert("RGB").save(path)
    return {"id": "1", "image": str(path), "emotion": emotion, "explanation": text}


@pytest.mark.parametrize("emotion", ["something else", None])
def test_words_have_the_positions_that_predict_their_tokens(parts, emotion):
    text = "an enormous sky, and don't-know-what"
    encoded = parts.template.encode(text, None if emotion is None else INDEX[emotion])
    words = token_words(text, emotion, parts)
    assert [word for word, _ in words] == ["an", "enormous", "sky", "and", "don't-know-what"]
    for word, places in words:
        written = parts.template.tokenizer.decode([encoded.input_ids[place + 1] for place in places])
        assert written.strip().startswith(word), "the token after each place"


def test_words_beyond_max_length_are_left_out(parts):
    text = "serene " * 60
    length = len(parts.template.encode(text, 0).input_ids)
    assert max(place for _, places in token_words(text, "amusement", parts) for place in places) < length - 2


def test_words_with_the_strongest_vad_are_selected(parts):
    words = token_words("the afraid tiny serene boat and Afraid storm is gloomy and small", "awe", parts)
    chosen = [word for word, _ in strongest(words, parts)]
    norms = sorted(LEXICON.items(), key=lambda item: -np.linalg.norm(item[1]))
    assert chosen == ["afraid", "serene", "storm", "gloomy"] and {"afraid", "serene"} <= {w for w, _ in norms[:5]}


def test_without_a_lexicon_the_longest_words_are_shown(parts):
    parts.aligner = type(parts.aligner)(None, parts.template.tokenizer)
    words = token_words("a boat is lost under an enormous serene sky", "awe", parts)
    assert [word for word, _ in strongest(words, parts)] == ["boat", "under", "enormous", "serene"]


def test_views_are_distributions_named_by_word(parts, tmp_path):
    (example,) = attention_examples([row(tmp_path)], parts, max_pixels=MAX_PIXELS)
    assert [view.word for view in example.views] == ["", "gloomy", "storm", "makes", "small"]
    for view in example.views:
        assert view.grid.shape == (8, 8) and view.grid.sum() == pytest.approx(1.0, abs=1e-5)
    assert example.box == pytest.approx((1 / 6, 0, 2 / 3, 1))


def test_unusable_rows_are_left_out(parts, template, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", MAX_PIXELS)  # restored after the small limit below
    good = row(tmp_path)
    wrong = [good | {"explanation": ""}, good | {"explanation": "12 !"}, good | {"image": str(tmp_path / "gone.png")}]
    wrong += [good | {"image": str(tmp_path / "clip.mp4")}]
    assert [one.row for one in attention_examples([*wrong, good], parts, max_pixels=MAX_PIXELS)] == [good]
    assert attention_examples([good], parts, max_pixels=2399) == []
    parts.captioner = make_captioner(template, enable_resampler_xattn=False)
    assert attention_examples([good], parts, max_pixels=MAX_PIXELS) == []


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [(300, 100), (90, 200), (128, 128)])
def test_visible_box_matches_the_transform(mode, size):
    """Cropping a smooth image to the box and resizing it gives the network's input."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    picture = Image.fromarray(np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8), "RGB")
    side = 224
    preprocess = {"size": side, "mean": (0, 0, 0), "std": (1, 1, 1), "resize_mode": mode}
    frame = build_transform(preprocess)(picture).permute(1, 2, 0).numpy() * 255
    left, top, width, height = visible_box(preprocess, size)
    box = (left * size[0], top * size[1], (left + width) * size[0], (top + height) * size[1])
    corners = (side, side), Image.Transform.EXTENT, box
    seen = np.asarray(picture.transform(*corners, resample=Image.Resampling.BILINEAR), dtype=float)
    inside = np.asarray(Image.new("L", size, 255).transform(*corners)) > 0
    assert inside.mean() > 0.3
    assert np.abs(seen - frame)[inside].mean() < 6
    if mode != "longest":
        assert inside.all()


def test_visible_box_of_a_rectangular_frame():
    assert visible_box({"size": (100, 200), "resize_mode": None}, (100, 100)) == pytest.approx((0, 0.25, 1, 0.5))
