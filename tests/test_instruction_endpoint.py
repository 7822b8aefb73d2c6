"""python -m data.prepare instructions --endpoint: a model that answers, fails, hangs and gives the class away."""

from __future__ import annotations

import base64
import email.utils
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from data.emotions import EMOTIONS
from data.images import MAX_PIXELS
from data.prepare.__main__ import main
from data.prepare.instructions.asking import judged
from data.prepare.instructions.endpoint import Endpoint, NoAnswer, Refused
from data.prepare.instructions.pictures import data_url
from errors import UserError
from tests.fake_model import Answer, Asked, FakeModel, both, describe
from tests.folders import write_emotions
from tests.instruction_data import answer_of, conversations, write_data, write_picture

ROOT = Path(__file__).resolve().parent.parent
KEY = "sk-a-key-that-nobody-may-see"


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
    """All that a run leaves, without the order in which answers came."""
    found = {path.name: path.read_bytes() for path in out.iterdir()}
    found["answers_train.jsonl"] = b"\n".join(sorted(found["answers_train.jsonl"].splitlines()))
    return found


def endpoint(model: FakeModel, **changes) -> Endpoint:
    return Endpoint(model.url, **{"model": "fake", "timeout": 5.0, "retries": 2, "wait": 0.01, **changes})


TURNS = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
]


def first_fails(*answers: Answer | None):
    """The first requests get these answers, all others a good one."""
    return lambda asked: answers[asked.number] if asked.number < len(answers) else describe(asked)


# --- a run


def test_three_kinds_of_each_picture(tmp_path, capfd):
    with FakeModel() as model:
        assert run(tmp_path / "out", write_data(tmp_path, 5), model) == 0
    talks = conversations(tmp_path / "out")
    assert [talk["id"] for talk in talks] == [
        f"id{number}-0-{kind}" for number in range(5) for kind in ("categorical", "reasoning", "observation")
    ]
    sources = {"categorical": "annotation", "reasoning": "model", "observation": "model"}
    for talk in talks:
        assert talk["label"] == "sadness" and talk["source"] == sources[talk["kind"]]
    categorical, reasoning, observation = map(answer_of, talks[:3])
    assert categorical == "sadness"
    assert reasoning.startswith("because the colour number") and observation.startswith("A flat field")
    manifest = json.loads((tmp_path / "out/manifest_train.json").read_text(encoding="utf-8"))
    assert manifest["usage"] == {"tokens_asked": 500, "tokens_answered": 100}
    assert manifest["model"]["model"] == "fake" and manifest["left_out"] == {}
    assert "500 in + 100 out tokens" in capfd.readouterr().err


def test_pictures_of_two_emotions_without_texts(tmp_path):
    root = write_emotions(tmp_path / "two", ("positive", "negative"), {"train": 2})
    keys = ["preset=emotion_folder", f"dataset.root={root}", f"dataset.validation_ds.visual_dir={root}/train"]
    with FakeModel() as model:
        assert run(tmp_path / "out", keys, model) == 0
    talks = conversations(tmp_path / "out")
    assert len(model.asked) == 4 and len(talks) == 12
    for asked in model.asked:
        text = asked.turns[1]["content"][1]["text"]
        assert "(out of: negative or positive)" in text and "sad" not in text


def test_what_is_asked(tmp_path):
    with FakeModel() as model:
        run(tmp_path / "out", write_data(tmp_path, 2), model)
    assert len(model.asked) == 2  # one for each picture
    for asked in model.asked:
        assert asked.path == "/v1/chat/completions" and asked.headers["Authorization"] == f"Bearer {KEY}"
        assert asked.body["temperature"] == 0 and asked.body["max_tokens"] == 400
        assert asked.body["response_format"] == {"type": "json_object"} and asked.body["model"] == "fake"
        text = asked.turns[1]["content"][1]["text"]
        assert '"sadness"' in text and "saddened" in text and "JSON" in text
        assert all(label in text for label in EMOTIONS)
    assert {asked.picture for asked in model.asked} == {
        path.read_bytes() for path in (tmp_path / "images/Style").iterdir()
    }


