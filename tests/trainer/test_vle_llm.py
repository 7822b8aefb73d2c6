"""VQA + LLM: prompts, letters, answers from an endpoint or a local language model, and mode=predict with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from common.errors import UserError
from tests.helpers.fake_model import Answer, FakeModel
from tests.helpers.tiny import go_offline, run_mode, write_run, write_splits
from tests.helpers.vle_runs import train_run, vle_keys
from trainer.vle import llm

CPU = torch.device("cpu")
FOUND = [{"answer": answer, "score": score} for answer, score in (("fish", 0.73), ("fishing", 0.19), ("boat", 0.05))]
QUESTION = "what does the man hold?"
CAPTION = "a man by a river"


def rows(count: int = 1) -> list[dict]:
    return [{"image": f"p{n}.png", "question": QUESTION, "candidates": FOUND} for n in range(count)]


def settings(**changes: object) -> OmegaConf:
    found = OmegaConf.load(llm.__file__.rpartition("trainer")[0] + "config.yaml").vle.llm
    return OmegaConf.create({"vle": {"llm": {**found, **changes}}})


def request(model: FakeModel, count: int = 1, **changes: object) -> tuple[list[dict], UserError | None]:
    found, own = rows(count), {"style": "long", "endpoint": model.url, "model": "fake", **changes}
    fault = llm.add_answers(found, {row["image"]: CAPTION for row in found}, settings(**own), CPU)
    return found, fault


def write_language_model(folder: Path, *, positions: int = 512, template: str | None = None) -> Path:
    """Write a random GPT-2 whose tokens are bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate([*letters, "<eos>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    saved.chat_template = template
    saved.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=257, n_embd=16, n_layer=1, n_head=2, n_positions=positions, eos_token_id=256, bos_token_id=256
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


# --- prompts and letters


def test_short_prompt_has_letters_and_no_scores():
    prompt = llm.write_prompt("short", QUESTION, [*FOUND, *FOUND], CAPTION)
    assert CAPTION in prompt and QUESTION in prompt and "%" not in prompt
    assert [line for line in prompt.splitlines() if line[1:3] == ". "] == [
        "A. fish",
        "B. fishing",
        "C. boat",
        "D. fish",
    ]


def test_long_prompt_has_scores_and_no_letters():
    prompt = llm.write_prompt("long", "is {this} it?", FOUND, None)
    assert "- fish: 73%\n- fishing: 19%\n- boat: 5%\n" in prompt and "is {this} it?" in prompt
    assert "A. " not in prompt and "escription" not in prompt


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        *[(text, "fishing") for text in ("B", " b\n", "(B)", "**B**", "B. fishing", "B: it bites", "B\nhe is fishing")],
        *[(text, "fish") for text in ("Answer: A", "The right answer is A.", "Option a)", "A - fish")],
        *[(text, None) for text in ("A fish", "D", "E", "", "Because", "b'fish", "fish", "He holds a fish.")],
    ],
)
def test_letters_of_answers(text, choice):
    assert llm.read_choice(text, FOUND) == choice


# --- an endpoint


def test_endpoint_receives_the_prompts_and_no_picture():
    with FakeModel(lambda request: Answer(f" Sentence of {request.body['model']}. ")) as model:
        found, fault = request(model, 5, max_tokens=50)
    assert fault is None and len(model.requests) == 5
    assert {row["llm_answer"] for row in found} == {"Sentence of fake."} and "llm_choice" not in found[0]
    assert found[0]["caption"] == CAPTION
    body = model.requests[0].body
    assert body["messages"] == [{"role": "user", "content": llm.write_prompt("long", QUESTION, FOUND, CAPTION)}]
    assert body["max_tokens"] == 50 and "response_format" not in body


def test_answers_that_are_no_letter_are_kept_and_counted(capsys):
    def answer(request):
        return Answer("C" if request.number == 0 else "He is fishing.")

    with FakeModel(answer) as model:
        found, _ = request(model, 3, style="short")
    assert sorted((row["llm_answer"], row["llm_choice"]) for row in found) == [
        ("C", "boat"), ("He is fishing.", None), ("He is fishing.", None)
    ]  # fmt: skip
    assert "2 of 3 answers of the language model are no letter of a candidate" in capsys.readouterr().err


def test_refused_and_empty_answers_are_counted(capsys):
    answers = [Answer("content_filter", 400), Answer(""), Answer("A rod.")]
    with FakeModel(lambda request: answers[request.number]) as model:
        found, fault = request(model, 3)
    assert fault is None and sorted(str(row["llm_answer"]) for row in found) == ["A rod.", "None", "None"]
    assert "no answer for 2 of 3 pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer("no such key", 401), "set EMOSCRIBE_API_KEY to a valid key"),
        (Answer("what model?", 404), "check vle.llm.endpoint and vle.llm.model"),
        (Answer("too long", 413), "shorten the question or the caption"),
        (Answer("bad request", 400), "check vle.llm.model=fake and vle.llm.max_tokens"),
        (Answer(content="{cut off"), "sends no chat completion; check vle.llm.endpoint"),
    ],
)
def test_faults_of_the_endpoint_are_one_sentence(answer, words):
    with FakeModel(lambda request: answer) as model:
        found, fault = request(model)
    assert words in str(fault) and found[0]["llm_answer"] is None and found[0]["candidates"] == FOUND


def test_questions_are_not_sent_unencrypted():
    fault = llm.add_answers(rows(), {}, settings(style="long", endpoint="http://models.example/v1", model="m"), CPU)
    assert "questions and key would be sent unencrypted; use https" in str(fault)


