"""python -m benchmarks.real: folds, inputs that cannot be used, and a whole run with tiny networks."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from benchmarks import real
from benchmarks.real_data import SPLITS, folds, package_file
from common.errors import UserError
from data.emotions import EMOTIONS
from tests.helpers.tiny import arguments, run_mode, sentences, write_pictures, write_splits

CUT = (
    "dataset.train_ds",
    "dataset.validation_ds",
    "dataset.test_ds",
    "trainer.exp_dir",
    "preset",
    "dataset.vad_lexicon",
)


def entries(count: int) -> dict[str, dict]:
    return {str(i): {"image_name": f"{'Realism' if i % 3 else 'Cubism'}/painting-{i}.jpg"} for i in range(count)}


@pytest.mark.parametrize("seed", [1, 2])
def test_every_painting_is_tested_once_and_in_one_split_of_a_fold(seed: int) -> None:
    given = entries(43)
    found = folds(given, 5, seed=seed)
    assert sorted(id for fold in found for id in fold["test"]) == sorted(given)
    for fold in found:
        assert sorted(id for split in SPLITS for id in fold[split]) == sorted(given)
        assert [len(fold[split]) for split in SPLITS[1:]] in ([4, 8], [5, 8], [4, 9], [5, 9])
        cubism = sum(given[id]["image_name"].startswith("Cubism") for id in fold["test"])
        assert cubism in (2, 3, 4)


def test_folds_depend_on_the_seed_alone() -> None:
    given = entries(40)
    again = dict(reversed(given.items()))
    assert folds(given, 4, seed=1) == folds(again, 4, seed=1) != folds(given, 4, seed=2)


def test_an_absent_package_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(UserError, match=r"package no-such-package is not installed; run: pip install") as error:
        package_file("no-such-package", ".gguf")
    assert "\n" not in str(error.value)


@pytest.fixture
def given(tmp_path: Path) -> tuple[dict[str, Path], list[str]]:
    """Return folder of pictures and CSV of their annotations, and the keys of tiny networks."""
    write_pictures(tmp_path / "wikiart" / "Realism", 18)
    for path in (tmp_path / "wikiart" / "Realism").iterdir():
        path.rename(path.with_suffix(".jpg"))
    with (tmp_path / "texts.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("art_style", "painting", "emotion", "utterance"))
        for i in range(18):
            texts = [f"{text} and the tiny boat" for text in sentences(3, seed=i)]
            for text, emotion in zip(texts, (i % 9, i % 9, (i + 4) % 9), strict=True):
                rows.writerow(("Realism", f"picture-{i:03d}", EMOTIONS[emotion], text))
    keys = {key: v for key, v in write_splits(tmp_path, train=1, val=1, test=1).items() if not key.startswith(CUT)}
    keys |= {"model.vision.architecture": None, "trainer.test.match_images": 4, "trainer.test.metrics": "[bleu,cider]"}
    return {"pictures": tmp_path / "wikiart", "annotations": tmp_path / "texts.csv"}, arguments(keys)


def run(files: dict[str, Path], out: Path, *more: str) -> int:
    return real.main([*(f"--{name}={path}" for name, path in files.items()), f"--out={out}", *more])


def test_inputs_that_cannot_be_used(given, tmp_path: Path, capsys) -> None:
    files, keys = given
    missing = tmp_path / "missing"
    for wrong, more, message in (
        ({"pictures": missing}, (), f"error: {missing}: there is no such folder of pictures"),
        ({"annotations": missing}, (), f"error: the annotations {missing} cannot be read"),
        ({}, ("--fold=5",), "error: --fold counts from 0 to one less than --folds 5"),
        ({}, ("--folds=90",), "error: 18 annotated paintings do not make 90 folds"),
        ({}, ("--variants=no_fusion",), "error: --variants no_fusion needs --lexicon FILE"),
    ):
        assert run({**files, **wrong}, tmp_path / "out", *keys, *more) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert len(errors) == 1
        assert errors[0].startswith(message)


def in_this_process(*overrides: str) -> None:
    keys = dict(override.split("=", 1) for override in overrides)
    run_mode(keys.pop("mode"), keys)


def test_pooled_scores_are_those_of_all_paintings(given, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(real, "run_command", in_this_process)
    files, keys = given
    out = tmp_path / "out"
    options = (*keys, "--folds=2", "--samples=3", "expert.student.epochs=2")
    assert run(files, out, *options) == 0
    assert run(files, out, *options) == 0  # finished runs are not repeated
    assert capsys.readouterr().err.count("training and testing") == 4
    lines = [path.read_text(encoding="utf-8").splitlines() for path in out.glob("runs/full-?/test/predictions.jsonl")]
    rows = [json.loads(line) for of_fold in lines for line in of_fold]
    assert len(rows) == len({row["id"] for row in rows}) == 18
    right = sum(row["emotion"] == EMOTIONS[row["histogram"].index(max(row["histogram"]))] for row in rows)
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["variants"]["full"]["emotion"]["accuracy"] == pytest.approx(right / 18)
    assert results["variants"]["full"]["baselines"]["systems"]["nearest"]["images"] == 18
    assert results["probe"]["emotion"]["count"] == 18
    table = (out / "table.md").read_text(encoding="utf-8")
    assert f"| the network | {right / 18:.3f} [" in table
    assert len((out / "ten.md").read_text(encoding="utf-8").splitlines()) == 2 + 3
    for fold in (0, 1):
        shutil.copytree(out / "runs" / f"full-{fold}", out / "runs" / f"no_mapper-{fold}")
    assert run(files, out, *options, "--variants=full,no_mapper") == 0
    differences = (out / "table.md").read_text(encoding="utf-8").split("| minus full |")[1]
    assert "| no_mapper | +0.000 [0.000, 0.000] | +0.000 [0.000, 0.000]" in differences
    assert run(files, out, *options, "seed=7") == 2
    assert "has runs with other keys; give another --out" in capsys.readouterr().err