def test_the_key_is_nowhere(tmp_path, capfd):
    """Not even where the server repeats it."""

    def repeat(asked: Asked) -> Answer:
        said = asked.headers["Authorization"]
        return both(f"A wall with {said} on it.", "The wall is bare.") if asked.number < 2 else Answer(said, 401)

    with FakeModel(repeat) as model:
        assert run(tmp_path / "out", write_data(tmp_path, 4), model, "--parallel", 1) == 2
    output = "".join(capfd.readouterr())
    assert "[key]" in output and KEY not in output
    assert any("[key]" in path.read_text() for path in (tmp_path / "out").iterdir())
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_without_a_key_none_is_sent(tmp_path, monkeypatch):
    monkeypatch.delenv("EMOSCRIBE_API_KEY")
    with FakeModel() as model:
        run(tmp_path / "out", write_data(tmp_path, 1), model)
    assert "Authorization" not in model.asked[0].headers


# --- answers that cannot be used


def test_a_leak_is_asked_for_again(tmp_path):
    leak = both("A Saddened woman.", "She is alone.")
    with FakeModel(first_fails(leak)) as model:
        assert run(tmp_path / "out", write_data(tmp_path, 1), model) == 0
    first, second = model.asked
    assert second.turns[:2] == first.turns
    assert second.turns[2] == {"role": "assistant", "content": leak.text} and '"Saddened"' in second.turns[3]["content"]
    talks = conversations(tmp_path / "out")
    assert len(talks) == 3 and all("adden" not in answer_of(talk) for talk in talks)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (both("A lonely tree.", "It looks so sad."), "the model names the emotion"),
        (Answer("A lonely tree, that is all."), "the model's answer has another form"),
    ],
)
def test_what_stays_unusable_is_dropped_and_counted(tmp_path, answer, reason):
    with FakeModel(lambda asked: answer) as model:
        assert run(tmp_path / "out", write_data(tmp_path, 2), model, "--tries", 2) == 0
    assert len(model.asked) == 4
    assert left_out(tmp_path / "out") == {f"observation: {reason}": 2, f"reasoning: {reason}": 2}
    assert [talk["kind"] for talk in conversations(tmp_path / "out")] == ["categorical"] * 2


GOOD = {"observation": "o o", "reasoning": "r r"}


@pytest.mark.parametrize(
    ("text", "usable"),
    [
        (json.dumps(GOOD), True),
        (f"```json\n{json.dumps(GOOD)}\n```", True),
        (f"Here you are: {json.dumps(GOOD)}", False),
        (json.dumps(GOOD)[:-1], False),
        (json.dumps([GOOD]), False),
        (json.dumps(list(GOOD.items())), False),
        (json.dumps({**GOOD, "emotion": "x"}), False),
        (json.dumps({**GOOD, "reasoning": ["r"]}), False),
        (json.dumps({**GOOD, "reasoning": "  "}), False),
        (json.dumps({**GOOD, "reasoning": "r " * 9000}), False),
        ('{"observation": "a", "observation": "b", "reasoning": "c"}', False),
        (json.dumps({**GOOD, "reasoning": "a f\u200bearful \x1b[2J"}), False),
        (r'{"observation": "a \ud800", "reasoning": "c"}', False),
        ("[" * 100_000, False),
        ("", False),
    ],
)
def test_the_form_of_an_answer(text, usable):
    problem, found = judged(text, "awe")
    assert (problem == "") is usable
    assert not usable or found == GOOD


@pytest.mark.parametrize("label", EMOTIONS)
def test_leaks_are_seen_in_both_texts(label):
    for texts in (("The bare tree.", f"It is {label}."), (f"{label.upper()} in a tree.", "It is bare.")):
        assert judged(both(*texts).text, label)[0] == "the model names the emotion"


def test_a_picture_that_is_gone_is_counted_and_not_asked_about(tmp_path):
    keys = write_data(tmp_path, 3)
    (tmp_path / "images/Style/picture 1.png").write_bytes(b"no picture")
    with FakeModel() as model:
        assert run(tmp_path / "out", keys, model) == 0
    assert len(model.asked) == 2
    assert left_out(tmp_path / "out") == {f"{k}: the image cannot be opened": 1 for k in ("observation", "reasoning")}
    (tmp_path / "images/Style/picture 2.png").unlink()
    with FakeModel() as model:
        assert run(tmp_path / "other", keys, model) == 0
    assert left_out(tmp_path / "other")["image not found"] == 1


