"""A run that is killed anywhere and restarted by the same command equals an uninterrupted one."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.errors import UserError
from tests.helpers.launch import finish, launch, wait_for
from tests.helpers.runs import assert_same_run, contents, leftovers, lines, same
from tests.helpers.tiny import run_mode, write_splits

# GPT-2 is trained because of its dropout, which a resumed run must repeat. The learning rate falls at every step.
LONG = {
    "mode": "train",
    "name": "run",
    "dataset.train_ds.batch_size": 1,  # so that a broken image removes its whole batch
    "trainer.limit_train_batches": 6,
    "model.text.trainable": True,
    "trainer.epochs": 6,
    "trainer.log_every_n_steps": 1,
    "trainer.check_val_every_n_epoch": 2,
    "trainer.check_val_every_n_steps": 7,
    "trainer.early_stopping_patience": 50,
    "trainer.checkpoint_every_n_steps": 2,
}
SHORT = {
    "name": "run",
    "model.text.trainable": True,
    "trainer.epochs": 2,
    "trainer.checkpoint_every_n_steps": 1,
    "trainer.checkpoint_callback_params.keep_last": 9,
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, object]:
    """12 training images, one of them invalid, and 4 for validation."""
    keys = write_splits(tmp_path_factory.mktemp("splits"), train=12)
    (Path(keys["dataset.train_ds.visual_dir"]) / "Style" / "picture-004.png").write_bytes(b"no picture")
    return {**keys, "trainer.resume": "auto"}


@pytest.fixture
def train(keys, tmp_path):
    """Train in this process into tmp_path/run and return that folder."""

    def call(changes: dict[str, object] | None = None) -> Path:
        run_mode("train", {**keys, **SHORT, "trainer.exp_dir": tmp_path, **(changes or {})})
        return tmp_path / "run"

    return call


# --- killed at any moment --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(keys) -> Path:
    run = Path(keys["trainer.exp_dir"]) / "unbroken"
    log = run.parent.parent / "unbroken.log"
    finish(launch({**keys, **LONG, "name": "unbroken"}, log), log)
    assert 30 < lines(run)[-1]["step"] < 36, "six batches per epoch, without the broken image"
    return run


def test_run_killed_many_times_equals_the_uninterrupted_one(keys, unbroken, tmp_path):
    """Every second kill is at a change of the file system, some are at the start, the others three steps later."""
    settings, run, log = {**keys, **LONG, "trainer.exp_dir": tmp_path}, tmp_path / "run", tmp_path / "log"
    times = [json.loads(line)["time"] for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    steps = lines(unbroken)[-1]["step"]
    per_step, rng, unfinished = (times[-1] - times[0]) / steps, random.Random(20), 0
    kill = 0

    def seen() -> int:
        try:
            return len((run / "metrics.jsonl").read_bytes().splitlines())
        except FileNotFoundError:  # a run without a checkpoint removes what it has and starts anew
            return 0

    while kill < 7 or not unfinished:  # at least one while a file was being written
        far = seen() > steps - 9  # some steps must be left for the last start
        if kill % 2:
            process = launch(settings, log, die_at=rng.randint(1, 20 if far else 90), below=tmp_path)
            process.join(300)
        else:
            process = launch(settings, log)
            moment = time.monotonic() + (0.5 * rng.random() if kill % 4 == 0 else 60)
            wait_for(lambda end=moment: "validation images" in log.read_text() or time.monotonic() > end, process)
            if kill % 4:
                target = seen() + (0 if far else 3)  # with a checkpoint
                wait_for(lambda target=target: seen() >= target, process)
                time.sleep(rng.random() * per_step)
            process.kill()
            process.join()
        assert process.exitcode == -signal.SIGKILL, log.read_text()[-2000:]
        unfinished += bool(leftovers(run))
        kill += 1
    finish(launch(settings, log), log)
    assert_same_run(run, unbroken)
    assert leftovers(run) == []
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [point.step for point in events.Scalars("train/loss")] == list(range(1, steps + 1))
    validated = [line["step"] for line in lines(run) if "validation/loss" in line]
    assert [point.step for point in events.Scalars("validation/loss")] == validated
    record = json.loads((run / "run.json").read_text())
    assert len(record["starts"]) > 2 and record["starts"][0]["step"] == 0
    assert f"is finished, at step {steps}" in finish(launch(settings, log), log)
    assert_same_run(run, unbroken)


@pytest.fixture(scope="module")
def finished(keys) -> Path:
    """A run of six steps with a checkpoint at each; read-only."""
    run_mode("train", {**keys, **SHORT, "name": "finished"})
    return Path(keys["trainer.exp_dir"]) / "finished"


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of that run, to be trained as `run`."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


# --- one command for every start -------------------------------------------------------------------------------------


def test_run_without_a_checkpoint_starts_anew(train, copy, finished):
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints" / ".step-00000001.77.tmp").mkdir(parents=True)
    with pytest.raises(UserError, match=r"already holds a run: .*trainer\.resume=auto"):
        train({"trainer.resume": None})
    train()
    assert_same_run(copy, finished)
    assert leftovers(copy) == []


def test_finished_run_is_left_unchanged(train, copy, capsys):
    before = contents(copy)
    train()
    assert "is finished, at step 6" in capsys.readouterr().err
    assert contents(copy) == before


def test_more_epochs_continue_with_a_notice(train, copy, capsys):
    train({"trainer.epochs": 3})
    assert [line["step"] for line in lines(copy)] == [3, 6, 9]
    assert "trainer.epochs was 2 so far" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "was"),
    [
        ("seed", 5, "seed=2021, not 5"),
        ("model.resampler.num_latents", 8, "model.resampler.num_latents=4, not 8"),
        ("model.optimizer.lr", 0.5, "model.optimizer.lr=0.0001, not 0.5"),
        ("dataset.max_length", 30, "dataset.max_length=40, not 30"),
        ("dataset.train_ds.batch_size", 3, "dataset.train_ds.batch_size=4, not 3"),
        ("trainer.accumulation_steps", 2, "trainer.accumulation_steps=1, not 2"),
    ],
)
def test_changed_keys_under_the_same_name_are_refused(train, copy, key, value, was):
    """The first of several differences is named."""
    before = contents(copy)
    with pytest.raises(UserError) as caught:
        train({"trainer.epochs": 3, "trainer.checkpoint_callback_params.monitor": "train_loss", key: value})
    text = str(caught.value)
    assert text.startswith(f"{copy} was trained with {was}: ") and "resume_pretrained_state=true" in text
    assert "\n" not in text and contents(copy) == before


def test_data_may_move_but_not_change(train, copy, keys, tmp_path):
    moved = Path(shutil.copytree(Path(keys["dataset.train_ds.json_path"]).parent, tmp_path / "moved"))
    own = {
        "dataset.train_ds.json_path": moved / "annotations.json",
        "dataset.train_ds.visual_dir": moved / "images",
        "dataset.train_ds.num_workers": 1,
        "dataset.vad_lexicon": shutil.copy(keys["dataset.vad_lexicon"], tmp_path / "lexicon.csv"),
        "dataset.tokenizer": shutil.copytree(keys["dataset.tokenizer"], tmp_path / "tokenizer"),
        "trainer.epochs": 3,
    }
    train(own)
    assert [line["step"] for line in lines(copy)] == [3, 6, 9]
    (moved / "images" / "Style" / "picture-003.png").unlink()
    with pytest.raises(UserError, match=r"the list of images in dataset\.train_ds\.visual_dir has changed"):
        train(own)
    text = (moved / "annotations.json").read_text()
    (moved / "annotations.json").write_text(text.replace("serene", "gloomy"))
    with pytest.raises(UserError, match=r"the content of dataset\.train_ds\.json_path has changed"):
        train(own)


def test_contradictory_keys_are_one_sentence(train, tmp_path):
    with pytest.raises(UserError, match=r"trainer\.overwrite=true begins anew and trainer\.resume=auto resumes"):
        train({"trainer.overwrite": True})
    assert list(tmp_path.iterdir()) == [], "not even a folder"


def test_user_file_is_not_replaced(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 1  # mine\n")
    with pytest.raises(UserError, match=r"config\.yaml belongs to no run and would be replaced"):
        train()
    assert (tmp_path / "run" / "config.yaml").read_text() == "seed: 1  # mine\n"


def test_unwritable_folder_is_one_sentence(train, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match=r"run cannot be written \(.*choose another trainer\.exp_dir or name="):
        train()


def test_pretrained_weights_are_loaded_only_at_the_first_start(train, finished):
    """pretrained_name stays on the command line; the restart uses the run's own checkpoint."""
    run = train({"pretrained_name": finished, "trainer.epochs": 1})
    first = load_file(run / "checkpoints" / "step-00000003" / "model.safetensors")
    assert not same(first, load_file(finished / "checkpoints" / "step-00000003" / "model.safetensors"))
    train({"pretrained_name": finished})
    assert same(first, load_file(run / "checkpoints" / "step-00000003" / "model.safetensors"))
    assert [line["step"] for line in lines(run)] == [3, 6]


