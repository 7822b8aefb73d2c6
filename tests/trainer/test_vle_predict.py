"""mode=predict with checkpoints of VLE's stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from common.errors import UserError
from common.reading import ROOT
from data.emotions import EMOTIONS
from model.vle.heads import EMOTION_QUESTION, VLEForEmotion, VLEForITM, VLEForPBC, VLEForPreTraining, VLEForVQA
from model.vle.processor import VLEProcessor
from tests.helpers.tiny import run_mode
from tests.helpers.vle import tiny_model, write_processor
from trainer.runs.state import TrainState

KINDS = {
    "vle_vqa": VLEForVQA, "vle_itm": VLEForITM, "vle_pbc": VLEForPBC, "vle_pretrain": VLEForPreTraining,
    "vle_emotion": VLEForEmotion, "vle_vcr": VLEForITM,
}  # fmt: skip


def write_checkpoint(folder: Path, stage: str, **info: object) -> Path:
    """Write a checkpoint of the stage with random weights; return its folder."""
    processor = VLEProcessor.from_pretrained(write_processor(folder))
    processor.save_pretrained(folder)
    labels = {"id2label": [*EMOTIONS]} if stage == "vle_emotion" else {}
    tiny_model(KINDS[stage], **labels).save_pretrained(folder)
    config = OmegaConf.load(ROOT / "config.yaml")
    own = {key: config[key] for key in ("seed", "model", "dataset", "trainer", "vle", "expert")}
    OmegaConf.save(OmegaConf.create({**own, "name": "x", "stage": stage}), folder / "config.yaml")
    (folder / "checkpoint.json").write_text(json.dumps({"state": TrainState().as_dict(), **info}))
    return folder


def predict(folder: Path, pictures: Path, **keys: object) -> list[dict]:
    run_mode(
        "predict", {"preset": "none", "pretrained_name": folder, "image": pictures, "trainer.device": "cpu", **keys}
    )
    return json.loads((folder / "predict/predictions.json").read_text())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for color in ("red", "green", "blue"):
        Image.new("RGB", (60, 40), color).save(folder / f"{color}.png")
    return folder


def test_matches_and_regions(pictures, tmp_path, capsys):
    rows = {}
    for stage in ("vle_itm", "vle_pbc", "vle_pretrain"):
        rows[stage] = predict(write_checkpoint(tmp_path / stage, stage), pictures, text="a boat")
        page = (tmp_path / stage / "predict/report.html").read_text()
        assert page.count("a boat") >= 3 and ("data:image/png;base64" in page) is (stage != "vle_itm")
    assert [set(some[0]) for some in rows.values()] == [
        {"image", "text", "score"}, {"image", "text", "scores"}, {"image", "text", "score", "scores"}
    ]  # fmt: skip
    assert len(rows["vle_pbc"][0]["scores"]) == 16 and len({row["score"] for row in rows["vle_itm"]}) == 3
    assert "match " in capsys.readouterr().out


@pytest.mark.parametrize("text", [None, "it is calm"])
def test_emotions_are_calibrated(pictures, tmp_path, text):
    folder = write_checkpoint(tmp_path / "x", "vle_emotion", emotion_temperature=2.0)
    rows = predict(folder, pictures, text=f"'{text}'" if text else None)
    network = VLEForEmotion.from_pretrained(folder)
    inputs = VLEProcessor.from_pretrained(folder)(
        [text or EMOTION_QUESTION], [Image.open(rows[0]["image"])], return_tensors="pt"
    )
    with torch.no_grad():
        expected = (network(**inputs).logits[0] / 2).softmax(dim=-1)
    torch.testing.assert_close(torch.tensor(rows[0]["emotion_distribution"]), expected, atol=1e-5, rtol=0)
    assert rows[0]["emotion"] == EMOTIONS[expected.argmax()]
    assert f"{rows[0]['emotion']} {expected.max():.0%}" in (folder / "predict/report.html").read_text()


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("vle_vqa", 'add question="What is in the picture\\?"'),
        ("vle_pbc", 'add text="a boat"'),
        ("vle_vcr", "use mode=test"),
    ],
)
def test_missing_keys(pictures, tmp_path, stage, words):
    with pytest.raises(UserError, match=words):
        predict(write_checkpoint(tmp_path / "x", stage), pictures)


def test_language_model_needs_answers_of_vqa(pictures, tmp_path):
    with pytest.raises(UserError, match=r"vle\.llm\.style=long needs a run of stage=vle_vqa, not vle_itm"):
        folder = write_checkpoint(tmp_path / "x", "vle_itm")
        predict(folder, pictures, text="a boat", **{"vle.llm.style": "long", "vle.llm.model": "m"})
