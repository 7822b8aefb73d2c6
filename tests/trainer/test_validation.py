"""Validation: caption scores, emotion metrics and temperature, in one process and in two."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.errors import UserError
from data.loaders import make_loader
from data.schema import Sample
from model.decoding.generation import Decoding
from tests.helpers.predictions import model_and_answers
from tests.helpers.tiny import ROOT, make_captioner, make_dataset, run_mode, write_splits
from trainer.loop import validation
from trainer.loop.tracker import Tracker
from trainer.loop.validation import CAPTION_SHOWN, TEMPERATURE, Validator, caption_metrics, emotion_metrics
from trainer.prediction.build import emotion_temperature
from trainer.prediction.predictor import Predictor
from trainer.prediction.rows import Prediction
from trainer.runs.checkpoint import Checkpoint, find_checkpoint
from trainer.runs.task import CaptionTask
from trainer.setup.device import make_accelerator

EMOTIONAL = {f"validation/emotion_{name}" for name in ("nll", "nll_calibrated", "ece", "ece_calibrated", "temperature")}
SCORES = {f"validation/{name}" for name in CAPTION_SHOWN}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """4 validation images in batches of two."""
    keys = write_splits(tmp_path_factory.mktemp("splits"))
    return keys | {"dataset.validation_ds.batch_size": 2, "trainer.test.max_length": 12}


def validated(keys: dict, folder: Path, count: int) -> dict:
    run_mode("train", {**keys, "trainer.exp_dir": folder, "name": "run", "trainer.num_validation_captions": count})
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return next(line for line in lines if "validation/loss" in line)


@pytest.mark.parametrize("count", [3, 100])
def test_scores_of_the_first_captions_are_logged(keys, tmp_path, capsys, monkeypatch, count):
    rows, figure = [], np.zeros((8, 8, 3), "uint8")
    monkeypatch.setattr(validation, "prediction_figure", lambda _, row: rows.append(row) or figure)
    found = validated(keys | {"trainer.num_validation_images": 2}, tmp_path, count)
    assert found.keys() >= SCORES
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in SCORES:
        assert events.Scalars(name)[-1].value == pytest.approx(found[name], rel=1e-6)
    assert "BLEU-4" in capsys.readouterr().err
    assert len(rows) >= 2 and all(sum(row["histogram"]) == pytest.approx(1) for row in rows), (
        "pictures beside their annotations"
    )


def test_caption_scores_change_no_other_metric(keys, tmp_path):
    with_scores, without = validated(keys, tmp_path / "a", 4), validated(keys, tmp_path / "b", 0)
    assert not SCORES & without.keys()
    for name in without.keys() - {"time"}:
        assert with_scores[name] == without[name], name


def predicted(texts: list[str]) -> list[Prediction]:
    return [Prediction(f"id{i}", None, None, text, -1.0) for i, text in enumerate(texts)]


@pytest.fixture
def samples(tmp_path):
    texts = [("the calm sky", "a wide grey sky"), ("the boat is lost", "Afraid of the storm"), (" ",)]
    return {f"id{i}": Sample(f"id{i}", tmp_path / f"{i}.png", own) for i, own in enumerate(texts)}


def test_captions_are_scored_against_all_texts_of_their_image(samples):
    found = caption_metrics(predicted(["a wide grey sky", "afraid of the storm"]), samples)
    assert found.keys() == SCORES
    assert found["validation/BLEU-4"] == pytest.approx(1, abs=1e-6) and found["validation/ROUGE-L"] == pytest.approx(1)
    assert found["validation/CIDEr"] > 4
    half = caption_metrics(predicted(["a wide grey sky", "nothing"]), samples)
    assert half["validation/ROUGE-L"] == pytest.approx(1 / 2) and half["validation/CIDEr"] < found["validation/CIDEr"]


def test_images_without_texts_are_ignored(samples):
    with_third = caption_metrics(predicted(["a wide grey sky", "nothing", "a boat"]), samples)
    assert with_third == caption_metrics(predicted(["a wide grey sky", "nothing"]), samples)
    assert caption_metrics([], samples) == {}
    assert caption_metrics(predicted(["", "", ""])[2:], samples) == {}


# --- emotions --------------------------------------------------------------------------------------------------------


def test_emotion_metrics_before_and_after_calibration():
    log_probs, answers = (torch.tensor(values) for values in model_and_answers(400, factor=2.0, people=5))
    found = emotion_metrics(log_probs, answers)
    assert found.keys() == EMOTIONAL | {"validation/emotion_accuracy"}
    assert found[TEMPERATURE] == pytest.approx(2.0, rel=0.1)
    assert found["validation/emotion_nll_calibrated"] < found["validation/emotion_nll"] - 0.1
    assert found["validation/emotion_ece_calibrated"] < found["validation/emotion_ece"] - 0.1


def test_images_without_annotations_are_ignored():
    log_probs, answers = (torch.tensor(values) for values in model_and_answers(40, factor=2.0, people=5))
    more = emotion_metrics(torch.cat([log_probs, log_probs]), torch.cat([answers, 0 * answers]))
    assert more == emotion_metrics(log_probs, answers)
    assert emotion_metrics(log_probs, 0 * answers) == emotion_metrics(log_probs[:0], answers[:0]) == {}


def test_temperature_is_logged_and_stored_in_the_checkpoint(keys, tmp_path):
    found = validated(keys, tmp_path, 0)
    assert found.keys() >= EMOTIONAL
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert events.Scalars(TEMPERATURE)[-1].value == pytest.approx(found[TEMPERATURE], rel=1e-6)
    assert find_checkpoint("run", tmp_path).info["emotion_temperature"] == found[TEMPERATURE]


def test_test_uses_the_temperature_and_reports_both(keys, tmp_path):
    found = validated(keys, tmp_path, 0)
    by_temperature = {}
    for temperature in ("auto", 1):
        settings = {"trainer.test.metrics": "[rouge_l]", "trainer.test.emotion_temperature": temperature}
        run_mode("test", {"pretrained_name": tmp_path / "run", **settings})
        by_temperature[temperature] = json.loads((tmp_path / "run/test/metrics.json").read_text())["emotion"]
    auto, plain = by_temperature["auto"], by_temperature[1]
    assert auto["temperature"] == found[TEMPERATURE] != 1 == plain["temperature"]
    for name in ("nll", "ece", "ece_answers"):
        assert auto[f"{name}_uncalibrated"] == pytest.approx(plain[name], abs=1e-4)
    assert auto["nll"] != pytest.approx(plain["nll"], abs=1e-4) and auto["accuracy"] == plain["accuracy"]


@pytest.mark.parametrize("value", [1e-300, 0, -1, 1e300, math.nan, True, "1", None])
def test_stored_temperature_out_of_range_is_refused(value, tmp_path):
    config = OmegaConf.load(ROOT / "config.yaml")
    with pytest.raises(UserError, match=r"checkpoint\.json: the emotion temperature .* set trainer\.test\.emotion"):
        emotion_temperature(config, Checkpoint(tmp_path, config, {"emotion_temperature": value}))


def test_without_emotions_there_is_no_temperature(keys, tmp_path):
    found = validated({**keys, "dataset.emotions": False}, tmp_path, 0)
    assert not [name for name in found if "emotion" in name]
    assert "emotion_temperature" not in find_checkpoint("run", tmp_path).info


def measured(folder: Path, template, *, limit: int | None = None) -> dict:
    """Validate on five images in batches of two: the first of two processes has three of them."""
    config = OmegaConf.load(ROOT / "config.yaml")
    config.trainer.device = "cpu"
    captioner = make_captioner(template, gates=0.7)
    dataset = make_dataset(folder, template, captioner, 5)
    loader, _ = make_loader(dataset, batch_size=2, num_workers=0, shuffle=False)
    accelerator = make_accelerator(config)
    weights = OmegaConf.to_container(config.model.loss_weights)
    validator = Validator(
        task=CaptionTask(captioner, weights=weights, tokenizer=template.tokenizer),
        loader=accelerator.prepare(loader),
        samples=dataset.samples,
        predictor=Predictor(captioner, template, dataset.aligner, Decoding(max_length=3), with_emotions=True),
        tracker=Tracker(None),
        strict=True,
        pictures=0,
        captions=3,
        limit_batches=limit,
    )
    return validator.measure(captioner, accelerator, 0, []) | {"order": in_order(validator, accelerator)}


def in_order(validator: Validator, accelerator: Accelerator) -> list[str]:
    """Return the ids of five predictions, gathered from all processes."""
    batches = [[0, 1], [2, 3], [4]][accelerator.process_index :: accelerator.num_processes]
    own = [Prediction(f"id{i}", None, None, "", -1.0) for batch in batches for i in batch]
    return [prediction.id for prediction in validator._in_order(own, accelerator)]


def half(rank: int, port: int, folder: Path, template, results) -> None:
    """One of two processes of a validation."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    results.put((measured(folder / str(rank), template), measured(folder / str(rank), template, limit=1)))


def test_two_processes_validate_like_one(tmp_path, template):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    processes = [fork.Process(target=half, args=(rank, port, tmp_path, template, results)) for rank in range(2)]
    for process in processes:
        process.start()
    (one, one_limited), (other, other_limited) = (results.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    alone = measured(tmp_path / "alone", template)
    orders = [found.pop("order") for found in (one, other, alone, one_limited, other_limited)]
    assert orders == [[f"id{i}" for i in range(5)]] * 5, "captions of the first images are scored, in any process"
    assert alone.keys() >= EMOTIONAL | SCORES | {"validation/emotion_accuracy"}
    assert one == other and one_limited == other_limited, "early stopping must be the same in all processes"
    assert one == pytest.approx(alone, abs=1e-6)
    limited = measured(tmp_path / "alone", template, limit=1)
    del limited["order"]
    assert one_limited == pytest.approx(limited, abs=1e-6) != one
