"""TensorBoard events and metrics.jsonl, read back."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.loop.tracker import Tracker


def events(folder) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()


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
    assert [e.step for e in events(tmp_path).Scalars("train/loss")] == [1, 2]


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
