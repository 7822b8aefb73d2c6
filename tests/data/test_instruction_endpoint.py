"""python -m data.prepare instructions --endpoint, against a local server."""

from __future__ import annotations

import base64
import io
import json
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from common.endpoint import Endpoint, Reply
from common.errors import UserError
from data.emotions import EMOTIONS
from data.images import MAX_PIXELS
from data.prepare.__main__ import main
from data.prepare.instructions.answers import judged
from data.prepare.instructions.collect import WORDS, data_url
from tests.helpers.fake_model import Answer, FakeModel, both, describe
from tests.helpers.folders import MIKELS, write_emotions
from tests.helpers.instruction_data import answer_of, conversations, write_data, write_picture

pytestmark = pytest.mark.skipif(find_spec("openai") is None, reason="pip install openai")  # it is slow to import
ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-a-key-that-must-stay-secret"
NAMES_IT = both("A lonely tree.", "It looks so sad.")
ONE_BY_ONE = ("--parallel", 1, "--retries", 0)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("EMOSCRIBE_API_KEY", KEY)


def run(out: Path, keys: list[str], model: FakeModel, *options: object) -> int:
    return main(command(out, keys, model, *options))


def command(out: Path, keys: list[str], model: FakeModel, *options: object) -> list[str]:
    words = ["instructions", *keys, "--out", out, "--endpoint", model.url, "--model", "fake", *options]
    return [str(word) for word in words]


def left_out(out: Path) -> dict[str, int]:
    return json.loads((out / "manifest_train.json").read_text(encoding="utf-8"))["left_out"]


def files(out: Path) -> dict[str, bytes]:
    """Return all files of a run, with the answers sorted."""
    found = {path.name: path.read_bytes() for path in out.iterdir()}
    found["answers_train.jsonl"] = b"\n".join(sorted(found["answers_train.jsonl"].splitlines()))
    return found


def first(*answers: Answer | None):
    """Respond to the first requests with `answers`, to all others with a usable answer."""
    return lambda request: answers[request.number] if request.number < len(answers) else describe(request)


def test_reasoning_and_observation_of_each_picture(tmp_path, capfd):
    with FakeModel() as model:
        assert run(tmp_path / "out", write_data(tmp_path, 5), model) == 0
    talks = conversations(tmp_path / "out")
    assert [(talk["id"], talk["source"]) for talk in talks[:3]] == [
        ("id0-0-categorical", "annotation"), ("id0-0-reasoning", "model"), ("id0-0-observation", "model")
    ]  # fmt: skip
    assert len(talks) == 15 and answer_of(talks[0]) == "sadness"
    assert answer_of(talks[1]).startswith("because the colour number") and answer_of(talks[2]).startswith("A flat")
    manifest = json.loads((tmp_path / "out/manifest_train.json").read_text(encoding="utf-8"))
    assert manifest["usage"] == {"tokens_answered": 100, "tokens_asked": 500} and manifest["left_out"] == {}
    assert "tokens_asked=500" in capfd.readouterr().err and len(model.requests) == 5
    for request in model.requests:
        assert request.path == "/v1/chat/completions" and request.headers["authorization"] == f"Bearer {KEY}"
        assert (
            request.body["temperature"] == 0 and request.body["max_tokens"] == 400 and request.body["model"] == "fake"
        )
        text = request.turns[1]["content"][1]["text"]
        assert "saddened" in text and "JSON" in text and all(label in text for label in EMOTIONS)


