"""The Python interface: the same results as mode=predict, for paths, PIL images and arrays."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import emoscribe
from common.errors import UserError
from common.reading import ROOT
from tests.helpers.html_page import Page
from tests.helpers.tiny import GPT2, run_mode, write_pictures, write_run, write_splits
from tests.trainer.test_vle_predict import predict as predict_vle
from tests.trainer.test_vle_predict import write_checkpoint
from trainer.interface import EmoScribe
from trainer.interface.vle import Vle
from trainer.report.attention import attention_examples

COLORS = 6
BY_VLE = {"trainer.test.rank_by": "vle", "trainer.test.best_of": 2, "trainer.test.decoding_strategy": "nucleus"}


def write_diverse_run(root: Path) -> Path:
    """Train a network that writes different texts for different pictures; return its run."""
    keys = write_splits(root, test=4) | {"model.vad.sentence": True, "model.optimizer.lr": 0.03}
    keys |= {"model.text.config": {**GPT2, "initializer_range": 0.35}}
    keys |= {"model.text.xattn": {"dim_head": 8, "heads": 2, "gate_init": 2.0}}
    return write_run(keys, "run")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_diverse_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = write_pictures(folder, COLORS)
    Image.effect_noise((90, 50), 90).convert("RGB").save(folder / "noise.png")
    return [*paths, folder / "noise.png"]


@pytest.fixture(scope="module")
def model(run) -> EmoScribe:
    return EmoScribe.from_pretrained(run, device="cpu")


def test_results_equal_those_of_predict(run, model, pictures):
    run_mode("predict", {"pretrained_name": run, "image": pictures[0].parent, "trainer.device": "cpu"})
    rows = json.loads((run / "predict" / "predictions.json").read_text())
    by_path = {row["image"]: row for row in rows}
    order = sorted(pictures)  # the same batches as there
    found = model.explain([str(path) for path in order])
    assert len(found) == COLORS + 1 == len(rows)
    for path, explanation in zip(order, found, strict=True):
        row = by_path[str(path)]
        assert explanation.row == {key: value for key, value in row.items() if key != "image"}
        assert (explanation.text, explanation.emotion) == (row["explanation"], row["emotion"])
        assert [*explanation.emotions.values()] == row["emotion_distribution"]
        assert list(explanation.vad) == row["vad"] and explanation.unfamiliar == row.get("unfamiliar", False)
    assert len({explanation.text for explanation in found}) > 1, "different texts, else the test is void"


def test_every_kind_of_picture_gives_the_same(model, pictures):
    expected = model.explain(pictures[-1])
    with Image.open(pictures[-1]) as opened:
        array = np.asarray(opened)
        for kind in (str(pictures[-1]), opened, array, np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])):
            found = model.explain(kind)
            assert found.text == expected.text and found.row["emotion_distribution"] == pytest.approx(
                expected.row["emotion_distribution"], abs=1e-5
            )
        grey = model.explain(array[..., 0])
        assert grey.text == expected.text, "gray noise"
    turned = Image.open(pictures[-1]).transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be shown rotated by 90 degrees clockwise
    assert model.explain(turned).emotions == pytest.approx(expected.emotions, abs=1e-5)
    clear = Image.new("RGBA", (40, 40), (200, 0, 0, 0))
    white = model.emotions(Image.new("RGB", (40, 40), "white"))
    assert model.emotions(clear) == pytest.approx(white, abs=1e-6), "transparency is put on white"


def test_one_picture_gives_one_result_and_a_list_a_list(model, pictures):
    one, several = model.emotions(pictures[0]), model.emotions(pictures[:2])
    assert [*one] == list(model.labels) and sum(one.values()) == pytest.approx(1, abs=1e-4)
    assert several[0] == pytest.approx(one, abs=1e-5) and len(several) == 2
    assert model.explain([]) == [] == model.emotions([])
    tokens = model.features(pictures[:3])
    assert tokens.shape == (3, model.parts.captioner.vision.num_tokens, model.parts.captioner.vision.dim)
    torch.testing.assert_close(model.features(pictures[2]), tokens[2], atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        frames = torch.stack([model.transform(Image.open(path).convert("RGB"))[None] for path in pictures[:3]])
        torch.testing.assert_close(tokens, model.parts.captioner.vision(frames)[:, 0], atol=1e-5, rtol=1e-4)
    assert model.features([]).shape == (0, *tokens.shape[1:])


def test_several_explanations_of_an_emotion_of_ones_choice(model, pictures):
    first, second = model.explain(pictures[:2], emotion="Fear", n=4)
    assert first.emotion == second.emotion == "fear" and first.row["asked_emotion"]
    assert first.text == model.explain(pictures[0], emotion="fear").text
    assert len(first.others) == 3 and len({first.text, *first.others}) > 1 and first.others != second.others
    again = model.explain(pictures[0], emotion="fear", n=4)
    assert again.others == first.others, "draws depend on seed and picture, not on its batch"
    assert model.explain(pictures[0], emotion="awe", n=2).others != first.others[:1]


def test_word_maps_are_those_of_the_report(model, pictures):
    own = model.explain(pictures[-1])
    text = "the tiny boat is lost, the boat"
    found = model.attention(pictures[-1], text=text, emotion="awe")
    assert found.words == ("the", "tiny", "boat", "is", "lost", "the", "boat")
    row = {"image": str(pictures[-1]), "emotion": "awe", "explanation": text}
    (example,) = attention_examples([row], model.parts, max_pixels=10**8)
    for view in example.views:
        expected = found.maps[found.words.index(view.word)] if view.word else found.whole
        np.testing.assert_allclose(view.grid, expected, atol=1e-5)
    assert found.box == example.box and found.maps.sum(axis=(1, 2)).max() == pytest.approx(1, abs=1e-4)
    if own.text.strip():
        assert model.attention(pictures[-1]).text == own.text
    assert model.attention(pictures[-1], text="calm").words == ("calm",), "the likeliest emotion"


def test_notebooks_show_picture_bars_and_maps(model, pictures, tmp_path):
    explanation = model.explain(pictures[-1], emotion="awe", n=2)
    explanation.row["explanation"] = explanation.row["text"] = "<b>&"
    shown = type(explanation)("<script>alert(1)</script>", ("& another",), explanation.row, explanation.picture)
    (tmp_path / "shown.html").write_text(shown._repr_html_(), encoding="utf-8")
    page = Page(tmp_path / "shown.html")
    assert "<script>" not in page.html and "<script>alert(1)</script>" in page.text and "& another" in page.text
    widths = [float(re.search(r"width:([\d.]+)%", attrs["style"])[1]) for tag, attrs in page.tags if tag == "i"]
    expected = sorted((100 * share for share in explanation.emotions.values()), reverse=True)
    assert widths == pytest.approx(expected, abs=0.051)
    maps = model.attention(pictures[-1], text="calm or afraid", emotion="fear")
    (tmp_path / "maps.html").write_text(maps._repr_html_(), encoding="utf-8")
    names = [attrs["alt"] for tag, attrs in Page(tmp_path / "maps.html").tags if tag == "img"]
    assert names[1::2] == ["map of all words", *(f"map of {word}" for word in maps.words)]


def test_text_of_a_result(model, pictures):
    found = model.explain(pictures[0], emotion="awe")
    share = found.emotions["awe"]
    assert str(found) == f"awe ({'<1' if 0 < share < 0.005 else f'{100 * share:.0f}'} %): {found.text}"


def test_pictures_that_cannot_be_used_are_named(model, pictures, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "empty.png").touch()
    wrong = {
        "https://example.org/a.jpg": "nothing is downloaded",
        tmp_path / "none.png": "none.png: there is no such file",
        str(tmp_path / "broken.png"): "broken.png: its content is not a readable image",
        tmp_path / "empty.png": "empty.png: the file is empty",
    }
    for picture, message in wrong.items():
        with pytest.raises(UserError, match=message):
            model.explain([pictures[0], picture])
    for array in (np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)):
        with pytest.raises(UserError, match="an array must be uint8 of shape"):
            model.emotions(array)
    for kind in (7, {"a.png"}, [7]):
        with pytest.raises(UserError, match="expected a path"):
            model.features(kind)
    with pytest.raises(UserError, match="too narrow"):
        model.explain(Image.new("RGB", (1000, 1)))


def test_settings_that_cannot_be_used_are_named(run, model, pictures):
    for call, message in (
        (lambda: model.explain(pictures[0], emotion="joy"), "emotion: 'joy' is not one of the nine emotions"),
        (lambda: model.explain(pictures[0], n=0), "n must be a number from 1 to 32"),
        (lambda: model.attention(pictures[0], text=" ,"), "has no words"),
        (lambda: EmoScribe.from_pretrained(run, keys=BY_VLE), "trainer.test.rank_by=vle needs mode=test or predict"),
        (lambda: EmoScribe.from_pretrained(run.parent / "none"), "there is no checkpoint"),
        (lambda: EmoScribe.from_pretrained(run, keys={"trainer.tset.top_p": 1}), "did you mean 'trainer.test.top_p'"),
        (lambda: EmoScribe.from_pretrained(run, keys={"trainer.test.top_p": 3}), "trainer.test.top_p must be"),
        (
            lambda: EmoScribe.from_pretrained(run, keys={"model.vad.fusion": "off"}),
            "the checkpoint defines the network",
        ),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_keys_change_the_decoding(run, pictures):
    keys = {"trainer.test.decoding_strategy": "beam", "trainer.test.max_length": 3}
    short = EmoScribe.from_pretrained(run, device="cpu", keys=keys)
    run_mode("predict", {"pretrained_name": run, "image": pictures[-1], "trainer.device": "cpu", **keys})
    (row,) = json.loads((run / "predict" / "predictions.json").read_text())
    assert short.explain(pictures[-1]).text == row["explanation"]


def test_networks_without_emotions_or_explanations(tmp_path, pictures):
    keys = write_splits(tmp_path)
    captions = EmoScribe.from_pretrained(write_run({**keys, "dataset.emotions": False}, "captions"))
    found = captions.explain(pictures[0], n=2)
    assert found.emotion is None and found.emotions == {} and str(found) == found.text and len(found.others) == 1
    for call in (lambda: captions.emotions(pictures[0]), lambda: captions.explain(pictures[0], emotion="awe")):
        with pytest.raises(UserError, match="was trained without emotions"):
            call()
    names = EmoScribe.from_pretrained(write_run({**keys, "dataset.explanations": False}, "names"))
    assert names.explain(pictures[0]).text is None and len(names.emotions(pictures[0])) == 9
    assert names.explain(pictures[0])._repr_html_().count("<i ") == 9


def test_vle_answers_as_predict_does(pictures, tmp_path):
    for stage, text in (("vle_vqa", "what is it?"), ("vle_pretrain", "a boat"), ("vle_emotion", None)):
        folder = write_checkpoint(tmp_path / stage, stage)
        vle = EmoScribe.from_pretrained(folder, device="cpu")
        assert isinstance(vle, Vle)
        key = {"vle_vqa": {"question": text}, "vle_pretrain": {"text": text}, "vle_emotion": {}}[stage]
        rows = {row.pop("image"): row for row in predict_vle(folder, pictures[0].parent, **key)}
        found = vle.ask(pictures, text)
        for path, answer in zip(pictures, found, strict=True):
            for name, value in rows[str(path)].items():
                if isinstance(value, float):
                    value = pytest.approx(value, abs=1e-5)
                assert answer[name] == value or name in ("candidates", "scores", "emotion_distribution")
        assert vle.ask(pictures[0], text).keys() == found[0].keys()
    with pytest.raises(UserError, match="vle_vqa: add question="):
        EmoScribe.from_pretrained(tmp_path / "vle_vqa").ask(pictures[0])


def test_the_command_is_run_py(run, tmp_path):
    help_text = subprocess.run([sys.executable, "-m", "emoscribe", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert help_text.returncode == 0 and "python run.py mode=predict" in help_text.stdout
    failed = subprocess.run([sys.executable, "-m", "emoscribe", "predict"], capture_output=True, text=True, cwd=ROOT)
    assert failed.returncode == 2 and "mode=predict needs pretrained_name=" in failed.stderr
    code = "import sys, emoscribe; assert 'torch' not in sys.modules; emoscribe.UserError"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'EmoScrib'"):
        emoscribe.EmoScrib  # noqa: B018
    assert emoscribe.EmoScribe is EmoScribe
