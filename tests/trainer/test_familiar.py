"""Pictures unlike those of the training are found, marked and reported by mode=predict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from common.errors import UserError
from data.image_files import find_images
from tests.helpers.tiny import run_mode, write_run, write_splits
from trainer.prediction.familiar import FILE, Familiar, describe, pixel_statistics, read_familiar
from trainer.report.predictions_table import unfamiliar_warning
from trainer.runs.retention import SUMS, entries, find_damage, write_sums


def values(count: int, *, seed: int, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=generator) + shift, torch.randn(count, 6, generator=generator)


def test_few_of_the_same_kind_and_all_of_another_are_unlike():
    familiar = Familiar.fit(*values(500, seed=0))
    assert sum(familiar.unlike(*values(1000, seed=1))) < 30
    assert sum(familiar.unlike(*values(100, seed=2, shift=8))) > 95


def test_statistics_are_finite_without_any_contrast():
    found = pixel_statistics(torch.zeros(2, 3, 32, 32))
    assert found.shape == (2, 24) and found.isfinite().all()


def test_padding_frames_of_a_video_have_no_effect():
    frames = torch.rand(2, 3, 3, 16, 16)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    other = frames.clone()
    other[0, 2] = 7.0
    means = torch.zeros(2, 5)
    assert torch.equal(describe(frames, mask, means)[0], describe(other, mask, means)[0])


@pytest.mark.parametrize(
    ("marked", "text"),
    [
        ("", None),
        ("b", "warning: 1 of 3 pictures is unlike those that the network was trained on (b.png): its"),
        ("bc", "warning: 2 of 3 pictures are unlike those that the network was trained on (the first: b.png): their"),
    ],
)
def test_the_warning_has_the_count_and_the_first_file(marked, text):
    rows = [{"image": f"/x/{name}.png", **({"unfamiliar": True} if name in marked else {})} for name in "abc"]
    found = unfamiliar_warning(rows)
    assert found == (text and f"{text} emotions and explanations are guesses")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[dict, Path]:
    keys = write_splits(tmp_path_factory.mktemp("familiar"), train=120)
    return keys, write_run(keys, "run")


def test_predict_marks_unlike_pictures_and_warns(trained, tmp_path, capsys):
    keys, run = trained
    folder = tmp_path / "pictures"
    folder.mkdir()
    own = find_images(keys["dataset.train_ds.visual_dir"]).images[:5]
    for path in own:
        (folder / path.name).write_bytes(path.read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    run_mode("predict", {"pretrained_name": run, "image": folder, "trainer.exp_dir": tmp_path, "name": "p"})
    rows = json.loads((tmp_path / "p/predict/predictions.json").read_text())
    assert {Path(row["image"]).name for row in rows if row.get("unfamiliar")} == {"noise.png"}
    assert "1 of 6 pictures is unlike those that the network was trained on (noise.png)" in capsys.readouterr().err
    assert (tmp_path / "p/predict/report.html").read_text().count("Unlike the pictures that the network was") == 1


def test_the_best_checkpoint_holds_the_training_pictures(trained):
    keys, run = trained
    (holder,) = [entry.folder for entry in entries(run / "checkpoints") if (entry.folder / FILE).exists()]
    assert find_damage(holder) is None and FILE in (holder / SUMS).read_text()
    before = {path.name: path.read_bytes() for path in holder.iterdir()}
    assert load_file(holder / FILE)["pictures"].shape == (120, 24 + 32)
    run_mode("train", {**keys, "name": "run", "trainer.resume": "auto"})
    assert {path.name: path.read_bytes() for path in holder.iterdir()} == before
    (holder / FILE).unlink()
    write_sums(holder)  # as if killed before it was written
    run_mode("train", {**keys, "name": "run", "trainer.resume": "auto"})
    assert {path.name: path.read_bytes() for path in holder.iterdir()} == before, "written again, equal to the bit"


def test_a_checkpoint_without_the_file_gives_none_and_a_foreign_one_an_error(tmp_path):
    assert read_familiar(tmp_path, dim=32) is None
    save_file(vars(Familiar.fit(torch.rand(9, 24), torch.rand(9, 16))), tmp_path / FILE)
    assert read_familiar(tmp_path, dim=16) is not None
    with pytest.raises(UserError, match="belongs to another network"):
        read_familiar(tmp_path, dim=32)
    save_file({"pictures": torch.zeros(2, 2)}, tmp_path / FILE)
    with pytest.raises(UserError, match="belongs to another network"):
        read_familiar(tmp_path, dim=32)