def test_key_is_in_no_output_even_if_the_server_repeats_it(tmp_path, capfd):
    repeated = both(f"A wall with {KEY} on it.", "The wall is bare.")
    with FakeModel(lambda request: repeated if request.number < 2 else Answer(KEY, 401)) as model:
        assert run(tmp_path / "out", write_data(tmp_path, 4), model, *ONE_BY_ONE) == 2
    output = "".join(capfd.readouterr())
    assert "[key]" in output and KEY not in output
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_own_wording_of_the_request(tmp_path, capsys):
    keys, wording = write_data(tmp_path, 1), tmp_path / "wording.txt"
    with FakeModel() as model:
        wording.write_text("Out of {labels}: why {label}? No {words}. {{}}\n", encoding="utf-8")
        assert run(tmp_path / "out", keys, model, "--prompt_file", wording) == 0
        text = model.requests[0].turns[1]["content"][1]["text"]
        assert (
            text.startswith("Out of amusement, awe") and "why sadness? No " in text and "{} Answer with a JSON" in text
        )
        assert run(tmp_path / "out", keys, model) == 2
        assert "answers for another wording" in capsys.readouterr().err
        assert run(tmp_path / "out", keys, model, "--prompt_file", wording) == 0 and len(model.requests) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Why?", "{label}, the emotion of the picture, is missing"),
        ("Why {label}, {emotion}?", "the placeholders are {label}, {labels}, {words}"),
        ('Why {label}? {"observation": …}', "any other brace is written twice"),
        ("Why {label} or {}?", "any other brace is written twice"),
        ("Why {label.x}?", "any other brace is written twice"),
        ("Why {label?", "any other brace is written twice"),
        (None, "there is no such file"),
    ],
)
def test_unusable_wordings(tmp_path, capsys, text, message):
    wording = tmp_path / "wording.txt"
    if text is not None:
        wording.write_text(text, encoding="utf-8")
    with FakeModel() as model:
        assert run(tmp_path / "out", write_data(tmp_path, 1), model, "--prompt_file", wording) == 2
    error = capsys.readouterr().err
    assert f"{wording}: " in error and message in error and error.count("\n") == 1 and not model.requests


def test_three_kinds_for_emotion_folders(tmp_path):
    keys = ["preset=FI", f"dataset.root={write_emotions(tmp_path / 'FI', MIKELS[:2], {'train': 3, 'val': 1})}"]
    with FakeModel() as model:
        assert run(tmp_path / "out", keys, model) == 0
    talks = conversations(tmp_path / "out")
    kinds = ("categorical", "reasoning", "observation")
    assert [(talk["kind"], talk["label"]) for talk in talks] == [
        (k, e) for e in MIKELS[:2] for _ in range(3) for k in kinds
    ]
    assert all(answer_of(talk) == talk["label"] for talk in talks if talk["kind"] == "categorical")
    assert left_out(tmp_path / "out") == {} and len(model.requests) == 6
    assert 'under "anger" (out of: amusement, anger, ' in model.requests[-1].turns[1]["content"][1]["text"]


# --- unusable answers


