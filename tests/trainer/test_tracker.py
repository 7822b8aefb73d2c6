"""TensorBoard events and metrics.jsonl, read back."""

from __future__ import annotations

import json
import math
import time
from typing import ClassVar

import numpy as np
import psutil
import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.errors import UserError
from tests.helpers.tiny import VISION, write_run, write_splits
from trainer.loop import trackers
from trainer.loop.tracker import Speed, Tracker, peak_memory


def events(folder) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()


def test_speed_counts_since_the_last_reading_without_pauses(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    speed = Speed()
    now = 110.0
    assert speed.read(40, 80) == {"speed/images_per_second": 4.0, "speed/texts_per_second": 8.0}
    speed.pause(15.0)  # as for a validation
    now = 130.0
    assert speed.read(50, 95) == {"speed/images_per_second": 2.0, "speed/texts_per_second": 3.0}


def test_peak_memory_is_in_bytes():
    now = psutil.Process().memory_info().rss
    assert 0.99 * now <= peak_memory(torch.device("cpu")) < 100 * now


def test_scalars_are_in_tensorboard_and_metrics_jsonl(tmp_path):
    tracker = Tracker(tmp_path / "run")
    tracker.scalars({"train/loss": 2.5, "train/lr": 1e-4}, 10)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1, "a line is there at once, also if the run is killed now"
    tracker.scalars({"train/loss": 1.5}, 20)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["train/loss"]) for row in rows] == [(10, 2.5), (20, 1.5)]
    assert rows[0]["train/lr"] == 1e-4 and rows[1]["time"] >= rows[0]["time"] > 1.6e9
    found = events(tmp_path / "run")
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(10, 2.5), (20, 1.5)]
    assert found.Scalars("train/lr")[0].value == pytest.approx(1e-4)


def test_images_and_texts_can_be_read_back(tmp_path):
    picture = np.zeros((6, 8, 3), dtype=np.uint8)
    picture[:, 4:] = (200, 10, 60)
    tracker = Tracker(tmp_path)
    tracker.picture("validation/pictures", picture, 3)
    tracker.text("configuration", "seed: 7")
    found = events(tmp_path)
    (event,) = found.Images("validation/pictures")
    (tmp_path / "back.png").write_bytes(event.encoded_image_string)
    assert (event.step, event.width, event.height) == (3, 8, 6)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "back.png")), picture)
    (tag,) = found.Tags()["tensors"]
    assert b"seed: 7" in found.Tensors(tag)[0].tensor_proto.string_val[0]


def test_second_tracker_appends(tmp_path):
    for step in (1, 2):
        tracker = Tracker(tmp_path)
        tracker.scalars({"train/loss": float(step)}, step)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    found = events(tmp_path).Scalars("train/loss")
    assert sorted(e.step for e in found) == [1, 2], "files of one second are read in the order of their names"


def test_purge_removes_repeated_steps_from_tensorboard(tmp_path):
    first = Tracker(tmp_path)
    for step in (1, 2, 3):
        first.scalars({"train/loss": float(step)}, step)
    time.sleep(1.1)  # TensorBoard orders event files by the second in their names
    second = Tracker(tmp_path, purge_step=2)
    second.scalars({"train/loss": 20.0}, 2)
    assert [(e.step, e.value) for e in events(tmp_path).Scalars("train/loss")] == [(1, 1.0), (2, 20.0)]


def rows(folder) -> list[tuple[int, list[str]]]:
    values = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row.pop("step"), sorted(row.keys() - {"time"})) for row in values]


def test_purge_removes_repeated_and_incomplete_lines(tmp_path):
    first = Tracker(tmp_path)
    for step in (1, 2, 3):
        first.scalars({"train/loss": float(step)}, step)
    first.scalars({"validation/loss": 0.5}, 3)
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 2, "train/lo')
    Tracker(tmp_path, purge_step=4)
    assert rows(tmp_path) == [(1, ["train/loss"]), (2, ["train/loss"]), (3, ["train/loss"]), (3, ["validation/loss"])]
    Tracker(tmp_path, purge_step=3)
    assert rows(tmp_path) == [(1, ["train/loss"]), (2, ["train/loss"])]


def test_infinite_values_are_null_and_survive_a_resume(tmp_path):
    Tracker(tmp_path).scalars({"train/grad_norm": math.inf}, 2)
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)["train/grad_norm"] is None
    Tracker(tmp_path, purge_step=3, validation_too=True)


