"""Malicious runs: used or refused with a clear message, and nothing outside them is changed."""

from __future__ import annotations

import os
import platform
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
from trainer.setup.demo_data import prepare_demo
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


def change(run: Path, **values: object) -> None:
    """Change a run's configuration, by keys with __ for dots."""
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
def test_interpolations_and_invalid_values_are_refused(run, trained, monkeypatch, key):
    monkeypatch.setenv("EMOSCRIBE_TEST_SECRET", "hidden")
    value, message = STRANGE[key]
    change(run, **{key: value})
    assert "hidden" not in refusal(lambda: use(run, trained), message, seconds=60)


def test_a_run_cannot_raise_max_pixels(run, tmp_path):
    change(run, dataset__max_pixels=10**15)
    config = composed("test", {"preset": "none", "pretrained_name": run})
    found = complete_from_checkpoint(config, find_checkpoint(str(run), tmp_path))
    assert found.dataset.max_pixels == config.dataset.max_pixels < 10**9


def test_a_run_cannot_follow_links(run, tmp_path):
    change(run, dataset__follow_links=True)
    config = composed("test", {"preset": "none", "pretrained_name": run})
    assert complete_from_checkpoint(config, find_checkpoint(str(run), tmp_path)).dataset.follow_links is False


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.text.pretrained_name", "evil/repository"),
        *(("model.vision.pretrained_name", f"{where}evil/repository") for where in ("hf-hub:", "timm/hf-hub:", "")),
    ],
)
def test_a_repository_is_downloaded_only_if_the_user_names_it_too(run, trained, key, name):
    change(run, **{key.replace(".", "__"): name})
    assert f"name it too if you trust its author ({key}={name})" in refusal(lambda: use(run, trained))


def test_a_run_cannot_create_a_feature_cache(run, tmp_path):
    """An existing cache is used; another folder is not turned into one."""
    folder, config = tmp_path / "elsewhere", composed("test", {"preset": "none", "pretrained_name": run})
    folder.mkdir()
    change(run, dataset__feature_cache=str(folder))
    assert complete_from_checkpoint(config, find_checkpoint(str(run), tmp_path)).dataset.feature_cache is None
    (folder / MEMO).touch()
    assert complete_from_checkpoint(config, find_checkpoint(str(run), tmp_path)).dataset.feature_cache == str(folder)


def test_a_run_cannot_select_the_folder_of_the_demo(run, tmp_path):
    change(run, dataset__name="demo", dataset__root=str(tmp_path / "demo"))
    config = complete_from_checkpoint(
        composed("test", {"preset": "none", "pretrained_name": run}), find_checkpoint(str(run), tmp_path)
    )
    assert "dataset.root=FOLDER" in refusal(lambda: prepare_demo(config))
    assert not (tmp_path / "demo").exists()


def test_checksums_of_other_files_are_refused(run, trained, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("/dev/zero", "../../../../../../dev/zero", str(tmp_path / "pipe")):
        (checkpoint_of(run) / "SHA256SUMS").write_text(f"{'0' * 64}  {name}\n")
        assert "which is not a file name" in refusal(lambda: use(run, trained))


# --- links out of the run ---------------------------------------------------------------------------------------------


@pytest.fixture
def private(tmp_path) -> Path:
    (tmp_path / "private").write_text("mine")
    return tmp_path / "private"


WRITTEN = (
    "predictions.jsonl.part",
    "predictions.jsonl",
    "predictions.json",
    "report.html",
    "skipped.jsonl",
    "run.lock",
)


@pytest.mark.parametrize("name", [*WRITTEN, ".report.html.{host}.{pid}.tmp", ".predictions.json.{host}.{pid}.tmp"])
def test_nothing_is_written_through_a_link_in_a_run(run, trained, private, name):
    """The link is replaced, or reported and left unchanged."""
    link = run / "predict" / name.format(host=platform.node(), pid=os.getpid())
    link.parent.mkdir()
    link.symlink_to(private)
    try:
        use(run, trained)
        assert (run / "predict" / "report.html").stat().st_size > 1000
    except UserError as error:
        assert str(link) in str(error) and "symbolic link" in str(error)
    assert private.read_text() == "mine"


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


def test_images_outside_the_folder_are_listed_but_not_opened(run, trained, tmp_path):
    inside, outside = write_pictures(tmp_path / "in", 2), write_pictures(tmp_path / "out", 1)
    (tmp_path / "in" / "out.png").symlink_to(outside[0])
    (tmp_path / "in" / "near.png").symlink_to(inside[0])
    use(run, trained, image=tmp_path / "in")
    page = (run / "predict" / "report.html").read_text()
    assert "symbolic link out of the folder" in page and "3 pictures" in page


RECORDS = ("run.json", "metrics.jsonl", "config.yaml")  # next to the checkpoints
INDEX = "checkpoints/index.json"
DAMAGE = {"brackets": b"[" * 10**5, "numbers": b'{"step": Infinity, "starts": 1e999}', "bytes": bytes(range(256))}


def resume(run: Path, trained: Path) -> None:
    keys = train_keys(trained.parent.parent) | {"trainer.exp_dir": run.parent, "name": "run", "trainer.epochs": 2}
    commands.train(composed("train", keys | {"trainer.resume": "auto"}))


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_records_do_not_prevent_a_resume(run, trained, what):
    for name in (*RECORDS, INDEX):
        (run / name).write_bytes(DAMAGE[what] + b"\n")
    with time_limit(200):
        resume(run, trained)
    assert (run / "checkpoints" / "step-00000002").is_dir()


def test_pipes_are_refused_and_a_pipe_as_index_is_ignored(run, trained):
    for name in RECORDS:
        content = (run / name).read_bytes()
        (run / name).unlink()
        os.mkfifo(run / name)
        refusal(lambda: resume(run, trained), run / name, seconds=60)
        (run / name).unlink()
        (run / name).write_bytes(content)
    (run / INDEX).unlink()
    os.mkfifo(run / INDEX)
    with time_limit(200):
        resume(run, trained)
    assert (run / "checkpoints" / "step-00000002").is_dir()


@pytest.mark.parametrize("name", [*RECORDS, INDEX, "skipped.jsonl", "checkpoints", "tensorboard"])
def test_folder_in_the_place_of_a_file_is_named(run, trained, name):
    path, folder = run / name, name in ("checkpoints", "tensorboard")
    path.rename(run / "aside") if path.exists() else None
    path.touch() if folder else path.mkdir()
    said = refusal(lambda: resume(run, trained), path, seconds=60)
    assert said == f"{path} is not a {'folder' if folder else 'file'} and cannot be written: remove it"


def test_outputs_are_written_into_the_run(run, trained):
    with confined(run) as noticed:
        use(run, trained)
    assert not noticed and (run / "predict" / "report.html").is_file()
