"""Several processes give the results of one; when one dies or hangs, the others end with a message."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import ranks as launcher
from common.errors import UserError
from common.ranks import Agreed, should_report
from tests.helpers.jobs import finish_job, launch_job
from tests.helpers.launch import wait_for
from tests.helpers.tiny import ROOT, arguments, run_mode, write_pictures, write_run, write_splits

FILES = ("predictions.jsonl", "predictions.json", "skipped.jsonl")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Nine test images in batches of two: the first of two processes has five of them."""
    keys = write_splits(tmp_path_factory.mktemp("splits"), test=9)
    return keys | {f"dataset.{split}_ds.batch_size": 2 for split in ("train", "validation", "test")}


@pytest.fixture(scope="module")
def run(keys) -> Path:
    """A trained run; read-only."""
    return write_run(keys, "run")


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Five batches of two: the second has no readable image, the third has one."""
    paths = write_pictures(tmp_path / "pictures", 10)
    for index in (2, 3, 5):
        paths[index].write_bytes(b"no picture")
    return tmp_path / "pictures"


@pytest.fixture
def predict(run, pictures, tmp_path):
    """Return the keys of a prediction into tmp_path/NAME/predict."""

    def call(name: str, **changes) -> dict:
        own = {key.replace("__", "."): value for key, value in changes.items()}
        keys = {"mode": "predict", "pretrained_name": run, "image": pictures, "trainer.exp_dir": tmp_path, "name": name}
        return {**keys, "dataset.test_ds.batch_size": 2, **own}

    return call


def alone(keys: dict) -> None:
    run_mode(keys["mode"], {key: value for key, value in keys.items() if key != "mode"})


# --- the same results ------------------------------------------------------------------------------------------------


def test_two_processes_predict_like_one_and_only_the_first_prints(predict, tmp_path, capsys):
    sampled = {"trainer__test__decoding_strategy": "nucleus", "trainer__test__max_length": 12}
    alone(predict("one", **sampled))
    shown = capsys.readouterr().out
    first, second = finish_job(launch_job(predict("two", **sampled), tmp_path / "logs"), tmp_path / "logs")
    for name in FILES:
        assert (tmp_path / "two/predict" / name).read_bytes() == (tmp_path / "one/predict" / name).read_bytes(), name
    assert sorted(path.name for path in (tmp_path / "two/predict").iterdir()) == sorted([*FILES, "report.html"])
    rows = json.loads((tmp_path / "two/predict/predictions.json").read_text())
    assert [Path(row["image"]).stem[-1] for row in rows] == list("0146789")
    assert second == "" and all(line in first for line in shown.splitlines())


def test_more_processes_than_batches(predict, pictures, tmp_path):
    """Including a single batch without a readable image."""
    keys = predict("few", dataset__test_ds__batch_size=8)
    alone({**keys, "name": "one"})
    finish_job(launch_job(keys, tmp_path / "logs", count=3), tmp_path / "logs")
    assert (tmp_path / "few/predict/predictions.jsonl").read_bytes() == (
        tmp_path / "one/predict/predictions.jsonl"
    ).read_bytes()
    job = launch_job({**keys, "name": "none", "image": pictures / "picture-002.png"}, tmp_path / "logs")
    job[1].join(300)
    job[0].join(300)
    assert [process.exitcode for process in job] == [2, 0]
    assert (tmp_path / "logs/0").read_text().count("none of its 1 pictures could be read") == 1


def test_two_processes_test_like_one(run, keys, tmp_path):
    own = {"mode": "test", "pretrained_name": run, "trainer.exp_dir": tmp_path, "trainer.test.metrics": "[bleu,cider]"}
    alone({**own, "name": "one"})
    _, second = finish_job(launch_job({**own, "name": "two"}, tmp_path / "logs"), tmp_path / "logs")
    one, two = (tmp_path / name / "test" for name in ("one", "two"))
    for name in ("predictions.jsonl", "per_image.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    assert metrics[0] == metrics[1] and metrics[0]["images"] == 9 and second == ""


def test_broken_batch_of_one_process_does_not_block_training(keys, tmp_path):
    own = {"mode": "train", "trainer.exp_dir": tmp_path, "name": "two", "dataset.train_ds.shuffle": False}
    root = tmp_path / "splits"
    own = {**write_splits(root), **own, **{f"dataset.{split}_ds.batch_size": 2 for split in ("train", "validation")}}
    for index in (2, 3):  # the second process's first batch
        (root / "train/images/Style" / f"picture-{index:03d}.png").write_bytes(b"no picture")
    first, second = finish_job(launch_job(own, tmp_path / "logs"), tmp_path / "logs")
    assert "trained:" in first and second == ""
    assert list((tmp_path / "two/checkpoints").glob("step-*"))


# --- a process ends --------------------------------------------------------------------------------------------------


def test_error_in_one_process_ends_all_and_is_printed_once(predict, pictures, tmp_path):
    job = launch_job(predict("strict", dataset__strict=True), tmp_path / "logs")
    printed = "".join(finish_job(job, tmp_path / "logs", status=2))
    assert printed.count("error: ") == 1 and printed.count("dataset.strict=false skips it") == 1
    assert str(pictures / "picture-002.png") in printed and "Traceback" not in printed


def test_lost_process_is_one_sentence_and_one_process_can_resume(predict, tmp_path):
    many = write_pictures(tmp_path / "many", 36)[0].parent
    keys = predict("lost", image=many, trainer__test__max_length=30)
    job, part = launch_job(keys, tmp_path / "logs"), tmp_path / "lost/predict/predictions.jsonl.part"
    wait_for(lambda: part.exists() and part.read_bytes().count(b"\n") > 3, job[1])
    job[1].kill()
    job[0].join(300)
    assert job[0].exitcode == 2
    line = _only_line(tmp_path / "logs/0")
    assert line.startswith("error: process 0 of 2") and "has lost another process" in line
    alone(keys)
    alone({**keys, "name": "unbroken"})
    for name in ("predictions.jsonl", "predictions.json"):
        assert (tmp_path / "lost/predict" / name).read_bytes() == (tmp_path / "unbroken/predict" / name).read_bytes()


def test_stuck_process_ends_in_a_timeout(predict, tmp_path):
    many = write_pictures(tmp_path / "many", 60)[0].parent
    own = {"image": many, "trainer__test__max_length": 30, "trainer__timeout_minutes": 0.1}
    job = launch_job(predict("stuck", **own), tmp_path / "logs")
    part = tmp_path / "stuck/predict/predictions.jsonl.part"
    try:
        wait_for(lambda: part.exists() and part.read_bytes().count(b"\n") > 3, job[1])
        os.kill(job[1].pid, signal.SIGSTOP)
        job[0].join(300)
        assert job[0].exitcode == 2
        line = _only_line(tmp_path / "logs/0")
        assert line.startswith("error: process 0 of 2") and "trainer.timeout_minutes" in line
    finally:
        job[1].kill()


def test_launcher_ends_training_after_a_killed_process(keys, tmp_path):
    """With torchrun, which names the process."""
    own = {**keys, "mode": "train", "trainer.exp_dir": tmp_path, "name": "run", "trainer.epochs": 1000}
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(ROOT / "run.py"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen([*torchrun, *arguments(own)], stdout=log, stderr=log, cwd=tmp_path, env=environment)
    try:
        lines, end = tmp_path / "run/metrics.jsonl", time.monotonic() + 300
        while not lines.exists() and job.poll() is None:
            assert time.monotonic() < end, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.05)
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        by_rank = {_rank(pid): int(pid) for pid in children}
        os.kill(by_rank["1"], signal.SIGKILL)
        job.wait(300)
    finally:
        job.kill()
    printed = (tmp_path / "log").read_text()
    assert job.returncode == 1
    root_cause = printed[printed.index("Root Cause") :]
    assert "rank      : 1 " in root_cause and "SIGKILL" in root_cause
    assert printed.count("Traceback") == 1, "the launcher's own"


def _only_line(log: Path) -> str:
    """Return the only line that is not a progress bar."""
    (line,) = [line for line in log.read_text().splitlines() if line and not line.startswith("predict: ")]
    return line


def _rank(pid: str) -> str | None:
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((line[5:].decode() for line in variables if line.startswith(b"RANK=")), None)


# --- reporting errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "fault", "said"), [(0, UserError, True), (1, UserError, True), (1, Agreed, False)])
def test_error_of_all_processes_is_printed_by_the_first(monkeypatch, rank, fault, said):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(launcher, "PATIENCE", 0.2)
    started = time.monotonic()
    assert should_report(fault("the data is not there")) is said
    assert (time.monotonic() - started > 0.2) is (rank > 0), "the launcher ends it in the meantime"
