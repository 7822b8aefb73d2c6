"""python -m trainer.export --onnx: image encoder, mapper and resampler for onnxruntime."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from common.errors import UserError
from data.images import build_transform
from tests.helpers.tiny import ROOT, make_captioner, write_pictures, write_run, write_splits
from trainer.export import bridge
from trainer.export.__main__ import main
from trainer.export.bridge import Bridge, read_pictures, require_packages, write_bridge
from trainer.export.export import _build
from trainer.runs.checkpoint import find_checkpoint
from trainer.runs.retention import find_damage

pytestmark = pytest.mark.usefixtures("fast_yaml")


@pytest.fixture(scope="module", autouse=True)
def onnx():
    for name in bridge.PACKAGES:
        pytest.importorskip(name, reason="pip install onnx onnxruntime onnxscript")


def settings(folder: Path | None = None, *, name: str = "artemis"):
    place = {"visual_dir": folder and str(folder)}
    return OmegaConf.create({"dataset": {"name": name, "max_pixels": 10**6, "validation_ds": place}})


def test_the_lines_of_the_documentation_give_what_torch_gives(tmp_path, monkeypatch, capsys):
    run = write_run({**write_splits(tmp_path), "model.vad.enabled": False, "dataset.vad_lexicon": None}, "painter")
    assert main([str(run), "--out", str(tmp_path / "export"), "--onnx"]) == 0
    assert "bridge.onnx: 4 pictures, largest difference to torch" in capsys.readouterr().err
    assert find_damage(tmp_path / "export") is None
    assert "`bridge.onnx` holds image encoder" in (tmp_path / "export/README.md").read_text()
    (picture,) = write_pictures(tmp_path, 1, size=48)
    Image.open(picture).resize((71, 48)).save(tmp_path / "painting.jpg")
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(re.search(r"```python\n(import json.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)[1], found)
    checkpoint = find_checkpoint(run, tmp_path)
    captioner = _build(checkpoint.config, checkpoint).captioner
    frames = build_transform(captioner.vision.preprocess)(Image.open("painting.jpg"))[None, None]
    with torch.no_grad():
        seen = captioner.look(frames, torch.ones(1, 1, dtype=torch.bool))
        expected = {"tokens": captioner.encode(frames), **seen.bridge}
    for name in ("tokens", "prefix", "latents"):
        torch.testing.assert_close(
            torch.from_numpy(found[name]), expected[name].view(found[name].shape), atol=1e-4, rtol=0
        )


def test_other_results_than_torchs_are_refused(template, tmp_path, monkeypatch):
    write_pictures(tmp_path / "pictures", 3)
    captioner = make_captioner(template, enable_mapper=False, vision__config__layers=1, resampler__depth=1)
    monkeypatch.setattr(bridge, "TOLERANCE", 0.0)
    with pytest.raises(
        UserError, match=r"onnxruntime and torch differ by more than .*tokens .*latents .*: leave out --onnx"
    ):
        write_bridge(tmp_path, captioner, settings(tmp_path / "pictures"), None)
    assert Bridge(captioner).outputs == ["tokens", "latents"]


def test_pictures_that_are_missing_or_damaged_are_named(template, tmp_path):
    captioner = make_captioner(template)
    with pytest.raises(UserError, match=r"there is no None: add --pictures FOLDER"):
        read_pictures(settings(), captioner, None)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=rf"none of the pictures in {tmp_path} could be read"):
        read_pictures(settings(tmp_path), captioner, None)
    write_pictures(tmp_path, 10)
    assert len(read_pictures(settings(), captioner, str(tmp_path))) == bridge.CHECKED


def test_videos_and_missing_packages(template, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"reads videos"):
        write_bridge(tmp_path, make_captioner(template), settings(name="mlslt"), None)
    monkeypatch.setattr(bridge, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(UserError, match=r"--onnx needs no_such_package, .*: pip install onnx no_such_package"):
        require_packages()
    with pytest.raises(SystemExit):
        main(["run", "--out", str(tmp_path / "x"), "--pictures", "p"])
    assert "--pictures needs --onnx" in capsys.readouterr().err