# --- faults of the server


@pytest.mark.parametrize(
    "faults",
    [
        [Answer("slow down", 429, headers=(("Retry-After", "0.2"),))],
        [Answer("slow down", 429, headers=(("Retry-After", email.utils.formatdate(0, usegmt=True)),))],
        [Answer("broken", 500), Answer("away", 503)],
        [Answer(content="<html>a proxy</html>"), Answer(content='{"choices": []}')],
        [Answer(content="")],
    ],
)
def test_what_may_pass_is_tried_again(faults):
    with FakeModel(first_fails(*faults)) as model:
        started = time.monotonic()
        assert "flat field" in endpoint(model).complete(TURNS, max_tokens=9).text
    assert len(model.asked) == len(faults) + 1
    assert time.monotonic() - started > (0.2 if dict(faults[0].headers).get("Retry-After") == "0.2" else 0)


def test_a_server_that_hangs_is_left_and_asked_again():
    with FakeModel(first_fails(None)) as model:
        started = time.monotonic()
        endpoint(model, timeout=0.3).complete(TURNS, max_tokens=9)
        assert 0.3 < time.monotonic() - started < 3
    with (
        FakeModel(lambda asked: None) as model,
        pytest.raises(NoAnswer, match=r"does not answer within 0.2 s, asked 3"),
    ):
        endpoint(model, timeout=0.2).complete(TURNS, max_tokens=9)


def test_a_server_that_answers_byte_by_byte_is_left():
    with FakeModel(lambda asked: Answer("slow", pause=0.05)) as model:
        started = time.monotonic()
        with pytest.raises(NoAnswer, match="does not answer within"):
            endpoint(model, timeout=0.3, retries=0).complete(TURNS, max_tokens=9)
        assert time.monotonic() - started < 1.5


def test_each_retry_waits_twice_as_long_as_the_one_before():
    with FakeModel(first_fails(Answer("", 500), Answer("", 500))) as model:
        started = time.monotonic()
        endpoint(model, wait=0.15).complete(TURNS, max_tokens=9)
        assert time.monotonic() - started >= 0.15 + 0.3


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status):
    with FakeModel() as other:
        sent_on = Answer("", status, headers=(("Location", f"{other.url}/elsewhere"),))
        with FakeModel(lambda asked: sent_on) as model, pytest.raises(UserError, match="is not followed"):
            endpoint(model).complete(TURNS, max_tokens=9)
        assert not other.asked and not other.fetched


def test_a_server_that_sends_without_end_is_left():
    with FakeModel(lambda asked: Answer(content=" " * (1 << 23))) as model, pytest.raises(NoAnswer, match="more than"):
        endpoint(model, retries=0).complete(TURNS, max_tokens=9)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer("no such key", 401), "EMOSCRIBE_API_KEY"),
        (Answer("not for you", 403), "does not allow this"),
        (Answer("pay", 402), "wants to be paid"),
        (Answer("no image input", 400), "check that fake takes pictures"),
        (Answer("what model?", 404), "no such address or model"),
        (Answer("too much", 413), "--max-side"),
        (Answer("", 307, headers=(("Location", "https://elsewhere.example/v1"),)), "sends on to elsewhere.example"),
        (Answer("", 302, headers=(("Location", "file:///etc/passwd"),)), "which is not followed"),
        (Answer("tomorrow", 429, headers=(("Retry-After", "86400"),)), "asks to wait 86,400 s"),
    ],
)
def test_what_will_not_pass_ends_the_run_with_a_sentence(tmp_path, capsys, answer, words):
    with FakeModel(lambda asked: answer) as model:
        assert run(tmp_path / "out", write_data(tmp_path, 9), model, "--parallel", 1) == 2
    assert len(model.asked) <= 2  # 400 once more without response_format
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and answer.text in error


def test_an_unreachable_server_is_told_at_once(tmp_path, capsys):
    with FakeModel() as model:
        pass
    assert run(tmp_path / "out", write_data(tmp_path, 2), model) == 2
    assert "cannot be reached" in capsys.readouterr().err


