"""An export is uploaded to the hub, here a stand-in, and used from there by hf-hub:ORG/NAME."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import UserError
from tests.helpers.local_hub import COMMIT, local_hub
from tests.helpers.tiny import go_offline, run_mode, write_pictures, write_run, write_splits
from trainer.export.__main__ import main
from trainer.runs.checkpoint import find_checkpoint

pytestmark = pytest.mark.usefixtures("fast_yaml")

NAME = "hf-hub:org/painter"


@pytest.fixture(autouse=True)
def no_search_for_the_hub(monkeypatch):
    monkeypatch.setattr("trainer.export.__main__.offline_if_unreachable", lambda: None)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def run(root) -> Path:
    keys = {**write_splits(root), "model.contrastive.enabled": False, "dataset.vad_lexicon": None}
    return write_run({**keys, "trainer.limit_train_batches": 1, "trainer.limit_val_batches": 1}, "painter")


@pytest.fixture
def hub(tmp_path):
    with local_hub(tmp_path / "cache") as hub:
        yield hub


def push(run: Path, out: Path, *options: str) -> int:
    return main([str(run), "--out", str(out), "--push", "org/painter", *options])


def test_round_trip(run, hub, tmp_path, monkeypatch):
    hub.files = {"student.safetensors": b"of an earlier export", ".gitattributes": b"", "pytorch_model.bin": b"code"}
    assert push(run, tmp_path / "export", "--private") == 0
    assert hub.files.keys() == {path.name for path in (tmp_path / "export").iterdir()} | {
        *(".gitattributes", "pytorch_model.bin"),
    }
    card = hub.files["README.md"].decode()
    assert f'EmoScribe.from_pretrained("{NAME}")' in card and f"pretrained_name={NAME} " in card
    checkpoint = find_checkpoint(NAME, tmp_path / "runs")
    assert checkpoint.repository == "org/painter" and checkpoint.folder.name == COMMIT
    names = {path.name for path in checkpoint.folder.iterdir()}
    assert "model.safetensors" in names and not names & {"pytorch_model.bin", "README.md"}
    write_pictures(tmp_path / "pictures", 2)
    monkeypatch.chdir(tmp_path)
    run_mode("predict", {"pretrained_name": run, "image": "pictures"})
    run_mode("predict", {"pretrained_name": NAME, "image": "pictures"})
    expected = json.loads((run / "predict/predictions.json").read_text())
    assert json.loads((tmp_path / "runs/painter/predict/predictions.json").read_text()) == expected
    run_mode("predict", {"pretrained_name": NAME, "image": "pictures", "trainer.exp_dir": "results", "name": "other"})
    assert (tmp_path / "results/other/predict/predictions.json").is_file()
    assert {path.name for path in checkpoint.folder.iterdir()} == names, "nothing is written into the cache"
    go_offline(monkeypatch, tmp_path / "cache")
    assert find_checkpoint(f"{NAME}@main", tmp_path).folder == checkpoint.folder


def test_download_that_fails_names_the_way_out(tmp_path, monkeypatch):
    go_offline(monkeypatch, tmp_path)
    with pytest.raises(UserError, match=r"=hf-hub:org/none@v1 .* repository org/none elsewhere and name"):
        find_checkpoint("hf-hub:org/none@v1", tmp_path)
    with pytest.raises(UserError, match="could not be downloaded"):
        find_checkpoint("hf-hub:../none", tmp_path)


@pytest.mark.parametrize(
    ("status", "reason"), [(401, "does not accept the token"), (403, "may not write"), (500, "500")]
)
def test_push_that_fails_leaves_the_folder(run, hub, tmp_path, capsys, status, reason):
    hub.status = status
    assert push(run, tmp_path / "export") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert reason in line and "hf auth login" in line and (tmp_path / "export/README.md").is_file()


def test_push_without_a_token_or_name(run, tmp_path, capsys):
    with local_hub(tmp_path / "cache", token=None):
        assert push(run, tmp_path / "export") == 2
    assert "there is no token" in capsys.readouterr().err
    assert main([str(run), "--out", str(tmp_path / "other"), "--push", "painter"]) == 2
    assert "has the form ORG/NAME" in capsys.readouterr().err and not (tmp_path / "other").exists()
