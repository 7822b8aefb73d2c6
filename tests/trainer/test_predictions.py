"""Writing predictions of a small network on real images."""

from __future__ import annotations

import json
import math

import pytest
import torch
from accelerate import Accelerator

from common.errors import UserError
from common.files import write_json
from data.emotions import EMOTIONS, INDEX
from data.loaders import make_loader
from model.captioner import Captioner
from model.decoding.generation import Decoding
from tests.helpers.tiny import make_aligner, make_captioner, make_dataset
from trainer.prediction.predictor import Predictor
from trainer.prediction.resume import Unfinished
from trainer.prediction.writer import write_json_lines_as_list, write_predictions
from trainer.report.predictions_table import max_share

DECODING = Decoding(strategy="greedy", max_length=5, temperature=1.0, top_p=1.0, top_k=None, beam_width=1, seed=0)


@pytest.fixture(scope="module")
def captioner(template):
    return make_captioner(template, gates=0.7)


@pytest.fixture
def predict(tmp_path, template, captioner):
    """Return a function that predicts five images into tmp_path/out/predictions.jsonl, two at a time."""
    dataset = make_dataset(tmp_path / "images", template, captioner, 5, texts_per_image=0)
    path = tmp_path / "out" / "predictions.jsonl"

    def call(
        *,
        with_emotions: bool = True,
        skipped: list | None = None,
        strict: bool = False,
        network: Captioner = captioner,
        settings: dict | None = None,
        **options,
    ) -> list[dict]:
        loader, sampler = make_loader(dataset, batch_size=2, num_workers=0, shuffle=False)
        predictor = Predictor(network, template, make_aligner(template), DECODING, with_emotions, **(settings or {}))
        unfinished = Unfinished(path.parent, dataset.samples, batch_size=2)
        write_predictions(
            unfinished,
            done=unfinished.begin({}, overwrite=True),
            loader=loader,
            sampler=sampler,
            predictor=predictor,
            accelerator=Accelerator(cpu=True),
            strict=strict,
            **options,
        )
        rows = list(unfinished.name_rows())
        if skipped is not None:
            skipped += unfinished.skipped_images()
        unfinished.close()
        return rows

    call.path, call.samples = path, dataset.samples
    return call


def test_row_has_prediction_and_annotations(predict):
    rows = predict()
    assert [row["id"] for row in rows] == [sample.id for sample in predict.samples]
    for row, sample in zip(rows, predict.samples, strict=True):
        shares = row["emotion_distribution"]
        assert len(shares) == 9 and all(0 <= share <= 1 for share in shares)
        assert math.fsum(shares) == pytest.approx(1, abs=1e-5)
        assert row["emotion"] == EMOTIONS[shares.index(max(shares))]
        assert max_share(row) == max(shares)
        assert row["text"] == f"the emotion is {row['emotion']} because {row['explanation']}"
        assert row["log_prob"] < 0
        assert row["image"] == str(sample.path)
        assert row["references"] == list(sample.texts)
        assert row["reference_emotions"] == [EMOTIONS[i] for i in sample.emotions]
        assert row["histogram"] == list(sample.histogram)
        assert "asked_emotion" not in row


def test_file_holds_the_rows_and_no_part_remains(predict):
    rows = predict()
    assert [json.loads(line) for line in predict.path.read_text(encoding="utf-8").splitlines()] == rows
    assert [path.name for path in predict.path.parent.iterdir()] == ["predictions.jsonl"]


def test_chosen_emotion_changes_the_explanation_not_the_distribution(predict, template):
    own, chosen = predict(), predict(emotion=INDEX["fear"])
    for a, b in zip(own, chosen, strict=True):
        assert b["emotion"] == "fear" and b["asked_emotion"] is True
        assert b["text"].startswith("the emotion is fear because")
        assert b["emotion_distribution"] == pytest.approx(a["emotion_distribution"], abs=1e-5)
        assert max_share(b) == b["emotion_distribution"][INDEX["fear"]]


def test_model_without_emotions_writes_only_the_explanation(predict):
    for row in predict(with_emotions=False):
        assert row["emotion"] is None and row["emotion_distribution"] is None
        assert row["text"] == row["explanation"]


def test_row_has_vad_reasons_and_temperature_if_available(predict, template):
    bare = predict()
    assert not {"vad", "fit", "reasons", "emotion_text", "emotion_temperature"} & bare[0].keys()
    network = make_captioner(template, gates=0.7, vad__sentence=True)
    rows = predict(network=network, settings={"top_emotions": 2, "temperature": 1.5})
    assert [json.loads(line) for line in predict.path.read_text(encoding="utf-8").splitlines()] == rows
    for row in rows:
        assert [len(reason["vad"]) for reason in row["reasons"]] == [3, 3]
        first, second = row["reasons"]
        assert (first["emotion"], first["explanation"], first["vad"]) == tuple(
            row[key] for key in ("emotion", "explanation", "vad")
        )
        assert first["probability"] == max_share(row) > second["probability"]
        assert row["emotion_temperature"] == 1.5


def test_predicting_changes_no_weights_and_keeps_no_graph(predict, captioner):
    before = [p.clone() for p in captioner.parameters()]
    predict()
    assert all(torch.equal(a, b) for a, b in zip(before, captioner.parameters(), strict=True))
    assert all(p.grad is None for p in captioner.parameters())


def test_broken_image_is_skipped_and_listed(predict):
    predict.samples[1].path.write_bytes(b"no picture")
    skipped = []
    rows = predict(skipped=skipped)
    assert [row["id"] for row in rows] == ["id0", "id2", "id3", "id4"]
    assert [(s.id, s.path) for s in skipped] == [("id1", predict.samples[1].path)]
    assert skipped[0].reason


def test_rows_before_an_error_are_kept(predict):
    predict.path.parent.mkdir()
    predict.path.write_text("an earlier test\n")
    broken = predict.samples[3].path
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(UserError) as caught:
        predict(strict=True)
    assert str(broken) in str(caught.value) and "id3" in str(caught.value)
    part = predict.path.with_name("predictions.jsonl.part")
    assert [json.loads(line)["id"] for line in part.read_text().splitlines()] == ["id0", "id1"]
    assert predict.path.read_text() == "an earlier test\n"
    predict()
    assert [path.name for path in predict.path.parent.iterdir()] == ["predictions.jsonl"]


def test_json_list_equals_that_of_write_json(tmp_path):
    rows = [{"id": "1", "text": 'a "line"\u2028\x85\nof\ttext', "shares": [0.5, 0.5], "none": []}, {"id": "ü", "x": {}}]
    for some in (rows, rows[:1]):
        write_json_lines_as_list(tmp_path / "mine.json", some)
        write_json(tmp_path / "theirs.json", some)
        assert (tmp_path / "mine.json").read_bytes() == (tmp_path / "theirs.json").read_bytes()
