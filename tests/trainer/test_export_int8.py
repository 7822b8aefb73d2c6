"""python -m trainer.export --frozen --int8: weights in 8 bits, and what reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import UserError
from emoscribe import EmoScribe
from model.decoding.int8 import SCALE, Int8Linear, can_multiply
from tests.helpers.tiny import write_pictures, write_run, write_splits
from tests.model.test_packed import WIDE
from trainer.export.__main__ import main
from trainer.runs.checkpoint import find_checkpoint
from trainer.setup.parts import build_parts

pytestmark = pytest.mark.usefixtures("fast_yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    keys = write_splits(tmp_path_factory.mktemp("author"))
    keys |= {f"model.{key.replace('__', '.')}": value for key, value in WIDE.items()}
    return write_run({**keys, "model.vad.enabled": False, "dataset.vad_lexicon": None}, "painter")


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere") / "export"
    assert main([str(run), "--out", str(folder), "--frozen", "--int8"]) == 0
    return folder


def test_the_export_is_small_and_explains_pictures(run, exported, tmp_path, capsys):
    whole = tmp_path / "whole"
    assert main([str(run), "--out", str(whole), "--frozen"]) == 0
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (exported, whole)]
    assert sizes[0] < 0.45 * sizes[1]
    pictures = list(map(str, write_pictures(tmp_path, 3)))
    ours, other = (EmoScribe.from_pretrained(folder) for folder in (exported, whole))
    kinds = {type(module) for module in ours.parts.captioner.modules()}
    assert (Int8Linear in kinds) == can_multiply()
    for found, expected in zip(ours.emotions(pictures), other.emotions(pictures), strict=True):
        assert found == pytest.approx(expected, abs=0.02)
    assert all(one.text for one in ours.explain(pictures))
    assert main([str(exported), "--out", str(tmp_path / "again")]) == 0
    assert "are integers of 8 bits" in (tmp_path / "again/README.md").read_text(), "an export of the export"
    cards = [(folder / "README.md").read_text() for folder in (exported, whole)]
    assert "are integers of 8 bits" in cards[0] and "8 bits" not in cards[1]
    weights = [
        next(line for line in card.splitlines() if line.startswith("`model.safetensors` holds")) for card in cards
    ]
    assert weights[0] == weights[1], "scales are no weights"


def test_a_training_can_start_from_it(run, exported):
    parts = [
        build_parts((found := find_checkpoint(folder, run)).config, checkpoint=found) for folder in (run, exported)
    ]
    assert [part.int8 for part in parts] == [False, True]
    before, after = (dict(part.captioner.named_parameters()) for part in parts)
    assert before.keys() == after.keys() and all(tensor.dtype == torch.float32 for tensor in after.values())
    assert all((after[name] - before[name]).norm() <= 0.02 * before[name].norm() + 1e-6 for name in before)


def test_what_8_bits_change_is_printed(run, tmp_path, capsys):
    assert main([str(run), "--out", str(tmp_path / "export"), "--frozen", "--int8"]) == 0
    assert "8 bits change the tokens of a picture by 0." in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([str(run), "--out", str(tmp_path / "other"), "--int8"])
    assert "--int8 needs --frozen" in capsys.readouterr().err


def test_a_scale_that_does_not_fit_is_damage(exported):
    path = exported / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith(SCALE))
    save_file({**weights, name: weights[name][:-1]}, path)
    (exported / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is damaged \(the scale of .* has another shape\)"):
        EmoScribe.from_pretrained(exported)