def test_a_server_that_is_away_ends_the_run_and_what_it_said_stays(tmp_path, capsys):
    keys = write_data(tmp_path, 9)
    options = ("--parallel", 1, "--retries", 0)
    with FakeModel(lambda asked: describe(asked) if asked.number < 4 else Answer("away", 503)) as model:
        assert run(tmp_path / "out", keys, model, *options) == 2
        assert len(model.asked) == 4 + 3
    error = capsys.readouterr().err
    assert "3 pictures in a row" in error and "4 answers are kept" in error


def test_pictures_without_an_answer_are_asked_about_by_the_next_run(tmp_path):
    keys = write_data(tmp_path, 5)
    with FakeModel(lambda asked: Answer("", 500) if asked.number == 2 else describe(asked)) as model:
        assert run(tmp_path / "out", keys, model, "--parallel", 1, "--retries", 0) == 1
        assert len(conversations(tmp_path / "out")) == 5 + 2 * 4
        assert "the same command asks again" in next(iter(left_out(tmp_path / "out")))
        assert run(tmp_path / "out", keys, model) == 0
    assert len(model.asked) == 6 and len(conversations(tmp_path / "out")) == 15


def test_a_picture_that_the_server_refuses_is_dropped(tmp_path):
    keys = write_data(tmp_path, 6)
    naked = write_picture(tmp_path / "images/Style/picture 3.png", 3).read_bytes()
    with FakeModel(lambda asked: Answer("content_filter", 400) if asked.picture == naked else describe(asked)) as model:
        assert run(tmp_path / "out", keys, model, "--parallel", 1) == 0
    assert left_out(tmp_path / "out") == {f"{k}: the model refuses to answer": 1 for k in ("observation", "reasoning")}


def test_a_server_that_refuses_everything_is_not_believed(tmp_path, capsys):
    keys = write_data(tmp_path, 20)
    with FakeModel(lambda asked: describe(asked) if asked.number < 3 else Answer("no credit", 400)) as model:
        assert run(tmp_path / "out", keys, model, "--parallel", 1) == 2
        assert "no credit" in capsys.readouterr().err
    lines = (tmp_path / "out/answers_train.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 3 and "dropped" not in "".join(lines)


@pytest.mark.parametrize("said", ["response_format is not supported", "Extra inputs are not permitted"])
def test_json_mode_is_dropped_where_the_server_has_none(said):
    with FakeModel(lambda asked: Answer(said, 400) if "response_format" in asked.body else describe(asked)) as model:
        client = endpoint(model)
        for _ in range(3):
            client.complete(TURNS, max_tokens=9)
    assert ["response_format" in asked.body for asked in model.asked] == [True, False, False, False]


def test_the_other_name_of_the_limit_of_tokens():
    said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    with FakeModel(lambda asked: Answer(said, 400) if "max_tokens" in asked.body else describe(asked)) as model:
        client = endpoint(model)
        client.complete(TURNS, max_tokens=9)
        client.complete(TURNS, max_tokens=9)
    assert [asked.body.get("max_completion_tokens") for asked in model.asked] == [None, 9, 9]
    assert "response_format" in model.asked[-1].body


def test_a_refusal_of_the_model_itself():
    content = {"choices": [{"message": {"content": None, "refusal": "no"}}]}
    with FakeModel(lambda asked: Answer(content=json.dumps(content))) as model, pytest.raises(Refused):
        endpoint(model).complete(TURNS, max_tokens=9)


# --- addresses


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://models.example/v1", "--allow-http"),
        ("http://127.0.0.1.models.example/v1", "--allow-http"),
        ("ftp://localhost/v1", "an address such as"),
        ("file:///etc/passwd", "an address such as"),
        ("localhost:8000/v1", "an address such as"),
        ("https:///v1", "an address such as"),
        ("https://host:99999/v1", "an address such as"),
        ("https://host/v1\r\nX: y", "an address such as"),
        ("https://me:secret@host/v1", "must hold no password"),
    ],
)
def test_addresses_that_are_refused(url, words):
    with pytest.raises(UserError, match=words) as refused:
        Endpoint(url, model="m", timeout=1, retries=0)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "address", "shown"),
    [
        ("https://host/v1", "https://host/v1/chat/completions", "https://host/v1/chat/completions"),
        ("https://host/v1/", "https://host/v1/chat/completions", "https://host/v1/chat/completions"),
        ("http://localhost:1/v1/chat/completions", *["http://localhost:1/v1/chat/completions"] * 2),
        ("http://[::1]:8000/v1", *["http://[::1]:8000/v1/chat/completions"] * 2),
        ("https://host/v1?token=x", "https://host/v1/chat/completions?token=x", "https://host/v1/chat/completions"),
    ],
)
def test_addresses_that_are_taken(url, address, shown):
    taken = Endpoint(url, model="m", timeout=1, retries=0)
    assert (taken.address, taken.shown) == (address, shown)
    Endpoint("http://models.example", model="m", timeout=1, retries=0, allow_http=True)


