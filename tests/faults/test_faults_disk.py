"""A full or read-only disk: one sentence, earlier files intact, and the run can be resumed."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.errors import UserError
from common.files import write_json, write_text
from tests.helpers.broken_disk import bound_by_permissions, full_for
from tests.helpers.launch import finish, launch
from tests.helpers.runs import contents, leftovers, lines
from tests.helpers.tiny import write_run, write_splits
from trainer.loop.tracker import Tracker, _leave_to_warn_once
from trainer.runs.retention import entries

TRAINING = {"mode": "train", "name": "run", "trainer.resume": "auto", "trainer.log_every_n_steps": 1}


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, object]:
    """8 training images, 2 steps per epoch; one of them and one of the test images are invalid."""
    keys = write_splits(tmp_path_factory.mktemp("splits"))
    for split in ("train", "test"):
        (Path(keys[f"dataset.{split}_ds.visual_dir"]) / "Style" / "picture-004.png").write_bytes(b"no picture")
    return keys


@pytest.fixture(scope="module")
def trained(keys) -> Path:
    """A run of one epoch; read-only."""
    return write_run(keys, "trained")


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@contextmanager
def files_of_at_most(size: int):
    """Limit the file size, like a quota; Python ignores the signal for it."""
    resource = pytest.importorskip("resource")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def is_one_sentence(said: str, path: Path, way_out: str = "make room there") -> None:
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {path} cannot be written (No space left on device; ") and "B free" in line
    assert way_out in line and "Traceback" not in said and said.rstrip().endswith(line)


# --- files -----------------------------------------------------------------------------------------------------------


def test_write_error_names_file_reason_free_space_and_way_out(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, [1])
    with files_of_at_most(100), pytest.raises(UserError) as caught:
        write_json(path, ["long"] * 100)
    assert str(caught.value).startswith(f"{path} cannot be written (File too large; ") and "ulimit" in str(caught.value)
    assert isinstance(caught.value, OSError), "so that writers of optional files can catch it"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and json.loads(path.read_text()) == [1]


def test_file_in_place_of_a_folder_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a cannot be written \((Not a directory|File exists)"):
        write_text(tmp_path / "file" / "a", "")


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl"])
def test_full_disk_is_one_sentence_and_the_same_command_resumes(keys, run, tmp_path, name):
    settings, log = {**keys, **TRAINING, "trainer.exp_dir": tmp_path, "trainer.epochs": 2}, tmp_path / "log"
    before = contents(run / "checkpoints")
    said = finish(launch(settings, log, first=full_for(name)), log, status=2)
    is_one_sentence(said, run / name)
    assert contents(run / "checkpoints") == before and leftovers(run) == []
    finish(launch(settings, log), log)
    assert entries(run / "checkpoints")[0].step == 4 and [line["step"] for line in lines(run)][-1] == 4


@pytest.mark.parametrize("name", ["training.pt", "index.json"])
def test_checkpoint_that_does_not_fit_leaves_the_previous_one(keys, run, tmp_path, name):
    settings, log = {**keys, **TRAINING, "trainer.exp_dir": tmp_path, "trainer.epochs": 2}, tmp_path / "log"
    before = contents(run / "checkpoints" / "step-00000002")
    said = finish(launch(settings, log, first=full_for(name)), log, status=2)
    is_one_sentence(said, run / "checkpoints" / "step-00000004", "resume with trainer.resume=auto")
    assert "; it takes 0." in said
    assert contents(run / "checkpoints" / "step-00000002") == before
    finish(launch(settings, log), log)
    assert entries(run / "checkpoints")[0].step == 4 and leftovers(run) == []


def test_real_full_file_system(keys, tmp_path):
    """A file system of one megabyte (needs root); with more space the same command succeeds."""
    disk, log = tmp_path / "disk", tmp_path / "log"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        settings = {**keys, **TRAINING, "trainer.exp_dir": disk, "trainer.epochs": 3}
        settings |= {"trainer.checkpoint_callback_params.keep_last": 9}
        is_one_sentence(finish(launch(settings, log), log, status=2), disk / "run" / "checkpoints" / "step-00000004")
        assert [entry.step for entry in entries(disk / "run" / "checkpoints")] == [2] and leftovers(disk / "run") == []
        subprocess.run(["mount", "-o", "remount,size=9m", disk], check=True)
        finish(launch(settings, log), log)
        assert [entry.step for entry in entries(disk / "run" / "checkpoints")] == [6, 4, 2]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_unwritable_list_of_skipped_images_is_reported(keys, tmp_path):
    log = tmp_path / "log"
    process = launch({**keys, **TRAINING, "trainer.exp_dir": tmp_path}, log, first=full_for("skipped.jsonl"))
    is_one_sentence(finish(process, log, status=2), tmp_path / "run" / "skipped.jsonl")
    assert entries(tmp_path / "run" / "checkpoints")[0].step == 2


# --- TensorBoard -----------------------------------------------------------------------------------------------------


def steps(run: Path) -> list[int]:
    return [e.step for e in EventAccumulator(str(run / "tensorboard")).Reload().Scalars("train/loss")]


def test_full_disk_for_tensorboard_leaves_metrics_jsonl(tmp_path, capsys, monkeypatch):
    tracebacks = []
    monkeypatch.setattr(threading, "excepthook", tracebacks.append)
    _leave_to_warn_once.cache_clear()
    tracker = Tracker(tmp_path)
    tracker.scalars({"train/loss": 1.0}, 1)
    tracker.picture("noise", np.random.default_rng(0).integers(0, 255, (100, 100, 3), dtype=np.uint8), 1)
    with files_of_at_most(20_000):
        for step in (2, 3):
            tracker.scalars({"train/loss": 1.0}, step)
    tracker.scalars({"train/loss": 1.0}, 4)
    said = capsys.readouterr().err
    _leave_to_warn_once.cache_clear()  # the hook ends with this test
    assert (
        not tracebacks
        and said.count("warning: ") == 1
        and f"{tmp_path / 'tensorboard'} cannot be written (File too large; " in said
    )
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()] == [1, 2, 3, 4]
    assert steps(tmp_path)[0] == 1


def test_unwritable_metrics_line_is_one_sentence(tmp_path):
    tracker = Tracker(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}\n" * 5_000)
    with files_of_at_most(9_000), pytest.raises(UserError, match=r"metrics\.jsonl cannot be written \(File too large"):
        tracker.scalars({"train/loss": 1.0}, 1)


def test_file_in_place_of_the_events_folder_is_reported_once(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("mine")
    tracker = Tracker(tmp_path)
    for step in (1, 2, 3):
        tracker.scalars({"train/loss": 1.0}, step)
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1 and "the training goes on" in said
    assert (tmp_path / "tensorboard").read_text() == "mine" and len(lines(tmp_path)) == 3


# --- test and predict ------------------------------------------------------------------------------------------------


def used(keys: dict[str, object], mode: str, run: Path) -> dict[str, object]:
    """Return the keys of a test of the run, or of a prediction with it."""
    own = {key: value for key, value in keys.items() if not key.startswith(("model.", "trainer.exp_dir"))}
    own |= {"mode": mode, "pretrained_name": run, "trainer.test.metrics": "[rouge_l]"}
    return own | ({"image": keys["dataset.test_ds.visual_dir"]} if mode == "predict" else {})


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("test", "predictions.jsonl.part"),
        ("test", "metrics.json"),
        ("test", "report.html"),
        ("predict", "predictions.json"),
    ],
)
def test_unwritable_results_are_one_sentence(keys, run, tmp_path, mode, name):
    settings = used(keys, mode, run)
    before, log = contents(run), tmp_path / "log"
    said = finish(launch(settings, log, first=full_for(name)), log, status=2)
    is_one_sentence(said, run / mode / name if not name.endswith(".part") else run / mode)
    if not name.endswith(".part"):
        rows = (run / mode / "predictions.jsonl").read_text().splitlines()
        assert len(rows) == 4, "finished predictions are kept"
    assert before.items() <= contents(run).items()


# --- read-only -------------------------------------------------------------------------------------------------------


@pytest.fixture
def read_only(run):
    folders = [run, *(path for path in run.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    yield run
    for folder in folders:
        folder.chmod(0o755)


def test_read_only_run_is_not_trained(keys, read_only, tmp_path):
    log = tmp_path / "log"
    settings = {**keys, **TRAINING, "trainer.exp_dir": tmp_path, "trainer.epochs": 2}
    said = finish(launch(settings, log, first=bound_by_permissions), log, status=2)
    assert said.startswith(f"error: {read_only} cannot be written (") and "Permission denied" in said
    assert "trainer.exp_dir" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("mode", ["test", "predict"])
def test_results_of_a_read_only_run_can_go_elsewhere(keys, read_only, tmp_path, mode):
    settings, log = used(keys, mode, read_only), tmp_path / "log"
    said = finish(launch(settings, log, first=bound_by_permissions), log, status=2)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert str(read_only / mode) in line and "Permission denied" in line and "trainer.exp_dir=FOLDER" in line
    assert "predict:" not in said, "before anything was predicted"
    before = contents(read_only)
    finish(launch({**settings, "trainer.exp_dir": tmp_path / "own"}, log, first=bound_by_permissions), log)
    (found,) = (tmp_path / "own").glob(f"*/{mode}/predictions.jsonl")
    assert len(found.read_text().splitlines()) == 4 and contents(read_only) == before
