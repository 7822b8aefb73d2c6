"""Runs with randomly damaged files: each is used or refused with a clear message; nothing outside is written."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.helpers.damage import BYTES, Account, Damage, changed_head, changed_json, changed_yaml, flipped, other_values
from tests.helpers.hostile import checkpoint_of, composed, snapshot, train_keys
from tests.helpers.tiny import go_offline, write_run
from trainer import commands


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path) -> None:
    go_offline(monkeypatch, tmp_path / "hub")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(train_keys(tmp_path_factory.mktemp("fuzz")), "run")


DAMAGES: dict[str, tuple[Damage, ...]] = {
    "model.safetensors": (*BYTES, *[changed_head] * 3),
    "checkpoint.json": (*BYTES, *[changed_json] * 5),
    "tokenizer.json": (*BYTES, *[changed_json] * 5),
    "config.yaml": (*BYTES, *[changed_yaml] * 8, *[other_values] * 12),
    "SHA256SUMS": BYTES,
    "../index.json": (flipped, changed_json),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_runs(run, name):
    """Damage one file at a time; most cases have no checksums, which an attacker could have recomputed."""
    folder, root, account = checkpoint_of(run), run.parent.parent, Account(run)
    keys = {"preset": "none", "pretrained_name": run, "trainer.device": "cpu", "trainer.exp_dir": run.parent}
    keys |= {"image": root / "test" / "images" / "Style" / "picture-000.png", "trainer.overwrite": True}
    config, sums, path = composed("predict", keys), (folder / "SHA256SUMS").read_bytes(), folder / name
    whole, damages = path.read_bytes(), DAMAGES[name]
    outside = {path: info for path, info in snapshot(root).items() if not path.is_relative_to(run)}
    for seed, damage in enumerate(damages):
        if name != "SHA256SUMS" and seed % 10:
            (folder / "SHA256SUMS").unlink()
        path.write_bytes(damage(whole, random.Random(f"{name}/{seed}")))
        account.read(f"{name} {damage.__name__} {seed}", lambda: commands.predict(config.copy()))
        path.write_bytes(whole)
        (folder / "SHA256SUMS").write_bytes(sums)
    account.close(cases=len(damages), refused=0.0 if name == "../index.json" else 0.3)
    assert {path: info for path, info in snapshot(root).items() if not path.is_relative_to(run)} == outside


def test_damaged_training_states(run, tmp_path):
    root, account = run.parent.parent, Account(tmp_path)
    keys = train_keys(root) | {"trainer.epochs": 2, "pretrained_name": run, "resume_pretrained_state": True}
    config = composed("train", {**keys, "name": "on", "trainer.exp_dir": tmp_path, "trainer.overwrite": True})
    path = checkpoint_of(run) / "training.pt"
    whole, sums = path.read_bytes(), (path.parent / "SHA256SUMS").read_bytes()
    (path.parent / "SHA256SUMS").unlink()
    for seed, damage in enumerate(BYTES * 2):
        path.write_bytes(damage(whole, random.Random(f"training/{seed}")))
        account.read(f"training.pt {seed}", lambda: commands.train(config.copy()))
    path.write_bytes(whole)
    (path.parent / "SHA256SUMS").write_bytes(sums)
    account.close(cases=8, refused=0.4)
