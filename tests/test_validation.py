"""Captions that are scored between epochs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.schema import Sample
from tests.tiny import run_mode, write_splits
from trainer.predictor import Prediction
from trainer.validation import CAPTION_SHOWN, caption_metrics

SCORES = {f"validation/{name}" for name in CAPTION_SHOWN}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """4 images to validate on, two to a batch."""
    keys = write_splits(tmp_path_factory.mktemp("splits"))
    return keys | {"dataset.validation_ds.batch_size": 2, "trainer.test.max_length": 12}


def validated(keys: dict, folder: Path, count: int) -> dict:
    run_mode("train", {**keys, "trainer.exp_dir": folder, "name": "run", "trainer.num_validation_captions": count})
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return next(line for line in lines if "validation/loss" in line)


@pytest.mark.parametrize("count", [3, 100])
def test_scores_of_the_first_captions_are_logged(keys, tmp_path, capsys, count):
    found = validated(keys, tmp_path, count)
    assert found.keys() >= SCORES
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in SCORES:
        assert events.Scalars(name)[-1].value == pytest.approx(found[name], rel=1e-6)
    assert "BLEU-4" in capsys.readouterr().err


def test_they_change_nothing_else(keys, tmp_path):
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


def test_images_without_a_text_do_not_count(samples):
    with_third = caption_metrics(predicted(["a wide grey sky", "nothing", "a boat"]), samples)
    assert with_third == caption_metrics(predicted(["a wide grey sky", "nothing"]), samples)
    assert caption_metrics([], samples) == {}
    assert caption_metrics(predicted(["", "", ""])[2:], samples) == {}
