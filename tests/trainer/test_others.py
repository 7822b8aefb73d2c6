"""rank_by=pragmatic: of several draws the one from which a listener would know the picture among others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import UserError
from data.collate import collate, collate_texts
from data.emotions import EMOTIONS
from data.schema import Batch, Sample
from model.captioner import Captioner
from model.decoding.generation import Decoding
from model.decoding.scoring import text_log_probs
from tests.helpers.tiny import (
    GPT2,
    make_aligner,
    make_captioner,
    make_dataset,
    run_mode,
    sentences,
    video_batch,
    write_run,
    write_splits,
)
from trainer.prediction import others as module
from trainer.prediction.others import FILE, PER_EMOTION, Chosen, Others, read_others
from trainer.prediction.predictor import LISTENED, Predictor
from trainer.runs.retention import entries, write_sums

LARGE_WEIGHTS = {**GPT2, "initializer_range": 0.35}
TEXTS = (0, 0, 3, 3, 5)  # their emotions
PICTURES = (0, 0, 3, 3, 3, 7)  # of the other pictures; none for 5
KINDS = {"both": {}, "no resampler": {"enable_resampler_xattn": False}, "no mapper": {"enable_mapper": False}}


@pytest.fixture(scope="module", params=KINDS)
def captioner(request, template) -> Captioner:
    return make_captioner(template, gates=0.9, seed=5, text__config=LARGE_WEIGHTS, **KINDS[request.param]).eval()


@pytest.fixture(scope="module")
def batch(tmp_path_factory, template, captioner) -> Batch:
    count = len(PICTURES)
    dataset = make_dataset(tmp_path_factory.mktemp("pictures"), template, captioner, count, texts_per_image=0)
    return collate([dataset[0, i] for i in range(count)])


@pytest.fixture
def texts(template) -> Batch:
    return collate_texts(sentences(len(TEXTS), seed=3), TEXTS, template=template, aligner=make_aligner(template))


@torch.no_grad()
def others_of(captioner: Captioner, batch: Batch) -> Others:
    chosen = Chosen()
    chosen.add(
        [Sample("", Path(), ("a", "b", "c"), (8, e, e)) for e in PICTURES],
        captioner.look(batch.frames, batch.frame_mask),
    )
    return Others(**chosen.tensors())


@torch.no_grad()
@pytest.mark.parametrize("lengths", [None, [1, 3, 2, 2, 1, 3]], ids=["pictures", "clips"])
def test_the_posterior_is_that_of_reading_each_text_for_each_picture(
    captioner, batch, texts, lengths, template, monkeypatch
):
    monkeypatch.setattr(module, "AT_ONCE", 3)
    batch = batch if lengths is None else video_batch(batch, lengths)
    visual, rows = captioner.look(batch.frames, batch.frame_mask), torch.tensor([4, 0, 2, 3])
    own = text_log_probs(captioner, visual.rows(torch.tensor([5] * len(TEXTS))), texts)
    found = others_of(captioner, batch).log_posteriors(captioner, texts, rows, own)
    for row, posterior in zip(rows.tolist(), found, strict=True):
        scores = [own[row]]
        for i in (i for i, emotion in enumerate(PICTURES) if emotion == TEXTS[row]):
            mask = batch.frame_mask[i : i + 1]
            alone = captioner.look(batch.frames[i : i + 1, : int(mask.sum())], mask[:, : int(mask.sum())])
            text = collate_texts([sentences(5, seed=3)[row]], [TEXTS[row]], template=template,
                                 aligner=make_aligner(template))  # fmt: skip
            scores.append(text_log_probs(captioner, alone, text)[0])
        assert posterior == pytest.approx(float(torch.stack(scores).log_softmax(0)[0]), abs=0.05)  # half precision
    assert found[0] == 0, "an emotion without other pictures"
    assert found[1:].std() > 0.5, "the texts must differ for this test"


@torch.no_grad()
def test_without_emotions_a_text_is_compared_with_all(captioner, batch, template):
    others, aligner = others_of(captioner, batch), make_aligner(template)
    texts = collate_texts(sentences(1), [None], template=template, aligner=aligner)
    visual = captioner.look(batch.frames, batch.frame_mask)
    each = text_log_probs(captioner, visual, texts, rows=torch.zeros(len(PICTURES), dtype=torch.long))
    own = each[:1] - 1
    found = others.log_posteriors(captioner, texts, torch.tensor([0]), own)
    assert float(found) == pytest.approx(float(torch.cat([own, each]).log_softmax(0)[0]), abs=0.05)


@torch.no_grad()
def test_of_the_draws_likeliest_by_the_picture_the_most_telling_is_kept(captioner, batch, template, monkeypatch):
    draws = 4 * LISTENED
    decoding = Decoding(strategy="nucleus", max_length=8, top_p=0.95, seed=3)
    parts = (captioner, template, make_aligner(template), decoding, True)
    others = others_of(captioner, batch)
    monkeypatch.setattr(Others, "log_posteriors", lambda *given, real=Others.log_posteriors: 20 * real(*given))
    predictor = Predictor(*parts, best_of=draws, rank_by="pragmatic", others=others)
    found, changed = predictor(batch, emotion=3), 0
    visual = captioner.look(batch.frames, batch.frame_mask)
    drawn = predictor.draw(visual, batch, [3] * len(found), draws)
    for image, (prediction, own) in enumerate(zip(found, drawn, strict=True)):
        sentence = collate_texts(own, [3] * draws, template=template, aligner=make_aligner(template))
        rows = visual.rows(torch.full((draws,), image))
        seen, blind = (text_log_probs(captioner, view, sentence) for view in (rows, rows.without_picture()))
        likeliest = (seen - blind).topk(4).indices
        fits = (seen - blind)[likeliest] + others.log_posteriors(captioner, sentence, likeliest, seen)
        assert prediction.explanation == own[likeliest[fits.argmax()]]
        assert prediction.fit == pytest.approx(float(fits.max()), abs=1e-3)
        changed += int(fits.argmax() != 0)
    assert changed, "the first must lose at times for this test"


def test_a_few_pictures_of_each_emotion_are_kept():
    visual = type("Visual", (), {"prefix": torch.zeros(1, 1, 2), "prefix_mask": torch.ones(1, 1).bool(), "bridge": {}})
    chosen = Chosen()
    for emotions in [(1, 1, 0)] * (PER_EMOTION + 1) + [(0,), ()]:
        chosen.add([Sample("", Path(), (), emotions)], visual)
    assert chosen.tensors()["emotion"].tolist() == [1] * PER_EMOTION + [0, 0]


def test_the_file_is_written_at_the_end_of_a_training_and_read_by_predict(tmp_path, capsys):
    keys = write_splits(tmp_path, train=120)
    run = write_run(keys, "run")
    (folder,) = [entry.folder for entry in entries(run / "checkpoints") if (entry.folder / FILE).exists()]
    assert {*load_file(folder / FILE)} == {"prefix", "prefix_mask", "latents", "emotion"}
    predict = {"pretrained_name": run, "image": keys["dataset.test_ds.visual_dir"], "trainer.exp_dir": tmp_path / "p"}
    predict |= {"trainer.test.decoding_strategy": "nucleus", "trainer.test.best_of": 8}
    for rank_by in ("picture", "pragmatic"):
        run_mode("predict", {**predict, "trainer.test.rank_by": rank_by, "name": rank_by})
    by_picture, found = (
        json.loads((tmp_path / "p" / name / "predict" / "predictions.json").read_text(encoding="utf-8"))
        for name in ("picture", "pragmatic")
    )
    assert len(found) == 5 and all(a["fit"] < b["fit"] for a, b in zip(found, by_picture, strict=True))
    (folder / FILE).unlink()
    write_sums(folder)
    with pytest.raises(UserError, match=r"rank_by=pragmatic needs .*others\.safetensors.*rank_by=picture"):
        run_mode("predict", {**predict, "trainer.test.rank_by": "pragmatic", "name": "lost"})


def test_a_file_of_another_network_is_refused(captioner, batch, tmp_path):
    tensors = {key: value for key, value in vars(others_of(captioner, batch)).items() if value is not None}
    read = {"trained": EMOTIONS, "captioner": captioner}
    save_file(tensors, tmp_path / FILE)
    found = read_others(tmp_path, labels=[EMOTIONS[3], EMOTIONS[0]], **read)
    assert found.emotion.tolist() == [1, 1, 0, 0, 0, -2], "indices of the prediction's labels"
    for wrong in (
        {"prefix": tensors["prefix"][..., :3].clone()},
        {"emotion": torch.full((6,), 40)},
        {"spare": torch.ones(1)},
    ):
        save_file({**tensors, **wrong}, tmp_path / FILE)
        with pytest.raises(UserError, match="belongs to another network"):
            read_others(tmp_path, labels=EMOTIONS, **read)