def test_answers_that_name_the_emotion_are_requested_again(tmp_path):
    with FakeModel(first(NAMES_IT)) as model:
        assert run(tmp_path / "out", write_data(tmp_path, 1), model) == 0
    first_turns, turns = (request.turns for request in model.requests)
    assert turns[:2] == first_turns and turns[2] == {"role": "assistant", "content": NAMES_IT.text}
    assert '"sad"' in turns[3]["content"] and len(conversations(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    ("answer", "requests", "reason"),
    [
        (NAMES_IT, 2, "the model names the emotion"),
        (Answer("A lonely tree, that is all."), 2, "the model's answer has another form"),
        (Answer(None), 2, "the model's answer has no text"),
        (
            both("A tree.", "Bare.")._replace(finish="length"),
            2,
            "the model's answer is cut off; give a larger --max-to",
        ),
        (Answer("content_filter", 400), 1, "the model refuses to answer"),
    ],
)
def test_unusable_answers_are_dropped_and_counted(tmp_path, answer, requests, reason):
    with FakeModel(lambda request: answer) as model:
        assert run(tmp_path / "out", write_data(tmp_path, 2), model, "--tries", 2) == 0
    assert len(model.requests) == 2 * requests
    assert all(key.split(": ")[1].startswith(reason) for key in left_out(tmp_path / "out"))
    assert [talk["kind"] for talk in conversations(tmp_path / "out")] == ["categorical"] * 2


GOOD = {"observation": "o o", "reasoning": "r r"}


@pytest.mark.parametrize(
    ("text", "usable"),
    [
        (f"```json\n{json.dumps(GOOD)}\n```", True),
        (f"Here you are: {json.dumps(GOOD)}", False),
        (json.dumps(GOOD)[:-1], False),
        (json.dumps(list(GOOD.items())), False),
        (json.dumps({**GOOD, "emotion": "x"}), False),
        (json.dumps({**GOOD, "reasoning": "  "}), False),
        (json.dumps({**GOOD, "reasoning": "r " * 9000}), False),
        ('{"observation": "a", "observation": "b", "reasoning": "c"}', False),
        (json.dumps({**GOOD, "reasoning": "a f\u200bearful \x1b[2J"}), False),
        ("[" * 100_000, False),
    ],
)
def test_usable_and_malformed_answers(text, usable):
    problem, found = judged(Reply(text, False, {}), "awe")
    assert (problem == "") is usable
    assert not usable or found == GOOD


# --- errors of the server


def test_rate_limits_and_server_errors_are_retried(tmp_path, monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)  # where there is no Retry-After
    faults = [Answer("slow down", 429, headers=(("Retry-After", "1.2"),)), Answer("broken", 500), None]
    with FakeModel(first(*faults)) as model:
        started = time.monotonic()
        assert run(tmp_path / "out", write_data(tmp_path, 1), model, "--timeout", 1) == 0
        assert time.monotonic() - started > 2.2
    assert len(model.requests) == 4 and len(conversations(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer("no such key", 401), "set EMOSCRIBE_API_KEY"),
        (Answer("what model?", 404), "check --endpoint and --model"),
        (Answer("insufficient_quota", 429), "no credit or quota left"),
        (Answer("no image input", 400), "check that fake accepts pictures"),
        (Answer("", 307, headers=(("Location", "/elsewhere"),)), "redirects are not followed"),
        (Answer(content="<html>a proxy</html>", headers=(("Content-Type", "text/html"),)), "no chat completion"),
        (Answer(content="{cut off"), "no chat completion"),
        (Answer(content='{"choices": []}'), "no chat completion"),
        (None, "no response within 0.3 s"),
    ],
)
def test_unusable_server_ends_the_run_with_a_sentence(tmp_path, capsys, answer, words):
    with FakeModel(lambda request: answer) as model:
        assert run(tmp_path / "out", write_data(tmp_path, 9), model, *ONE_BY_ONE, "--timeout", 0.3) == 2
    error = capsys.readouterr().err
    assert len(model.requests) == 1 and words in error and "Traceback" not in error


def test_unreachable_server(tmp_path, capsys):
    with FakeModel() as model:
        pass
    assert run(tmp_path / "out", write_data(tmp_path, 2), model, *ONE_BY_ONE) == 2
    assert "cannot be reached" in capsys.readouterr().err


def test_without_the_openai_client(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with FakeModel() as model:
        assert run(tmp_path / "out", write_data(tmp_path, 1), model) == 2
    assert "pip install openai" in capsys.readouterr().err


def test_next_run_requests_missing_answers(tmp_path):
    keys = write_data(tmp_path, 5)
    with FakeModel(lambda request: Answer("", 500) if request.number == 2 else describe(request)) as model:
        assert run(tmp_path / "out", keys, model, *ONE_BY_ONE) == 1
        assert len(conversations(tmp_path / "out")) == 5 + 2 * 4
        assert run(tmp_path / "out", keys, model) == 0
    assert len(model.requests) == 6 and len(conversations(tmp_path / "out")) == 15


def test_ten_failures_in_a_row_end_the_run(tmp_path, capsys):
    with FakeModel(lambda request: describe(request) if request.number < 4 else Answer("away", 503)) as model:
        assert run(tmp_path / "out", write_data(tmp_path, 20), model, *ONE_BY_ONE) == 2
    assert len(model.requests) == 4 + 10 and "4 answers are kept" in capsys.readouterr().err


def test_unsupported_options_are_dropped(tmp_path):
    rejected = ("response_format", "temperature", "max_tokens")

    def answer(request):
        name = next((name for name in rejected if name in request.body), None)
        return Answer(f"Unsupported parameter: '{name}'", 400) if name else describe(request)

    with FakeModel(answer) as model:
        assert run(tmp_path / "out", write_data(tmp_path, 8), model) == 0
    assert model.requests[-1].body["max_completion_tokens"] == 400 and len(conversations(tmp_path / "out")) == 24


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://models.example/v1", "--allow-http"),
        ("file:///etc/passwd", "an address such as"),
        ("https://host/v1\r\nX: y", "an address such as"),
        ("https://me:secret@host/v1", "must not contain a password"),
    ],
)
def test_refused_addresses(url, words):
    with pytest.raises(UserError, match=words) as refused:
        Endpoint(url, model="m", timeout=1, retries=0, max_tokens=9, words=WORDS)
    assert "secret" not in str(refused.value)