def test_two_processes_never_share_a_folder(keys, tmp_path):
    settings, run, log = {**keys, **LONG, "trainer.exp_dir": tmp_path}, tmp_path / "run", tmp_path / "log"
    first = launch({**settings, "trainer.epochs": 9_999}, log)
    wait_for((run / ".lock.holder").exists, first)
    for changes in ({}, {"trainer.resume": None}, {"trainer.resume": None, "trainer.overwrite": True}):
        said = finish(launch({**settings, **changes}, tmp_path / "second"), tmp_path / "second", status=2)
        assert said.startswith(f"error: {run} is in use by process {first.pid} on ") and len(said.splitlines()) == 1
    assert first.is_alive()
    first.kill()
    first.join()
    assert "is in use" not in finish(launch({**settings, "trainer.epochs": 1}, log), log), "its end frees the lock"


# --- damaged checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt", "checkpoint.json", "SHA256SUMS"])
def test_damaged_checkpoint_is_replaced_by_the_previous_one(train, copy, finished, name, capsys):
    path = copy / "checkpoints" / "step-00000006" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    train()
    said = capsys.readouterr().err
    warned = path.parent if name == "SHA256SUMS" else path  # a wrong checksum is reported for its file
    assert f"warning: {warned}" in said and f"{copy / 'checkpoints' / 'step-00000005'} is used instead" in said
    assert_same_run(copy, finished)


