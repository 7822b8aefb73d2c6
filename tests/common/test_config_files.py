"""Configuration files of users and of runs can only set keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from common.config.check import ROOT, check_config, check_overrides
from common.config.files import load_file, load_stored
from common.errors import UserError
from tests.helpers.hostile import time_limit

SECRET = "the value of a variable"


@pytest.fixture(autouse=True)
def secret(monkeypatch) -> None:
    monkeypatch.setenv("EMOSCRIBE_TEST_SECRET", SECRET)


def write(folder: Path, text: str) -> Path:
    (folder / "c.yaml").write_text(text, encoding="utf-8")
    return folder / "c.yaml"


def error_message(read, path: Path) -> str:
    with time_limit(10), pytest.raises(UserError) as caught:
        read(path)
    assert str(path) in str(caught.value) and SECRET not in str(caught.value)
    return str(caught.value)


def load_own(path: Path) -> DictConfig | None:
    return load_file(str(path.parent), path.name)[0]


# --- both kinds of files


@pytest.mark.parametrize("read", [load_own, load_stored])
@pytest.mark.parametrize(
    "text",
    [
        "name: ${oc.env:EMOSCRIBE_TEST_SECRET}",
        "model: {text: {pretrained_name: '${oc.env:EMOSCRIBE_TEST_SECRET}'}}",
        "model: {vision: {config: {width: '${oc.env:EMOSCRIBE_TEST_SECRET}'}}}",
        "dataset: {sign_languages: ['${oc.env:EMOSCRIBE_TEST_SECRET,en}']}",
        "name: ${oc.decode:'${oc.env:EMOSCRIBE_TEST_SECRET}'}",
        "name: ${hydra:runtime.cwd}",
        "name: ${${name}}",
        "name: '${'",
        "seed: !!python/object/apply:os.getpid []",
        "model: &m {mapper: *m}",
        "model: [" * 300,
        "- 1",
        "1: 2\nnull: 3",
        "name: \udcff".encode("utf-8", "surrogateescape").decode("latin-1") + "\0",
    ],
    ids=lambda text: ascii(text[:40]),
)
def test_resolvers_and_tags_are_rejected(tmp_path, read, text):
    error_message(read, write(tmp_path, text))


# --- files of users


def test_references_to_keys(tmp_path):
    text = "name: mine_${seed}\ndataset: {root: art, train_ds: {json_path: '${dataset.root}/a.json'}}"
    content = load_own(write(tmp_path, text))
    with initialize_config_dir(config_dir=str(ROOT), version_base="1.3"):
        config = OmegaConf.merge(compose("config", overrides=check_overrides(["preset=none", "mode=predict"])), content)
    config.pretrained_name = config.image = "x"
    check_config(config)
    assert config.trainer.exp_name == "mine_2021" and config.dataset.train_ds.json_path == "art/a.json"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name: ${dataset.root}\ndataset: {root: '${trainer.exp_dir}'}", "which refers to another key"),
        ("name: ${name}", "which refers to another key"),
        ("name: ${nothing.there}", "unknown key 'nothing.there'"),
        ("name: ${dataset}", "dataset is a group of keys"),
    ],
)
def test_references_to_references_are_rejected(tmp_path, text, reason):
    assert reason in error_message(load_own, write(tmp_path, text))


def test_thousands_of_unknown_keys_are_rejected_quickly(tmp_path):
    text = "".join(f"{'key' * 10}{i}: 1\n" for i in range(3000)) + f"? {'k' * 5000}\n: 1\n"
    assert error_message(load_own, write(tmp_path, text)).count("\n") < 20


# --- files of runs


def test_stored_configuration_loses_unknown_keys(tmp_path):
    text = "name: x\nmodel: {mapper: {depth: 3, colour: red}, vision: {config: {width: 8}}}\ndataset: {}\nnew: {a: 1}"
    found = load_stored(write(tmp_path, f"{text}\ntrainer: {{exp_name: '${{name}}'}}"))
    expected = {"name": "x", "model": {"mapper": {"depth": 3}, "vision": {"config": {"width": 8}}}, "dataset": {}}
    expected |= {"trainer": {"exp_name": "x"}}
    assert OmegaConf.to_container(found) == expected


def test_stored_configuration_round_trip(tmp_path):
    with initialize_config_dir(config_dir=str(ROOT), version_base="1.3"):
        config = compose("config", overrides=check_overrides(["preset=demo", "model.vision.config={width: 8}"]))
    check_config(config)
    OmegaConf.save(config, tmp_path / "c.yaml")
    assert load_stored(tmp_path / "c.yaml") == config


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model: {mapper: {depth: many}}", "model.mapper.depth must be a whole number"),
        ("model: {mapper: {depth: -1}}", "model.mapper.depth must be a whole number"),
        ("model: {mapper: 3}", "model.mapper is a group of keys"),
        ("trainer: {test: {metrics: [magic]}}", "trainer.test.metrics must be"),
        ("dataset: {name: artemis\n  root: x}", "cannot be read as YAML"),
        (f"seed: '{'9' * 5000}'", "seed must be"),
        ("seed: ???", "seed is left open"),
    ],
)
def test_invalid_stored_values(tmp_path, text, reason):
    message = error_message(load_stored, write(tmp_path, text))
    assert reason in message and len(message) < 600
