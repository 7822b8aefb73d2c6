"""Offline mode is switched on quickly if the hub is unreachable."""

from __future__ import annotations

import os
import socket
import time

import pytest

from common.hub import SECONDS, offline_if_unreachable


@pytest.fixture(autouse=True)
def unsettled(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
        monkeypatch.delenv(name)


@pytest.fixture
def hub():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_reachable_hub_is_used(monkeypatch, hub):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub}")
    offline_if_unreachable()
    assert "HF_HUB_OFFLINE" not in os.environ


def test_unreachable_hub_switches_to_offline_mode(monkeypatch, hub):
    with socket.socket() as closed:  # bound but not listening: refuses connections
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        start = time.monotonic()
        offline_if_unreachable()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert time.monotonic() - start < SECONDS + 20


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "HTTPS_PROXY"])
def test_settings_of_the_user_are_kept(monkeypatch, name):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(name, "0")
    offline_if_unreachable()
    assert os.environ[name] == "0" and (name == "HF_HUB_OFFLINE" or "HF_HUB_OFFLINE" not in os.environ)