def test_run_with_only_damaged_checkpoints_starts_anew_and_keeps_them(train, copy, finished, capsys):
    for folder in (copy / "checkpoints").glob("step-*"):
        (folder / "training.pt").write_bytes(b"")
    train()
    assert "training.pt was changed or damaged" in capsys.readouterr().err
    assert_same_run(copy, finished)
    assert (copy / "checkpoints.damaged" / "step-00000006" / "model.safetensors").is_file()


@pytest.mark.parametrize("index", [None, "{", '{"last": "step-00000001", "best": []}'])
def test_missing_or_stale_index_does_not_matter(train, copy, finished, index):
    shutil.rmtree(copy / "checkpoints" / "step-00000006")
    path = copy / "checkpoints" / "index.json"
    path.unlink() if index is None else path.write_text(index)
    train()
    assert_same_run(copy, finished)


def test_imported_weights_are_not_overwritten(train, copy):
    for folder in (copy / "checkpoints").glob("step-*"):
        (folder / "training.pt").unlink()
        sums = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
        (folder / "SHA256SUMS").write_text("".join(line for line in sums if "training.pt" not in line))
    before = contents(copy)
    with pytest.raises(UserError, match=r"holds weights without the state of a training"):
        train()
    assert contents(copy) == before


# --- the record of a run ---------------------------------------------------------------------------------------------


def test_run_can_be_repeated_from_its_folder(keys, tmp_path):
    log = tmp_path / "log"
    finish(launch({**keys, "mode": "train", "name": "run", "trainer.exp_dir": tmp_path}, log), log)
    run = tmp_path / "run"
    record = json.loads((run / "run.json").read_text())
    (start,) = record["starts"]
    assert record["seed"] == 2021 and start["step"] == 0 and "mode=train" in start["command"]
    assert start["versions"]["torch"] == torch.__version__.partition("+")[0] and "accelerate" in start["versions"]
    assert {"cpu", "cores", "gpus", "host"} <= set(start["hardware"]) and "git" in start
    made_of = record["made_of"]
    assert made_of["dataset.train_ds.visual_dir"]["images"] == 12
    assert {"dataset.train_ds.json_path", "dataset.validation_ds.json_path", "dataset.tokenizer"} <= set(made_of)
    finish(launch({"--config-path": run, "mode": "train", "name": "again"}, log), log)
    again = tmp_path / "again"
    assert_same_run(again, run)
    first, second = (OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")) for folder in (run, again))
    assert {**first, "name": "again"} == second