# --- a local language model


def test_local_model_writes_its_likeliest_tokens(tmp_path):
    folder, found = write_language_model(tmp_path / "gpt2"), rows(2)
    assert llm.add_answers(found, {}, settings(style="long", model=str(folder), max_tokens=7), CPU) is None
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    prompt = llm.write_prompt("long", QUESTION, FOUND, None)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = tokenizer(prompt)["input_ids"]
    for _ in range(7):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    expected = tokenizer.decode(ids[-7:], skip_special_tokens=True).strip()
    assert expected and [row["llm_answer"] for row in found] == [expected, expected]


def test_chat_template_is_used(tmp_path, monkeypatch):
    template = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}<assistant>"
    folder, read = write_language_model(tmp_path / "gpt2", template=template), []
    generate = GPT2LMHeadModel.generate

    def noted(self, input_ids, **options):
        read.append(input_ids)
        return generate(self, input_ids=input_ids, **options)

    monkeypatch.setattr(GPT2LMHeadModel, "generate", noted)
    llm.add_answers(rows(), {}, settings(style="short", model=str(folder), max_tokens=2), CPU)
    text = PreTrainedTokenizerFast.from_pretrained(folder).decode(read[0][0])
    assert text == f"<user>{llm.write_prompt('short', QUESTION, FOUND, None)}<assistant>"


def test_prompt_that_is_too_long_for_the_model(tmp_path):
    folder = write_language_model(tmp_path / "gpt2", positions=40)
    fault = llm.add_answers(rows(), {}, settings(style="long", model=str(folder)), CPU)
    assert "reads at most 40 tokens" in str(fault) and "shorten the question or the caption" in str(fault)


def test_folder_without_a_language_model(tmp_path, monkeypatch):
    go_offline(monkeypatch, tmp_path / "cache")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    for name in (str(tmp_path), "somebody/something"):
        fault = llm.add_answers(rows(), {}, settings(style="long", model=name), CPU)
        assert f"vle.llm.model={name}: no causal language model" in str(fault) and "\n" not in str(fault)


# --- mode=predict


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Return a run of stage=vle_vqa, one of a captioner, and a folder of two pictures, one of them broken."""
    root = tmp_path_factory.mktemp("llm")
    vqa = train_run(vle_keys(root / "vle", "vle_vqa"), "vqa")
    captioner = write_run(write_splits(root / "captions"), "captioner")
    pictures = root / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes((root / "vle/images/p0.png").read_bytes())
    (pictures / "b.png").write_bytes(b"no picture")
    return vqa, captioner, pictures


def predict(runs: tuple[Path, Path, Path], **changes: object) -> list[dict]:
    vqa, _, pictures = runs
    keys = {"preset": "none", "pretrained_name": vqa, "image": pictures, "question": "what color is it"}
    run_mode("predict", {**keys, **{f"vle.llm.{key}": value for key, value in changes.items()}})
    return json.loads((vqa / "predict/predictions.json").read_text())


def test_captioner_and_endpoint(runs):
    with FakeModel(lambda request: Answer("<b>It is red.</b>")) as model:
        (row,) = predict(runs, style="long", captioner=runs[1], endpoint=model.url, model="fake")
    assert row["caption"].startswith("the emotion is ") and row["llm_answer"] == "<b>It is red.</b>"
    (sent,) = model.requests
    assert row["caption"] in sent.turns[0]["content"] and row["candidates"][0]["answer"] in sent.turns[0]["content"]
    page = (runs[0] / "predict/report.html").read_text()
    assert "&lt;b&gt;It is red.&lt;/b&gt;" in page and "<b>It is red" not in page


def test_answers_of_vqa_are_kept_if_the_endpoint_fails(runs):
    with (
        FakeModel(lambda request: Answer("gone", 404)) as model,
        pytest.raises(UserError, match=r"check vle.llm.endpoint and vle.llm.model; the answers of VLE, and .* are in "),
    ):
        predict(runs, style="short", endpoint=model.url, model="fake")
    (row,) = json.loads((runs[0] / "predict/predictions.json").read_text())
    assert row["answer"] and row["llm_answer"] is row["llm_choice"] is row["caption"] is None


def test_without_the_style_nothing_is_added(runs):
    with FakeModel() as model:
        (row,) = predict(runs, endpoint=model.url, model="fake")
    assert not model.requests and "llm_answer" not in row and "caption" not in row


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model": None}, r"vle.llm.style=long needs vle.llm.model"),
        ({"caption": "a boat", "captioner": "x"}, "leave one of them out"),
        ({"caption": "a boat"}, r"vle.llm.caption is of one picture, and image=\S+ has 2"),
        ({"captioner": "vqa"}, "is of stage=vle_vqa: name a captioner's run"),
        ({"captioner": "nothing"}, "vle.llm.captioner=nothing: there is no checkpoint"),
    ],
)
def test_contradicting_keys(runs, keys, words):
    keys = {key: runs[0] if value == "vqa" else value for key, value in keys.items()}
    with pytest.raises(UserError, match=words):
        predict(runs, **{"style": "long", "model": "m", **keys})


def test_only_the_user_decides_where_questions_are_sent(runs, tmp_path):
    with FakeModel(lambda request: Answer("It is red.")) as model:
        vqa = train_run(
            vle_keys(tmp_path, "vle_vqa", train=4, others=4),
            "sends",
            vle__llm__style="long",
            vle__llm__endpoint=model.url,
            vle__llm__model="fake",
        )
        (row,) = predict((vqa, *runs[1:]))
    assert not model.requests and "llm_answer" not in row
