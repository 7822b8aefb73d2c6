"""mode=serve: the queue in front of the network, and the HTTP interface."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from omegaconf import OmegaConf
from PIL import Image

from common.errors import UserError
from common.reading import ROOT
from tests.helpers.tiny import run_mode, write_pictures
from tests.trainer.test_interface import write_diverse_run
from trainer.interface import EmoScribe, Explanation
from trainer.serve.api import build_api
from trainer.serve.page import shares_of, texts_of
from trainer.serve.worker import Busy, Worker


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_diverse_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def model(run) -> EmoScribe:
    return EmoScribe.from_pretrained(run, device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 9)


@pytest.fixture
def worker(model):
    worker = Worker(model, waiting=16, batch_size=4)
    yield worker
    worker.close()


def settings(**changes):
    return OmegaConf.merge(OmegaConf.load(ROOT / "config.yaml").serve, changes)


@pytest.fixture
def client(model):
    with TestClient(build_api(Worker(model, waiting=64, batch_size=4), settings())) as client:
        yield client


class Blocker:
    """Holds the worker until it is told to go on."""

    def __init__(self, worker: Worker) -> None:
        self.go, began = threading.Event(), threading.Event()
        self.result = worker.call(lambda model: (began.set(), self.go.wait(30))[1])
        assert began.wait(30)


# --- the queue -------------------------------------------------------------------------------------------------------


def test_waiting_pictures_of_equal_settings_share_a_batch(worker, model, pictures, monkeypatch):
    calls = []
    explain = EmoScribe.explain

    def spy(self, images, *, emotion=None, n=1):
        calls.append((len(images), emotion, n))
        return explain(self, images, emotion=emotion, n=n)

    monkeypatch.setattr(EmoScribe, "explain", spy)
    blocker, opened = Blocker(worker), [Image.open(path) for path in pictures]
    plain = [worker.explain(picture) for picture in opened[:5]]
    fear = [worker.explain(picture, emotion="fear") for picture in opened[:2]]
    last = worker.explain(opened[8])
    order = worker.call(lambda model: len(calls))
    blocker.go.set()
    found = [future.result(30) for future in (*plain, *fear, last)]
    assert order.result(30) == 3
    assert calls == [(4, None, 1), (2, None, 1), (2, "fear", 1)], "first come, first served; the last joins the fifth"
    monkeypatch.undo()
    for picture, result in zip([*opened[:5], *opened[:2], opened[8]], found, strict=True):
        assert result.text == model.explain(picture, emotion=result.emotion).text


def test_requests_beyond_the_limit_are_refused(model, pictures):
    worker, picture = Worker(model, waiting=2, batch_size=4), Image.open(pictures[0])
    blocker = Blocker(worker)
    waiting = [worker.explain(picture), worker.explain(picture, n=2)]
    with pytest.raises(Busy, match="2 requests are waiting"):
        worker.explain(picture)
    waiting[0].cancel()
    blocker.go.set()
    assert waiting[1].result(30).text is not None and waiting[0].cancelled()
    assert worker.explain(picture).result(30).text == waiting[1].result().text, "there is room again"
    worker.close()


def test_an_error_belongs_to_its_request(worker, pictures):
    picture = Image.open(pictures[0])
    wrong, right = worker.explain(picture, emotion="joy"), worker.explain(picture)
    broken = worker.call(lambda model: 1 / 0)
    with pytest.raises(UserError, match="'joy' is not one of"):
        wrong.result(30)
    with pytest.raises(ZeroDivisionError):
        broken.result(30)
    assert right.result(30).text is not None


def test_closing_finishes_what_waits(model, pictures):
    worker = Worker(model, waiting=8, batch_size=4)
    blocker = Blocker(worker)
    waiting = [worker.explain(Image.open(path)) for path in pictures[:6]]
    blocker.go.set()
    worker.close()
    assert all(future.done() and future.result().text is not None for future in waiting)


# --- the HTTP interface ----------------------------------------------------------------------------------------------


def test_answers_are_those_of_predict(run, client, pictures):
    run_mode("predict", {"pretrained_name": run, "image": pictures[0].parent, "trainer.device": "cpu"})
    rows = json.loads((run / "predict" / "predictions.json").read_text())
    with ThreadPoolExecutor(16) as clients:
        answers = [*clients.map(lambda path: client.post("/predict", content=path.read_bytes()), pictures * 4)]
    assert len(rows) == len(pictures) and {answer.status_code for answer in answers} == {200}
    for answer, row in zip(answers, rows * 4, strict=True):
        found = answer.json()
        assert (found["emotion"], found["explanation"]) == (row["emotion"], row["explanation"])
        assert found["emotion_distribution"] == pytest.approx(row["emotion_distribution"], abs=1e-5)
        assert not {"image", "id"} & found.keys()
    assert len({row["explanation"] for row in rows}) > 1


def test_emotion_and_number_are_parameters(client, model, pictures):
    content = pictures[1].read_bytes()
    found = client.post("/predict", content=content, params={"emotion": "awe", "n": 3}).json()
    expected = model.explain(Image.open(pictures[1]), emotion="awe", n=3)
    assert (found["emotion"], found["explanation"], found["others"]) == ("awe", expected.text, [*expected.others])
    assert client.get("/health").json() == {"status": "ok", "run": "run", "step": 2}


def test_bad_requests_have_a_sentence_each(client, pictures, tmp_path):
    content = pictures[0].read_bytes()
    Image.new("RGB", (2000, 4)).save(tmp_path / "narrow.png")
    for body, params, status, words in (
        (b"no picture", {}, 400, "its content is not a readable image"),
        (b"", {}, 400, "the file is empty"),
        (content[:-40], {}, 400, "it is damaged"),
        ((tmp_path / "narrow.png").read_bytes(), {}, 400, "too narrow"),
        (b"/etc/passwd", {}, 400, "not a readable image"),
        (content, {"emotion": "joy"}, 400, "emotion: 'joy' is not one of the nine emotions"),
        (content, {"n": 1000}, 400, "n must be a number from 1 to 32"),
        (content, {"n": "x"}, 422, "valid integer"),
    ):
        answer = client.post("/predict", content=body, params=params)
        assert answer.status_code == status and words in str(answer.json()["detail"]), (body[:20], params)
    assert client.get("/predict").status_code == 405
    assert client.post("/predict", content=content).status_code == 200, "the server goes on"


def test_limits_of_size_pixels_time_and_requests(model, pictures, tmp_path):
    image = io.BytesIO()
    Image.effect_noise((300, 300), 90).save(image, "PNG")
    limits = settings(max_megabytes=0.05, max_pixels=10_000, timeout=0.5)
    worker = Worker(model, waiting=1, batch_size=4)
    with TestClient(build_api(worker, limits)) as client:
        answer = client.post("/predict", content=image.getvalue())
        assert answer.status_code == 413 and "0.05 MB (serve.max_megabytes)" in answer.json()["detail"]
        Image.new("RGB", (200, 200)).save(tmp_path / "large.png")
        answer = client.post("/predict", content=(tmp_path / "large.png").read_bytes())
        assert answer.status_code == 400 and "the limit is 10,000" in answer.json()["detail"]
        blocker, content = Blocker(worker), pictures[0].read_bytes()
        begin = time.monotonic()
        answer = client.post("/predict", content=content)
        assert answer.status_code == 504 and "serve.timeout" in answer.json()["detail"]
        assert time.monotonic() - begin < 10
        with ThreadPoolExecutor(2) as clients:
            answers = [*clients.map(lambda _: client.post("/predict", content=content), range(2))]
        assert [answer.status_code for answer in answers].count(503) >= 1
        busy = next(answer for answer in answers if answer.status_code == 503)
        assert busy.headers["retry-after"] == "1" and "1 requests are waiting" in busy.json()["detail"]
        blocker.go.set()
        blocker.result.result(30)
        assert client.post("/predict", content=content).status_code == 200


# --- the page's own computations -------------------------------------------------------------------------------------


def explanation(text: str | None = "calm", **row) -> Explanation:
    shares = [0.5, 0.3, 0.2]
    row = {"emotion": "awe", "emotion_distribution": shares, "labels": ["awe", "fear", "joy"], "vad": None} | row
    return Explanation(text, (), row, Image.new("RGB", (8, 8)))


def test_probabilities_follow_source_and_temperature():
    found = explanation(sources={"language_model": [0.2, 0.2, 0.6], "student": [0.1, 0.8, 0.1]})
    assert shares_of(found, "both", 1.0) == pytest.approx({"awe": 0.5, "fear": 0.3, "joy": 0.2})
    assert [*shares_of(found, "language model", 1.0)] == ["joy", "awe", "fear"]
    assert shares_of(found, "expert", 1.0)["fear"] == pytest.approx(0.8)
    warm = torch.tensor([0.5, 0.3, 0.2]).log().div(2).softmax(dim=0).tolist()
    assert [*shares_of(found, "both", 2.0).values()] == pytest.approx(warm)
    cold = shares_of(explanation(emotion_distribution=[1.0, 0.0, 0.0]), "both", 0.25)
    assert cold == pytest.approx({"awe": 1.0, "fear": 0.0, "joy": 0.0})
    assert shares_of(None, "both", 1.0) == {} == shares_of(explanation(emotion_distribution=None), "both", 1.0)


def test_texts_have_no_meaning_as_markdown():
    hostile = "<img src=x onerror=alert(1)> **bold** [a](b)\n# head"
    shown = texts_of(explanation(hostile))
    assert re.sub(r"\\(.)", r"\1", shown) == hostile.replace("\n", " ")
    assert not re.search(r"(?<!\\)[<>*\[\]#]", shown)
    assert texts_of(explanation(None)) == "" and texts_of(explanation("")) == "(no words)"
    assert "a guess" in texts_of(explanation("x", unfamiliar=True))
    several = Explanation("one", ("two", "three"), explanation().row, Image.new("RGB", (8, 8)))
    assert texts_of(several) == "1. one\n2. two\n3. three"
