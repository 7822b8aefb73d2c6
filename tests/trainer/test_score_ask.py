"""python -m trainer.score ask, against a local server, and the probabilities of the labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.endpoint import Token
from data.emotions import EMOTIONS
from tests.helpers.fake_model import Answer, FakeModel, Request
from tests.helpers.instruction_data import write_data, write_picture
from trainer.prediction.file_source import read_file
from trainer.score.__main__ import main
from trainer.score.ask import EMOTION
from trainer.score.label_shares import label_of, label_shares

pytest.importorskip("openai")
KEY = "sk-a-key-that-must-stay-secret"
SAD = {"sad": 0.7, "awe": 0.2, "The": 0.05}
LABEL = Answer("sadness", tokens=(("sad", SAD), ("ness", {"ness": 1.0})))
WHY = Answer("Because the boat is alone on the sea.")
ONE_BY_ONE = ("--parallel", 1, "--retries", 0)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("EMOSCRIBE_API_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


def is_first(request: Request) -> bool:
    return len(request.turns) == 1


def answers(label: Answer = LABEL, why: Answer = WHY):
    return lambda request: label if is_first(request) else why


def run(root: Path, model: FakeModel, *options: object) -> int:
    files = ["--references", root / "annotations.json", "--images", root / "images", "--out", root / "out"]
    scoring = ["--metrics", "rouge_l", "--tokenizer", "whitespace"]
    words = ["ask", "--endpoint", model.url, "--model", "fake", *files, *scoring, *options]
    return main([str(word) for word in words])


def read(root: Path, name: str) -> dict:
    return json.loads((root / "out" / name).read_text(encoding="utf-8"))


def rows_of(root: Path) -> list[dict]:
    lines = (root / "out/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted(map(json.loads, lines), key=lambda row: row["id"])


# --- probabilities


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Awe.", "awe"),
        ("**something_else**", "something else"),
        ("The emotion is fear", "fear"),
        ("awe or fear", None),
        ("awesome", None),
        ("", None),
    ],
)
def test_label_of_an_answer(answer, label):
    assert label_of(answer, EMOTIONS) == label


def shares(*tokens: tuple[str, dict[str, float]]) -> dict[str, float] | None:
    found = label_shares([Token(*token) for token in tokens], EMOTIONS)
    assert found is None or sum(found) == pytest.approx(1)
    return found and dict(zip(EMOTIONS, found, strict=True))


def test_spellings_of_a_first_token_are_added():
    found = shares(("awe", {"awe": 0.5, " Awe": 0.2, "fear": 0.3}))
    assert (found["awe"], found["fear"], found["anger"]) == (pytest.approx(0.7), pytest.approx(0.3), 0)


def test_shared_token_of_the_answer_is_divided_by_the_next_one():
    found = shares(("a", {"a": 0.8, "fear": 0.2}), ("we", {"we": 0.75, "nger": 0.25}))
    assert found["awe"] == pytest.approx(0.6) and found["anger"] == pytest.approx(0.2) and found["amusement"] == 0


def test_longest_token_is_that_of_the_label():
    found = shares(("fear", {"fear": 0.5, "something": 0.3, "s": 0.2}))
    assert found["something else"] == pytest.approx(0.3) and found["sadness"] == pytest.approx(0.2)


def test_shared_token_that_is_not_the_answer_is_divided_equally():
    found = shares(("awe", {"awe": 0.6, "a": 0.4}))
    assert found["awe"] == pytest.approx(0.6) and found["anger"] == found["amusement"] == pytest.approx(0.2)


def test_labels_without_a_token_share_what_remains_below_the_least_alternative():
    found = shares(("awe", {"awe": 0.92}))
    assert found["awe"] == pytest.approx(0.92) and found["fear"] == pytest.approx(0.01)
    found = shares(("awe", {"awe": 0.6, "The": 0.01}))
    assert found["fear"] == pytest.approx(0.01 / 0.68)


def test_quote_before_the_label_is_skipped():
    found = shares(('"', {'"': 1.0}), ("fear", {"fear": 0.9, "awe": 0.1}), ('"', {'"': 1.0}))
    assert found["fear"] == pytest.approx(0.9) and found["awe"] == pytest.approx(0.1)


@pytest.mark.parametrize("tokens", [(), (("The", {"The": 0.9, "awe": 0.1}), (" awe", {" awe": 1.0}))])
def test_no_probabilities_of_an_answer_that_does_not_begin_with_a_label(tokens):
    assert shares(*tokens) is None


# --- the command


def test_predictions_are_written_scored_and_read_by_the_gate(tmp_path, capsys):
    write_data(tmp_path, 4)
    with FakeModel(answers()) as model:
        assert run(tmp_path, model) == 0
    rows = rows_of(tmp_path)
    assert [row["id"] for row in rows] == ["id0", "id1", "id2", "id3"]
    assert all(row["emotion"] == "sadness" and Path(row["image"]).is_file() for row in rows)
    assert rows[0]["explanation"] == "the boat is alone on the sea."
    source = read_file("fake", tmp_path / "out/predictions.jsonl", EMOTIONS)
    sadness = source.rows["id0"].exp()[EMOTIONS.index("sadness")]
    assert float(sadness) == pytest.approx(0.7, abs=1e-5) and not source.answers
    metrics = read(tmp_path, "metrics.json")
    assert metrics["images"] == 4 and metrics["emotion"]["accuracy"] == 1 and metrics["emotion"]["probabilities"] == 4
    assert metrics["captions"]["ROUGE-L"] > 0.2
    about = read(tmp_path, "ask.json")
    assert about["usage"] == {"tokens_answered": 160, "tokens_asked": 800} and about["with_probabilities"] == 4
    assert (about["pictures"], about["answered"], about["no_answer"]) == (4, 4, 0)
    assert "4 of 4 pictures are answered" in (output := "".join(capsys.readouterr())) and "ROUGE-L" in output
    first = [request for request in model.requests if is_first(request)]
    assert len(first) == 4 and len(model.requests) == 8
    assert all(("logprobs" in request.body) is is_first(request) for request in model.requests)
    assert all(label in first[0].turns[0]["content"][1]["text"] for label in EMOTIONS)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert KEY not in output


def test_answers_without_label_refusals_leaks_and_cut_off_reasons_are_counted(tmp_path):
    write_data(tmp_path, 7)
    by_picture: dict[bytes, int] = {}
    pairs = [
        (Answer("Bliss"), WHY),
        (Answer("", finish="content_filter"), WHY),
        (LABEL, Answer("content_filter", 400)),
        (LABEL, Answer("I feel sadness.")),
        (LABEL, WHY._replace(finish="length")),
        (Answer("<think>awe or fear?</think>\n\nfear", finish="length"), WHY),
        (LABEL, Answer("")),
    ]

    def answer(request):
        return pairs[by_picture.setdefault(request.picture, len(by_picture))][not is_first(request)]

    with FakeModel(answer) as model:
        assert run(tmp_path, model, "--parallel", 1) == 0
    about = read(tmp_path, "ask.json")
    assert about["no_label"] == {"count": 1, "answers": {"Bliss": 1}}
    assert about["refused"] == {"count": 2, "first": ["id1", "id2"]}
    assert about["leaks"] == {"count": 2, "first": ["id3", "id6"]}
    assert about["cut_off"] == {"count": 2, "first": ["id4", "id5"]}
    assert [row["emotion"] for row in rows_of(tmp_path)] == [None, None, *["sadness"] * 3, "fear", "sadness"]
    emotion = read(tmp_path, "metrics.json")["emotion"]
    assert (emotion["accuracy"], emotion["count"]) == (pytest.approx(4 / 7), 7)


@pytest.mark.parametrize("permitted", [5, 0])
def test_rejected_logprobs_are_left_out(tmp_path, permitted):
    write_data(tmp_path, 6)

    def answer(request):
        if request.body.get("top_logprobs", 0) > permitted:
            return Answer(f"top_logprobs must be at most {permitted}", 400)
        if "logprobs" in request.body and not permitted:
            return Answer("You are not allowed to request logprobs from this model", 403)
        return answers(LABEL if permitted else Answer("sadness"))(request)

    with FakeModel(answer) as model:
        assert run(tmp_path, model) == 0
    assert [request for request in model.requests if is_first(request)][-1].body.get("top_logprobs", 0) == permitted
    assert read(tmp_path, "ask.json")["with_probabilities"] == (6 if permitted else 0)
    assert read_file("fake", tmp_path / "out/predictions.jsonl", EMOTIONS).answers is not bool(permitted)


def test_cost_is_added_up(tmp_path, capsys):
    write_data(tmp_path, 3)
    with FakeModel(answers(LABEL._replace(cost=0.002), WHY._replace(cost=0.001))) as model:
        assert run(tmp_path, model) == 0
    assert read(tmp_path, "ask.json")["usage"]["cost"] == pytest.approx(0.009)
    assert "cost=0.009" in capsys.readouterr().err


def test_faults_of_the_server_are_retried(tmp_path):
    write_data(tmp_path, 1)
    nonsense = Answer(content='{"choices": [{"message"')
    faults = [
        Answer("slow down", 429, headers=(("Retry-After", "0.1"),)),
        Answer("broken", 500),
        WHY._replace(cut=True),
    ]
    with FakeModel(lambda r: faults[r.number] if r.number < 3 else answers()(r)) as model:
        assert run(tmp_path, model) == 0
        assert len(model.requests) == 5 and rows_of(tmp_path)[0]["emotion"] == "sadness"
    with FakeModel(lambda r: nonsense) as model:
        assert run(tmp_path, model, "--limit", 1) == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer("no such key", 401), "set EMOSCRIBE_API_KEY"),
        (Answer("what model?", 404), "check --endpoint and --model"),
        (Answer(content="<html>a proxy</html>"), "no chat completion"),
    ],
)
def test_unusable_server_ends_the_command_with_a_sentence(tmp_path, capsys, answer, words):
    write_data(tmp_path, 3)
    with FakeModel(lambda request: answer) as model:
        assert run(tmp_path, model, *ONE_BY_ONE) == 2
    error = capsys.readouterr().err
    assert len(model.requests) == 1 and words in error and "Traceback" not in error


def test_same_command_requests_what_is_missing_and_other_settings_are_refused(tmp_path, capsys):
    write_data(tmp_path, 5)
    with FakeModel(lambda r: Answer("", 500) if r.number == 4 else answers()(r)) as model:
        assert run(tmp_path, model, *ONE_BY_ONE) == 1
        assert read(tmp_path, "ask.json")["no_answer"] == 1 and read(tmp_path, "metrics.json")["images"] == 4
        with (tmp_path / "out/predictions.jsonl").open("ab") as file:
            file.write(b'{"id": "id2", "emotion": "aw')  # as left by a kill
        del model.requests[:]
        assert run(tmp_path, model, "--max-side", 300) == 2 and not model.requests
        assert "answers for another max_side (1024, now 300)" in capsys.readouterr().err
        assert run(tmp_path, model) == 0
        assert len(model.requests) == 2 and read(tmp_path, "metrics.json")["images"] == 5
        (tmp_path / "out/ask.json").unlink()
        assert run(tmp_path, model) == 2
        assert "does not contain answers of this command" in capsys.readouterr().err


def test_names_restrict_the_pictures(tmp_path, capsys):
    write_data(tmp_path, 5)
    names = tmp_path / "names.txt"
    names.write_text("id3\npicture 1.png\n\nStyle/picture 1.png\nno such painting\n", encoding="utf-8")
    with FakeModel(answers()) as model:
        assert run(tmp_path, model) == 0
        assert run(tmp_path, model, "--names", names) == 0
        assert len(model.requests) == 10 and read(tmp_path, "metrics.json")["images"] == 2
        assert read(tmp_path, "ask.json")["names_not_found"] == {"count": 1, "first": ["no such painting"]}
        assert read(tmp_path, "ask.json")["pictures"] == 2
        names.write_text('["picture 4"]', encoding="utf-8")
        assert run(tmp_path, model, "--names", names) == 0 and read(tmp_path, "ask.json")["pictures"] == 1
        names.write_text("nothing\n", encoding="utf-8")
        assert run(tmp_path, model, "--names", names) == 2
    assert "no name is that of one picture" in capsys.readouterr().err


def test_pictures_that_cannot_be_opened_are_counted_and_not_scored(tmp_path, capsys):
    write_data(tmp_path, 3)
    (tmp_path / "images/Style/picture 0.png").unlink()
    (tmp_path / "images/Style/picture 1.png").write_bytes(b"no picture")
    with FakeModel(answers()) as model:
        assert run(tmp_path, model) == 0 and len(model.requests) == 2
        assert read(tmp_path, "ask.json")["not_opened"]["count"] == 2 and read(tmp_path, "metrics.json")["images"] == 1
        assert run(tmp_path, model, "--images", tmp_path, "--out", tmp_path / "other") == 2
    assert "no picture can be opened, such as" in capsys.readouterr().err


def test_other_labels(tmp_path, capsys):
    for number in range(3):
        write_picture(tmp_path / f"images/{number}.png", number)
    table = "image,emotion,text\n0.png,joy,the sun\n1.png,joy,the sea\n2.png,hope,a door\n"
    (tmp_path / "annotations.json").write_text(table, encoding="utf-8")
    with FakeModel(answers(Answer("joy", tokens=(("joy", {"joy": 0.8, "hope": 0.1}),)))) as model:
        assert run(tmp_path, model, "--labels", "joy,hope,grief") == 0
        assert rows_of(tmp_path)[0]["labels"] == ["joy", "hope", "grief"]
        assert EMOTION.format(labels="joy, hope or grief") == model.requests[0].turns[0]["content"][1]["text"]
        emotion = read(tmp_path, "metrics.json")["emotion"]
        assert emotion["accuracy"] == pytest.approx(2 / 3) and emotion["labels"] == ["joy", "hope", "grief"]
        assert run(tmp_path, model) == 2
    assert "'joy' is not one of the nine emotions" in capsys.readouterr().err
    write_data(tmp_path / "nine", 1)
    with FakeModel(answers()) as model:
        assert run(tmp_path / "nine", model, "--labels", "joy,hope") == 2 and not model.requests
    assert "has the emotions amusement, awe" in capsys.readouterr().err
    rescored = ["--predictions", "out/predictions.jsonl", "--references", "annotations.json"]
    files = [word if word.startswith("--") else str(tmp_path / word) for word in rescored]
    assert main([*files, "--labels", "joy,hope,grief", "--metrics", "rouge_l", "--tokenizer", "whitespace"]) == 0


def test_emotion_folders_by_the_predictions_of_a_test(tmp_path):
    picture = write_picture(tmp_path / "images/test/joy/p0.png", 1)
    row = {"id": "test/joy/p0.png", "image": str(picture), "labels": ["joy", "hope"], "emotion": "hope"}
    row |= {"explanation": None, "references": [], "reference_emotions": [], "histogram": [1.0, 0.0]}
    (tmp_path / "annotations.json").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with FakeModel(answers(Answer("joy"))) as model:
        assert run(tmp_path, model) == 0
    assert read(tmp_path, "metrics.json")["emotion"]["accuracy"] == 1
    assert rows_of(tmp_path)[0]["image"] == str(picture)
