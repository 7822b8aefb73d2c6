"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data.text import Template
from tests.helpers.tiny import make_template


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Optional folder of real data (paintings, published caption scores), named by EMOSCRIBE_TEST_DATA."""
    folder = Path(os.environ.get("EMOSCRIBE_TEST_DATA", "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder} (set EMOSCRIBE_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Template:
    """The sentence on a small byte-level BPE."""
    return make_template(tmp_path_factory.mktemp("tokenizer"))