def test_a_key_that_would_break_the_header_is_refused_unseen(monkeypatch):
    monkeypatch.setenv("EMOSCRIBE_API_KEY", "sk-1\r\nEvil: yes")
    with pytest.raises(UserError, match="characters that no key has") as refused:
        Endpoint("https://host", model="m", timeout=1, retries=0)
    assert "sk-1" not in str(refused.value)


# --- pictures


def opened(url: str) -> tuple[str, Image.Image, bytes]:
    head, _, data = url.partition(";base64,")
    content = base64.b64decode(data)
    return head.removeprefix("data:"), Image.open(io.BytesIO(content)), content


@pytest.mark.parametrize(
    ("name", "options", "kind", "as_it_is"),
    [
        ("a.png", {}, "image/png", True),
        ("a.jpg", {}, "image/jpeg", True),
        ("a jpeg called.png", {"format": "JPEG"}, "image/jpeg", True),
        ("a png called.jpg", {"format": "PNG"}, "image/png", True),
        ("a.webp", {}, "image/jpeg", False),
        ("a.bmp", {}, "image/jpeg", False),
        ("a.tif", {}, "image/jpeg", False),
        ("comment.jpg", {"comment": b"taken at home"}, "image/jpeg", False),
    ],
)
def test_the_media_type_is_that_of_the_bytes(tmp_path, name, options, kind, as_it_is):
    path = write_picture(tmp_path / name, 1, **options)
    found, image, content = opened(data_url(path, max_side=100, max_pixels=MAX_PIXELS))
    assert found == kind == f"image/{image.format.lower()}" and image.size == (40, 30)
    assert (content == path.read_bytes()) is as_it_is
    assert b"taken at home" not in content


def test_large_pictures_are_made_smaller_and_places_stay_here(tmp_path):
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    exif[Image.ExifTags.Base.Make] = "my camera"
    path = write_picture(tmp_path / "a.jpg", 1, exif=exif)
    _, image, content = opened(data_url(path, max_side=20, max_pixels=MAX_PIXELS))
    assert image.size == (15, 20) and not image.getexif() and b"my camera" not in content
    _, image, _ = opened(data_url(path, max_side=100, max_pixels=MAX_PIXELS))
    assert image.size == (30, 40)


# --- broken off


def launched(out: Path, keys: list[str], model: FakeModel, *options: object, **more) -> subprocess.Popen:
    words = [sys.executable, "-m", "data.prepare", *command(out, keys, model, *options)]

    def heeds_sigint() -> None:  # also where the tests run in the background, with it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(words, cwd=ROOT, start_new_session=True, preexec_fn=heeds_sigint, **more)