def test_purge_can_remove_only_a_validation(tmp_path):
    first = Tracker(tmp_path)
    for step in (1, 2):
        first.scalars({"train/loss": float(step)}, step)
    first.scalars({"validation/loss": 0.5}, 2)
    time.sleep(1.1)
    second = Tracker(tmp_path, purge_step=3, validation_too=True)
    assert rows(tmp_path) == [(1, ["train/loss"]), (2, ["train/loss"])]
    second.scalars({"validation/loss": 0.5}, 2)
    found = events(tmp_path)
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(1, 1.0), (2, 2.0)]
    assert [e.step for e in found.Scalars("validation/loss")] == [2]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = Tracker(None)
    tracker.scalars({"train/loss": 1.0}, 1)
    tracker.picture("a", np.zeros((2, 2, 3), dtype=np.uint8), 1)
    tracker.text("b", "c")
    assert list(tmp_path.iterdir()) == []


# --- trackers through accelerate -------------------------------------------------------------------------------------


class Recorder(GeneralTracker):
    """A tracker that keeps what it gets; fails at the step `broken`."""

    name, requires_logging_directory, tracker = "recorder", False, None
    made: ClassVar[list] = []
    broken: ClassVar[int | None] = None

    def __init__(self, project: str, **named: str) -> None:
        super().__init__()
        self.made.append(self)
        self.project, self.named, self.lines, self.pictures, self.finished = project, named, {}, {}, False

    def start(self) -> None:
        self.started = True

    def store_init_configuration(self, values: dict) -> None:
        self.config = values

    def log(self, values: dict, step: int | None, **options: object) -> None:
        if step == self.broken:
            raise ConnectionError("no route to host")
        self.lines.setdefault(step, {}).update(values)

    def log_images(self, values: dict, step: int | None, **options: object) -> None:
        self.pictures |= {(name, step): images for name, images in values.items()}

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "mlflow" else name)
    monkeypatch.setattr(Recorder, "made", [])
    return Recorder


def test_another_tracker_gets_what_metrics_jsonl_has(recorder, tmp_path):
    keys = write_splits(tmp_path) | {"trainer.trackers": "[tensorboard,wandb]", "trainer.log_every_n_steps": 1}
    run = write_run({**keys, "trainer.num_validation_images": 1}, "run")
    (made,) = recorder.made
    assert (made.project, made.named, made.started, made.finished) == ("emoscribe", {"name": "run"}, True, True)
    assert made.config["trainer.epochs"] == 1 and made.config["model.text.xattn.heads"] == 2
    assert made.config["model.vision.config"] == VISION, "a value, not a section"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected: dict[int, dict] = {}
    for line in lines:
        expected.setdefault(line["step"], {}).update({k: v for k, v in line.items() if k not in ("step", "time")})
    assert made.lines == expected and len(lines) > 2
    assert made.pictures and all(image.dtype == np.uint8 for (image,) in made.pictures.values())
    assert {name for name, _ in made.pictures} == {*events(run).Tags()["images"]}
    assert [*(run / "tensorboard").iterdir()]


def test_training_goes_on_without_a_tracker_that_fails(recorder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recorder, "broken", 1)
    keys = write_splits(tmp_path) | {"trainer.trackers": "[wandb]", "trainer.log_every_n_steps": 1}
    run = write_run(keys, "run")
    errors = capsys.readouterr().err
    assert errors.count("wandb gets no more metrics of this training (no route to host)") == 1
    assert len((run / "metrics.jsonl").read_text().splitlines()) > 2
    assert not (run / "tensorboard").exists(), "only those that are named"
    assert "curves:" not in errors


def test_a_tracker_that_is_not_there_is_named_before_anything_is_written(recorder, tmp_path, monkeypatch):
    keys = write_splits(tmp_path)
    with pytest.raises(UserError, match=r"trainer\.trackers: mlflow is not installed: pip install mlflow"):
        write_run({**keys, "trainer.trackers": "[mlflow]"}, "run")
    monkeypatch.setattr(recorder, "start", lambda self: 1 / 0)
    with pytest.raises(UserError, match=r"trainer\.trackers: wandb does not start"):
        write_run({**keys, "trainer.trackers": "[wandb]"}, "run")
    with pytest.raises(UserError, match=r"trainer\.trackers must be a list of any number of values, each one of"):
        write_run({**keys, "trainer.trackers": "[tensorbord]"}, "run")
    assert not (tmp_path / "runs" / "run" / "metrics.jsonl").exists()
