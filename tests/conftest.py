"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported: no test waits for a download

import pytest
import yaml

if TYPE_CHECKING:  # torch and transformers are slow to import, and pytest-xdist's first process runs no test
    from data.text import Template

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every process that a test starts compiles the project again
sys.dont_write_bytecode = False
gc.disable()  # until the tests are collected: a fifth of the time of all imports


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of later garbage collections, and out of what a fork has to copy."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(200_000, 50, 1000)  # three per cent of the time of all tests


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Optional folder of real data (paintings, published caption scores), named by EMOSCRIBE_TEST_DATA."""
    folder = Path(os.environ.get("EMOSCRIBE_TEST_DATA", "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder} (set EMOSCRIBE_TEST_DATA)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def without_fsync():
    """Do not wait for the disk, a tenth of the time; no test cuts the power, and a killed process loses nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="module")
def fast_yaml():
    """Read YAML with libyaml: the same values, several times faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "SafeLoader", yaml.CSafeLoader)
        yield


@pytest.fixture(scope="session", autouse=True)
def without_java():
    """Score captions without Java, whose tokenizer and METEOR take seconds to start."""
    from trainer.metrics import captions

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captions, "find_java", lambda: None)
        yield


@pytest.fixture
def with_java(monkeypatch):
    """Score captions with Java, as outside the tests."""
    from trainer.metrics import captions, java

    monkeypatch.setattr(captions, "find_java", java.find_java)


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Template:
    """The sentence on a small byte-level BPE."""
    from tests.helpers.tiny import make_template

    return make_template(tmp_path_factory.mktemp("tokenizer"))