def test_sent_pictures_are_small_upright_and_without_metadata(tmp_path):
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    exif[Image.ExifTags.Base.Make] = "my camera"
    path = write_picture(tmp_path / "a.jpg", 1, exif=exif)
    for side, size in ((20, (15, 20)), (100, (30, 40))):
        url = data_url(path, max_side=side, max_pixels=MAX_PIXELS)
        content = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"), validate=True)
        image = Image.open(io.BytesIO(content))
        assert (image.format, image.size) == ("JPEG", size) and not image.getexif() and b"my camera" not in content


# --- interrupted and restarted


@pytest.mark.parametrize(("how", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_interrupted_run_continues_with_the_same_result(tmp_path, how, status):
    keys = write_data(tmp_path, 8)
    hangs = True
    record = tmp_path / "out/answers_train.jsonl"
    with FakeModel(lambda request: None if hangs and request.number >= 4 else describe(request)) as model:
        words = [sys.executable, "-m", "data.prepare", *command(tmp_path / "out", keys, model, "--parallel", 2)]
        with subprocess.Popen(
            words, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # often ignored
        ) as process:  # fmt: skip
            limit = time.monotonic() + 300
            while not (len(model.requests) == 6 and record.read_bytes().count(b"\n") == 5):
                assert time.monotonic() < limit
                time.sleep(0.02)
            process.send_signal(how)
            try:
                assert process.wait(120) == status
            finally:
                process.kill()
            error = process.stderr.read()
            assert (b"run the same command again" in error) is (how == signal.SIGINT) and b"Traceback" not in error
        with record.open("ab") as file:
            file.write(b'{"id": "id7", "label": "sadness", "obs')  # as left by a kill
        before, hangs = {request.picture for request in model.requests[:4]}, False
        del model.requests[:]
        assert run(tmp_path / "out", keys, model) == 0
        assert len(model.requests) == 4 and before.isdisjoint(request.picture for request in model.requests)
        assert run(tmp_path / "whole", keys, model, "--parallel", 3) == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_answers_are_reused_only_for_the_same_settings_and_emotion(tmp_path, capsys):
    keys = write_data(tmp_path, 2)
    with FakeModel() as model:
        assert run(tmp_path / "out", keys, model) == run(tmp_path / "out", keys, model) == 0
        assert len(model.requests) == 2
        assert run(tmp_path / "out", keys, model, "--max-side", 300) == 2
        assert "another max_side (1024, now 300)" in capsys.readouterr().err
        path = tmp_path / "annotations.json"
        entries = json.loads(path.read_text(encoding="utf-8"))
        entries["id1"]["emotions"] = ["fear"] * 3
        path.write_text(json.dumps(entries), encoding="utf-8")
        assert run(tmp_path / "out", keys, model) == 0 and len(model.requests) == 3
    assert [talk["label"] for talk in conversations(tmp_path / "out")] == ["sadness"] * 3 + ["fear"] * 3


def test_other_file_of_that_name_is_not_replaced(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/answers_train.jsonl").write_text("mine\n", encoding="utf-8")
    with FakeModel() as model:
        assert run(tmp_path / "out", write_data(tmp_path, 1), model) == 2
    assert "does not contain answers of this command" in capsys.readouterr().err and not model.requests
    assert (tmp_path / "out/answers_train.jsonl").read_text(encoding="utf-8") == "mine\n"
