"""Predictions as files and tables, from a small network on real pictures."""

from __future__ import annotations

import json
import math

import pytest
import torch
from accelerate import Accelerator

from data.emotions import EMOTIONS, INDEX
from data.loaders import make_loader
from errors import UserError
from model.captioner import Captioner
from model.generation import Decoding
from tests.tiny import make_aligner, make_captioner, make_dataset
from trainer.predictions import max_share, table, write_predictions
from trainer.predictor import Predictor

DECODING = Decoding(strategy="greedy", max_length=5, temperature=1.0, top_p=1.0, top_k=None, beam_width=1, seed=0)


@pytest.fixture(scope="module")
def captioner(template):
    return make_captioner(template, gates=0.7)


@pytest.fixture
def predict(tmp_path, template, captioner):
    """Predicts the first `count` pictures into tmp_path/out/predictions.jsonl, two at a time."""
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
        loader, _ = make_loader(dataset, batch_size=2, num_workers=0, shuffle=False)
        predictor = Predictor(network, template, make_aligner(template), DECODING, with_emotions, **(settings or {}))
        return write_predictions(
            path,
            loader=loader,
            samples=dataset.samples,
            predictor=predictor,
            accelerator=Accelerator(cpu=True),
            skipped=[] if skipped is None else skipped,
            strict=strict,
            **options,
        )

    call.path, call.samples = path, dataset.samples
    return call


def test_a_row_says_everything_of_its_picture(predict):
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


def test_the_file_holds_the_rows_and_no_part_is_left(predict):
    rows = predict()
    assert [json.loads(line) for line in predict.path.read_text(encoding="utf-8").splitlines()] == rows
    assert [path.name for path in predict.path.parent.iterdir()] == ["predictions.jsonl"]


def test_the_emotion_that_is_asked_for_changes_the_reason_and_not_the_distribution(predict, template):
    own, asked = predict(), predict(emotion=INDEX["fear"])
    for a, b in zip(own, asked, strict=True):
        assert b["emotion"] == "fear" and b["asked_emotion"] is True
        assert b["text"].startswith("the emotion is fear because")
        assert b["emotion_distribution"] == pytest.approx(a["emotion_distribution"], abs=1e-5)
        assert max_share(b) == b["emotion_distribution"][INDEX["fear"]]


def test_a_model_without_emotions_says_only_what_it_sees(predict):
    for row in predict(with_emotions=False):
        assert row["emotion"] is None and row["emotion_distribution"] is None
        assert row["text"] == row["explanation"]


def test_a_row_has_the_vad_the_reasons_and_the_temperature_that_there_are(predict, template):
    bare = predict()
    assert not {"vad", "fit", "reasons", "emotion_text", "emotion_temperature"} & bare[0].keys()
    told = make_captioner(template, gates=0.7, vad__sentence=True)
    rows = predict(network=told, settings={"top_emotions": 2, "temperature": 1.5})
    assert [json.loads(line) for line in predict.path.read_text(encoding="utf-8").splitlines()] == rows
    for row in rows:
        assert [len(reason["vad"]) for reason in row["reasons"]] == [3, 3]
        first, second = row["reasons"]
        assert (first["emotion"], first["explanation"], first["vad"]) == tuple(
            row[key] for key in ("emotion", "explanation", "vad")
        )
        assert first["probability"] == max_share(row) > second["probability"]
        assert row["emotion_temperature"] == 1.5


def test_only_so_many_batches_as_asked(predict):
    assert [row["id"] for row in predict(limit_batches=2)] == ["id0", "id1", "id2", "id3"]


def test_predicting_changes_no_weight_and_keeps_no_graph(predict, captioner):
    before = [p.clone() for p in captioner.parameters()]
    predict()
    assert all(torch.equal(a, b) for a, b in zip(before, captioner.parameters(), strict=True))
    assert all(p.grad is None for p in captioner.parameters())


def test_a_broken_picture_is_left_out_and_listed(predict):
    predict.samples[1].path.write_bytes(b"no picture")
    skipped = []
    rows = predict(skipped=skipped)
    assert [row["id"] for row in rows] == ["id0", "id2", "id3", "id4"]
    assert [(s.id, s.path) for s in skipped] == [("id1", predict.samples[1].path)]
    assert skipped[0].reason


def test_what_was_predicted_before_a_fault_is_kept(predict):
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
    assert not part.exists(), "the next run takes its place"


# --- the table on screen ---------------------------------------------------------------------------------------------


def shown(name: str, emotion: str | None, share: float, text: str) -> dict:
    shares = [0.0] * 9
    if emotion is not None:
        shares[INDEX[emotion]] = share
    return {"image": f"/far/away/{name}", "emotion": emotion, "emotion_distribution": shares, "explanation": text}


def test_the_table_is_aligned():
    text = table(
        [
            shown("a.png", "awe", 0.5, "the sky is vast"),
            shown("monet.jpg", "something else", 0.256, "of nothing"),
        ]
    )
    assert text.splitlines() == [
        "a.png      awe 50%             the sky is vast",
        "monet.jpg  something else 26%  of nothing",
    ]


def test_the_table_of_a_model_without_emotions_has_no_empty_column():
    assert table([shown("a.png", None, 0, "a boat")]) == "a.png  a boat"


def test_further_reasons_stand_below_their_picture():
    row = shown("a.png", "awe", 0.5, "the sky is vast")
    second = {"emotion": "something else", "probability": 0.256, "explanation": "it is grey"}
    row["reasons"] = [{"emotion": "awe", "probability": 0.5, "explanation": "the sky is vast"}, second]
    assert table([row, shown("b.png", "fear", 1, "a storm")]).splitlines() == [
        "a.png  awe 50%             the sky is vast",
        "       something else 26%  it is grey",
        "b.png  fear 100%           a storm",
    ]


def test_vad_is_a_column_that_says_its_scale():
    rows = [shown("a.png", "awe", 0.5, "the sky is vast"), shown("b.png", "fear", 1, "a storm")]
    rows[0]["vad"], rows[1]["vad"] = [0.123, -1, -0.001], [1, 0.5, 0.25]
    rows[1]["reasons"] = [{}, {"emotion": "awe", "probability": 0.004, "explanation": "", "vad": [0, 0, 0]}]
    head, *lines = table(rows).splitlines()
    assert lines == [
        "a.png  awe 50%    +0.12 -1.00 +0.00  the sky is vast",
        "b.png  fear 100%  +1.00 +0.50 +0.25  a storm",
        "       awe <1%    +0.00 +0.00 +0.00",
    ]
    assert head.strip() == "V / A / D (−1..1)" and head.index("V") == lines[0].index("+")


def test_an_emotion_that_is_none_of_the_nine_is_shown_as_it_was_written():
    row = shown("a.png", None, 0, "it is calm")
    assert table([{**row, "emotion_text": "peace"}]) == 'a.png  "peace"  it is calm'
    long = table([{**row, "emotion_text": "peace and quiet and all that there is"}])
    assert long.startswith('a.png  "peace and quiet') and len(long) < 60


def test_a_long_reason_goes_on_below_its_beginning(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    row = shown("a.png", "awe", 0.5, "the sky is so vast that the boat is lost")
    row["reasons"] = [
        {},
        {"emotion": "fear", "probability": 0.1, "explanation": "the boat is lost under so vast a sky"},
    ]
    assert table([row]).splitlines() == [
        "a.png  awe 50%   the sky is so vast that the boat",
        "                 is lost",
        "       fear 10%  the boat is lost under so vast a",
        "                 sky",
    ]


def test_the_table_of_nothing_says_so():
    assert table([]) == "no picture"
