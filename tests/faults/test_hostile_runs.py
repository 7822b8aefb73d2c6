"""Runs that somebody made in order to do harm: used or refused in a sentence, and nothing outside them is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from data.cache.feature_cache import MEMO
from tests.helpers.hostile import (
    checkpoint_of,
    composed,
    confined,
    picture_of,
    refusal,
    sent_run,
    time_limit,
    train_keys,
)
from tests.helpers.tiny import go_offline, write_pictures, write_run
from trainer import commands
from trainer.runs.checkpoint import find_checkpoint
from trainer.setup.demo_data import prepare_data
from trainer.setup.from_checkpoint import complete_from_checkpoint


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path) -> None:
    go_offline(monkeypatch, tmp_path / "hub")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return write_run(train_keys(tmp_path_factory.mktemp("trained")), "run")


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return sent_run(trained, tmp_path)


def use(run: Path, trained: Path, **keys: object) -> None:
    """python run.py mode=predict pretrained_name=RUN image=PICTURE"""
    base = {"preset": "none", "pretrained_name": run, "trainer.device": "cpu", "image": picture_of(trained)}
    commands.predict(composed("predict", base | {key.replace("__", "."): value for key, value in keys.items()}))


def changed(run: Path, **values: object) -> None:
    """Values in a run's configuration, by dotted keys with __ for dots."""
    path = checkpoint_of(run) / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    for key, value in values.items():
        *way, last = key.split("__")
        section = tree
        for part in way:
            section = section[part]
        section[last] = value
    path.write_text(yaml.dump(tree))


STRANGE = {
    "model__text__pretrained_name": ("${oc.env:EMOSCRIBE_TEST_SECRET}", "may only name a key"),
    "trainer__exp_name": ("${hydra:runtime.cwd}", "may only name a key"),
    "model__resampler__depth": (10**40, "model.resampler.depth must be"),
    "model__vision__config": ({"width": "wide"}, "open_clip cannot build"),
    "model__vision": ("none", "model.vision"),
    "trainer__test__beam_width": (10**5, "trainer.test.beam_width must be"),
    "trainer__test__best_of": (10**40, "trainer.test.best_of must be"),
    "dataset": (3, "dataset"),
}


@pytest.mark.parametrize("key", STRANGE)
def test_a_run_gives_values_to_keys_and_no_more(run, trained, monkeypatch, key):
    monkeypatch.setenv("EMOSCRIBE_TEST_SECRET", "hidden")
    value, told = STRANGE[key]
    changed(run, **{key: value})
    assert "hidden" not in refusal(lambda: use(run, trained), told, seconds=20)


def test_a_run_opens_no_larger_pictures_than_the_user_would(run, tmp_path):
    changed(run, dataset__max_pixels=10**15)
    config = composed("test", {"preset": "none", "pretrained_name": run})
    found = complete_from_checkpoint(config, find_checkpoint(str(run), tmp_path))
    assert found.dataset.max_pixels == config.dataset.max_pixels < 10**9


@pytest.mark.parametrize(
    ("key", "name"),
    [("model.text.pretrained_name", "evil/repository"), ("model.vision.pretrained_name", "hf-hub:evil/repository")],
)
def test_what_a_run_names_on_the_hub_is_fetched_only_if_the_user_names_it_too(run, trained, key, name):
    changed(run, **{key.replace(".", "__"): name})
    assert f"name it too if you trust its author ({key}={name})" in refusal(lambda: use(run, trained))


def test_a_run_makes_no_feature_cache_elsewhere(run, tmp_path):
    """One that is there is used; a folder that the run's configuration names is not made into one."""
    folder, config = tmp_path / "elsewhere", composed("test", {"preset": "none", "pretrained_name": run})
    folder.mkdir()
    changed(run, dataset__feature_cache=str(folder))
    assert complete_from_checkpoint(config, find_checkpoint(str(run), tmp_path)).dataset.feature_cache is None
    (folder / MEMO).touch()
    assert complete_from_checkpoint(config, find_checkpoint(str(run), tmp_path)).dataset.feature_cache == str(folder)