def wait_for(condition) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.mark.parametrize(("how", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_broken_off_it_asks_for_the_rest_and_ends_with_the_same_bytes(tmp_path, how, status):
    keys = write_data(tmp_path, 8)
    hangs = True

    def answer(asked: Asked) -> Answer | None:
        return None if hangs and asked.number >= 4 else describe(asked)

    with FakeModel(answer) as model:
        with launched(tmp_path / "out", keys, model, "--parallel", 2, stderr=subprocess.PIPE) as process:
            record = tmp_path / "out/answers_train.jsonl"
            wait_for(lambda: len(model.asked) == 6 and record.read_bytes().count(b"\n") == 5)
            process.send_signal(how)
            try:
                assert process.wait(20) == status
            finally:
                process.kill()
            assert (b"goes on from there" in process.stderr.read()) is (how == signal.SIGINT)
        assert not (tmp_path / "out/instructions_train.jsonl").exists()
        with record.open("ab") as file:
            file.write(b'{"id": "id7", "label": "sadness", "obs')  # as a kill may leave it
        before, hangs = {asked.picture for asked in model.asked[:4]}, False
        del model.asked[:]
        assert run(tmp_path / "out", keys, model) == 0
        assert len(model.asked) == 4 and before.isdisjoint(asked.picture for asked in model.asked)
        (tmp_path / "out/.lock").unlink(missing_ok=True)
        assert run(tmp_path / "whole", keys, model, "--parallel", 3) == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_finished_run_asks_nothing(tmp_path):
    keys = write_data(tmp_path, 3)
    with FakeModel() as model:
        assert run(tmp_path / "out", keys, model) == 0
        first = files(tmp_path / "out")
        assert run(tmp_path / "out", keys, model) == 0
        assert len(model.asked) == 3 and files(tmp_path / "out") == first
        assert run(tmp_path / "out", keys, model, "--limit", 1) == 0
        assert len(conversations(tmp_path / "out")) == 3
        assert run(tmp_path / "out", keys, model) == 0 and len(model.asked) == 3
        assert files(tmp_path / "out") == first


def test_answers_of_other_settings_are_not_mixed_in(tmp_path, capsys):
    keys = write_data(tmp_path, 2)
    with FakeModel() as model:
        assert run(tmp_path / "out", keys, model) == 0
        assert run(tmp_path / "out", keys, model, "--max-side", 300) == 2
    assert "answers of another max_side (1024, now 300)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"id": 7, "label": "sadness", "dropped": "x", "usage": {}}',
        b'{"id": "id0", "label": "sadness", "observation": "", "reasoning": "r", "usage": {}}',
        b'{"id": "id0", "label": "sadness", "observation": "o", "reasoning": "r", "usage": {"cost": NaN}}',
        b'{"id": "id0", "label": "sadness", "observation": "o", "usage": {}}',
    ],
)
def test_a_line_of_answers_that_is_damaged_is_asked_for_again(tmp_path, line):
    keys = write_data(tmp_path, 2)
    with FakeModel() as model:
        assert run(tmp_path / "out", keys, model) == 0
        whole, record = files(tmp_path / "out"), tmp_path / "out/answers_train.jsonl"
        head, *rows = record.read_bytes().splitlines()
        rows = [line if b'"id0"' in row else row for row in rows]
        record.write_bytes(b"\n".join([head, *rows]))
        assert run(tmp_path / "out", keys, model) == 0
        assert len(model.asked) == 3 and files(tmp_path / "out") == whole


def test_another_file_of_that_name_is_left_alone(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/answers_train.jsonl").write_text("mine\n", encoding="utf-8")
    with FakeModel() as model:
        assert run(tmp_path / "out", write_data(tmp_path, 1), model) == 2
    assert "does not hold answers of this command" in capsys.readouterr().err and not model.asked
    assert (tmp_path / "out/answers_train.jsonl").read_text(encoding="utf-8") == "mine\n"


def test_a_picture_with_another_emotion_than_before_is_asked_about_again(tmp_path):
    keys = write_data(tmp_path, 2)
    with FakeModel() as model:
        run(tmp_path / "out", keys, model)
        path = tmp_path / "annotations.json"
        entries = json.loads(path.read_text(encoding="utf-8"))
        entries["id1"]["emotions"] = ["fear"] * 3
        path.write_text(json.dumps(entries), encoding="utf-8")
        run(tmp_path / "out", keys, model)
    assert len(model.asked) == 3
    assert [talk["label"] for talk in conversations(tmp_path / "out")] == ["sadness"] * 3 + ["fear"] * 3


def test_several_at_a_time_are_quicker(tmp_path):
    keys = write_data(tmp_path, 8)

    def slow(asked: Asked) -> Answer:
        time.sleep(0.2)
        return describe(asked)

    with FakeModel(slow) as model:
        started = time.monotonic()
        assert run(tmp_path / "out", keys, model, "--parallel", 8) == 0
        assert time.monotonic() - started < 8 * 0.2