def test_a_run_paints_no_demo_elsewhere(run, tmp_path):
    changed(run, dataset__name="demo", dataset__root=str(tmp_path / "demo"))
    config = complete_from_checkpoint(
        composed("test", {"preset": "none", "pretrained_name": run}), find_checkpoint(str(run), tmp_path)
    )
    assert "dataset.root=FOLDER" in refusal(lambda: prepare_data(config))
    assert not (tmp_path / "demo").exists()


def test_checksums_are_of_files_beside_them(run, trained, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("/dev/zero", "../../../../../../dev/zero", str(tmp_path / "pipe")):
        (checkpoint_of(run) / "SHA256SUMS").write_text(f"{'0' * 64}  {name}\n")
        assert "no file beside it" in refusal(lambda: use(run, trained))


# --- links that lead out ----------------------------------------------------------------------------------------------


@pytest.fixture
def treasure(tmp_path) -> Path:
    (tmp_path / "treasure").write_text("mine")
    return tmp_path / "treasure"


WRITTEN = (
    "predictions.jsonl.part",
    "predictions.jsonl",
    "predictions.json",
    "report.html",
    "skipped.jsonl",
    "run.lock",
)


@pytest.mark.parametrize("name", [*WRITTEN, ".report.html.{pid}.tmp", ".predictions.json.{pid}.tmp"])
def test_nothing_is_written_through_a_link_in_a_run(run, trained, treasure, name):
    """It is replaced, or told and left as it is."""
    link = run / "predict" / name.format(pid=os.getpid())
    link.parent.mkdir()
    link.symlink_to(treasure)
    try:
        use(run, trained)
        assert (run / "predict" / "report.html").stat().st_size > 1000
    except UserError as error:
        assert str(link) in str(error) and "symbolic link" in str(error)
    assert treasure.read_text() == "mine"


def test_nothing_is_written_into_a_linked_folder(run, trained, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (run / "predict").symlink_to(tmp_path / "elsewhere")
    assert "leads out of" in refusal(lambda: use(run, trained))
    keys = train_keys(tmp_path / "data") | {"trainer.exp_dir": run.parent, "name": "run", "pretrained_name": run}
    keys |= {"resume_pretrained_state": True, "trainer.epochs": 2}
    for name in ("tensorboard", "metrics.jsonl", "checkpoints"):
        aside = (run / name).rename(tmp_path / f"aside {name}")
        (run / name).symlink_to(aside)
        assert "leads out of" in refusal(lambda: commands.train(composed("train", keys)))
        (run / name).unlink()
        aside.rename(run / name)


def test_pictures_outside_a_folder_are_listed_and_not_shown(run, trained, tmp_path):
    inside, outside = write_pictures(tmp_path / "in", 2), write_pictures(tmp_path / "out", 1)
    (tmp_path / "in" / "out.png").symlink_to(outside[0])
    (tmp_path / "in" / "near.png").symlink_to(inside[0])
    use(run, trained, image=tmp_path / "in")
    page = (run / "predict" / "report.html").read_text()
    assert "symbolic link out of the folder" in page and "3 pictures" in page


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "config.yaml", "checkpoints/index.json"])
@pytest.mark.parametrize("what", ["pipe", "brackets", "numbers", "bytes"])
def test_what_a_training_left_beside_its_checkpoints_stops_nothing(run, trained, tmp_path, name, what):
    (run / name).unlink()
    if what == "pipe":
        os.mkfifo(run / name)
    else:
        content = {
            "brackets": b"[" * 10**5,
            "numbers": b'{"step": Infinity, "starts": 1e999}',
            "bytes": bytes(range(256)),
        }
        (run / name).write_bytes(content[what] + b"\n")
    keys = train_keys(trained.parent.parent) | {"trainer.exp_dir": run.parent, "name": "run", "trainer.epochs": 2}
    config = composed("train", keys | {"trainer.resume": "auto"})
    if what == "pipe" and "/" not in name:
        refusal(lambda: commands.train(config), run / name, seconds=20)
    else:
        with time_limit(20):
            commands.train(config)
        assert (run / "checkpoints" / "step-00000002").is_dir()


def test_what_a_run_is_used_for_is_written_into_its_folder(run, trained):
    with confined(run) as noticed:
        use(run, trained)
    assert not noticed and (run / "predict" / "report.html").is_file()
