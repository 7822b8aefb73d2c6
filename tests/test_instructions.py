"""python -m data.prepare instructions, without a model: conversations from annotations."""

from __future__ import annotations

import json
import re
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest
from filelock import FileLock

from data.emotions import EMOTIONS
from data.prepare.__main__ import main
from data.prepare.instructions.conversations import Account, dominant, from_annotations, in_order, lines
from data.prepare.instructions.wording import KINDS, PROMPTS, because, listed
from data.prepare.instructions.words import class_words
from data.samples import Samples
from data.schema import Sample
from tests.folders import write_emotions
from tests.instruction_data import answer_of, conversations, keys_of, write_data, write_picture


def run(out: Path, keys: list[str], *options: object) -> int:
    return main(["instructions", *keys, "--out", str(out), *map(str, options)])


@pytest.fixture
def made(tmp_path):
    """Makes conversations of the keys in a folder of their own; gives them and the manifest."""

    def make(keys: list[str], *options: object, out: str = "out") -> tuple[list[dict], dict]:
        assert run(tmp_path / out, keys, *options) == 0
        manifest = json.loads((tmp_path / out / "manifest_train.json").read_text(encoding="utf-8"))
        return conversations(tmp_path / out), manifest

    return make


def text_of(turn: dict) -> str:
    return "".join(part.get("text", "") for part in turn["content"])


# --- what is made


def test_the_three_kinds_of_each_annotation(made, tmp_path):
    talks, _ = made(write_data(tmp_path, 1))
    found = [(talk["kind"], talk["label"], answer_of(talk)) for talk in talks]
    assert sorted(found) == [
        ("categorical", "awe", "awe"),
        ("categorical", "sadness", "sadness"),
        ("categorical", "sadness", "sadness"),
        ("observation", "sadness", "The lonely boat drifts on the dark sea and the sky is heavy."),
        ("observation", "sadness", "The old woman has nobody to talk to."),
        ("reasoning", "awe", "because I am in awe."),
        ("reasoning", "sadness", "because the lonely boat drifts on the dark sea and the sky is heavy."),
        ("reasoning", "sadness", "because the old woman has nobody to talk to."),
    ]
    assert {talk["source"] for talk in talks} == {"annotation"}
    assert {talk["image"] for talk in talks} == {"Style/picture 0.png"}


def test_counts_and_what_was_left_out(made, tmp_path, capsys):
    talks, manifest = made(write_data(tmp_path, 4))
    counted = Counter((talk["kind"], talk["label"]) for talk in talks)
    told = manifest["conversations"]
    assert {(kind, label): number for kind in told for label, number in told[kind].items() if number} == counted
    assert manifest["left_out"] == {"observation: nothing is left without the name of the emotion": 4}
    assert manifest["output"]["sha256"] == sha256((tmp_path / "out/instructions_train.jsonl").read_bytes()).hexdigest()
    assert manifest["labels"] == list(EMOTIONS) and "sadly" in manifest["forbidden_words"]["sadness"]
    assert re.search(r"observation +8\n", capsys.readouterr().out)


def test_one_categorical_for_the_dominant_emotion_of_each_image(made, tmp_path):
    talks, _ = made(write_data(tmp_path, 3), "--categorical", "dominant")
    assert [talk["label"] for talk in talks if talk["kind"] == "categorical"] == ["sadness"] * 3


def test_no_emotion_is_dominant_where_two_are_named_as_often(made, tmp_path):
    keys = write_data(tmp_path, 2, texts=[("awe", "the wide sea"), ("fear", "the deep sea")])
    talks, manifest = made(keys, "--categorical", "dominant")
    assert not [talk for talk in talks if talk["kind"] == "categorical"]
    assert manifest["left_out"] == {"categorical: no emotion of its image is the most frequent": 2}


def test_dominant_goes_by_the_histogram_where_there_is_one():
    shares = (0.1, 0.6, 0.3, 0, 0, 0, 0, 0, 0)
    assert dominant(Sample("a", Path("a"), ("x",), (2,), shares)) == 1
    assert dominant(Sample("a", Path("a"), ("x",), (2,))) == 2
    assert dominant(Sample("a", Path("a"), ("x",))) is None


def test_images_that_are_missing_are_counted(made, tmp_path):
    keys = write_data(tmp_path, 3)
    (tmp_path / "images/Style/picture 1.png").unlink()
    talks, manifest = made(keys)
    assert {talk["image"] for talk in talks} == {"Style/picture 0.png", "Style/picture 2.png"}
    assert manifest["left_out"]["image not found"] == 1


def test_data_without_emotions_gives_observations_only(made, tmp_path):
    write_picture(tmp_path / "images/a.png", 1)
    (tmp_path / "table.csv").write_text("image,text\na.png,two dogs on a beach\n", encoding="utf-8")
    talks, manifest = made(keys_of(tmp_path / "table.csv", tmp_path / "images", name="table"))
    assert [(talk["kind"], talk["label"], answer_of(talk)) for talk in talks] == [
        ("observation", None, "two dogs on a beach")
    ]
    assert manifest["left_out"] == {
        "categorical: its image has no emotion": 1,
        "reasoning: its image has no emotion": 1,
    }


def test_images_without_texts_are_asked_for_their_emotion_only(tmp_path):
    path = tmp_path / "images" / "a.png"
    samples = Samples.pack([Sample("a", path, (), (), (0, 0, 0, 0, 0, 0, 0, 1.0, 0))])
    talks = list(from_annotations(samples, in_order(samples), tmp_path / "images", each_vote=True))
    assert [(talk.kind, talk.answer) for talk in talks if talk.answer] == [("categorical", "sadness")]
    assert [talk.reason for talk in talks if not talk.answer] == ["its image has no explanation"] * 2


def test_folders_of_two_emotions(made, tmp_path):
    """Flickr's and Instagram's form; validation is a share of training, and its pictures lie in that folder."""
    root = write_emotions(tmp_path / "two", ("positive", "negative"), {"train": 6, "test": 2})
    keys = ["preset=emotion_folder", f"dataset.root={root}", "dataset.validation_share=0.3"]
    talks, manifest = made(keys, "--split", "train", "--split", "val", "--split", "test")
    talks += conversations(tmp_path / "out", "val")
    assert {(talk["kind"], talk["label"]) for talk in talks} == {
        ("categorical", "positive"),
        ("categorical", "negative"),
    }
    assert len(talks) == 12 == len({talk["image"] for talk in talks})
    assert all((root / "train" / talk["image"]).is_file() for talk in talks)
    assert all("negative or positive" in text_of(talk["messages"][1]) for talk in talks)
    assert all((root / "test" / talk["image"]).is_file() for talk in conversations(tmp_path / "out", "test"))
    assert manifest["labels"] == ["negative", "positive"] and manifest["input"] is None
    assert set(manifest["left_out"]) == {
        f"{kind}: its image has no explanation" for kind in ("observation", "reasoning")
    }


@pytest.mark.parametrize("labels", [EMOTIONS, EMOTIONS[:8], ("positive", "negative")])
def test_prompts_name_the_labels_of_the_data_in_their_order(tmp_path, labels):
    samples = Samples.pack([Sample("a", tmp_path / "a.png", ("warm colours, a positive mood",), (0,))])
    talks = from_annotations(samples, [0], tmp_path, each_vote=True)
    found = [json.loads(line) for line in lines(talks, labels, Account(), seed=0, system=True)]
    asked = next(text_of(talk["messages"][1]) for talk in found if talk["kind"] == "categorical")
    assert listed(labels) in asked
    places = [asked.index(label) for label in labels]
    assert places == sorted(places)


def test_two_labels_read_as_a_choice():
    assert listed(("positive", "negative")) == "positive or negative"
    assert because("it is dark", "negative") == "because it is dark"


# --- the answers


@pytest.mark.parametrize(
    ("label", "text", "reason"),
    [
        ("awe", "The mountains are high", "because the mountains are high"),
        ("awe", "Because the mountains are high", "because the mountains are high"),
        ("awe", "It's because of the light", "because of the light"),
        ("awe", "I love the light", "because I love the light"),
        ("awe", "I'm lost in it", "because I'm lost in it"),
        ("awe", "Monet paints the light", "because Monet paints the light"),
        ("awe", "Van Gogh paints it", "because Van Gogh paints it"),
        ("awe", "USA today", "because USA today"),
        ("sadness", "This picture makes me sad because it rains", "because it rains"),
        ("sadness", "The boat is lost and I feel sad because it rains", None),
        ("sadness", "I am sad. It is because it rains", None),
        ("awe", "the light is soft because it rains", None),
    ],
)
def test_reasons_begin_with_because_once(label, text, reason):
    wanted = reason or f"because {text[0].lower() if text[0] != 'I' else 'I'}{text[1:]}"
    assert because(text, label) == wanted


def test_observations_never_name_their_class(made, tmp_path):
    texts = [(label, f"The dark {word} in the house and the tall trees are {word}, because of it a storm comes.")
             for label in EMOTIONS for word in class_words(label).forms]  # fmt: skip
    texts += [(label, f"I feel {label} because the red boats are so far away.") for label in EMOTIONS]
    talks, _ = made(write_data(tmp_path, 1, texts=texts))
    seen = Counter()
    for talk in talks:
        assert answer_of(talk).strip()
        if talk["kind"] == "observation":
            seen[talk["label"]] += 1
            assert class_words(talk["label"]).named_in(answer_of(talk)) is None
    assert seen.keys() == set(EMOTIONS)


# --- the form


@pytest.mark.parametrize("system", ["on", "off"])
def test_the_form_of_chat_templates(made, tmp_path, system):
    talks, _ = made(write_data(tmp_path, 2), "--system", system)
    roles = ["system", "user", "assistant"][system == "off" :]
    for talk in talks:
        assert list(talk) == ["id", "image", "kind", "label", "source", "messages"]
        assert [turn["role"] for turn in talk["messages"]] == roles
        user = talk["messages"][-2]["content"]
        assert [part["type"] for part in user] == ["image", "text"] and user[0] == {"type": "image"}
        for turn in talk["messages"]:
            assert all(part["type"] == "image" or part["text"] for part in turn["content"])
    assert len({talk["id"] for talk in talks}) == len(talks)


def test_transformers_renders_it(made, tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    template = (
        "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{% if part.type == 'image' %}[IMAGE]"
        "{% else %}{{ part.text }}{% endif %}{% endfor %}</{{ m.role }}>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template=template)
    talks, _ = made(write_data(tmp_path, 1))
    for talk in talks:
        text = tokenizer.apply_chat_template(talk["messages"], tokenize=False)
        asked = text_of(talk["messages"][1])
        assert f"<user>[IMAGE]{asked}</user><assistant>{answer_of(talk)}</assistant>" in text
        prompt = tokenizer.apply_chat_template(talk["messages"][:-1], tokenize=False, add_generation_prompt=True)
        assert text.startswith(prompt)


def test_every_way_to_ask_is_taken_and_differs(made, tmp_path):
    talks, _ = made(write_data(tmp_path, 40))
    for kind in KINDS:
        asked = {text_of(talk["messages"][1]).replace(talk["label"], "") for talk in talks if talk["kind"] == kind}
        assert len(asked) >= len(PROMPTS[kind]) == len(set(PROMPTS[kind])) >= 4


# --- repeatable


def test_the_same_bytes_whatever_the_order_of_the_file(tmp_path):
    keys = write_data(tmp_path, 6)
    assert run(tmp_path / "one", keys) == run(tmp_path / "again", keys) == 0
    entries = json.loads((tmp_path / "annotations.json").read_text(encoding="utf-8"))
    (tmp_path / "annotations.json").write_text(json.dumps(dict(reversed(entries.items()))), encoding="utf-8")
    assert run(tmp_path / "turned", keys) == run(tmp_path / "seeded", keys, "--seed", 1) == 0
    one, again, turned, seeded = (
        (tmp_path / name / "instructions_train.jsonl").read_bytes() for name in ("one", "again", "turned", "seeded")
    )
    assert one == again == turned != seeded
    ids = [re.sub(r"-\d+-\w+$", "", talk["id"]) for talk in conversations(tmp_path / "one")]
    assert ids == sorted(ids)
    assert [answer_of(talk) for talk in conversations(tmp_path / "seeded")] == [
        answer_of(talk) for talk in conversations(tmp_path / "one")
    ]


def test_splits_and_a_limit(tmp_path):
    keys = write_data(tmp_path, 5)
    keys += keys_of(tmp_path / "annotations.json", tmp_path / "images", split="validation_ds")[2:]
    assert run(tmp_path / "out", keys, "--split", "train", "--split", "val", "--limit", 2) == 0
    for split in ("train", "val"):
        talks = conversations(tmp_path / "out", split)
        assert {talk["image"] for talk in talks} == {"Style/picture 0.png", "Style/picture 1.png"}
    names = {"instructions_train.jsonl", "instructions_val.jsonl", "manifest_train.json", "manifest_val.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


# --- wrong usage


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--split", "test"], "dataset.test_ds.json_path"),
        (["--model", "m"], "--endpoint and --model belong together"),
        (["--endpoint", "https://host/v1"], "--endpoint and --model belong together"),
        (["--retries", "-1"], "--retries must be at least 0"),
        (["dataset.name=mlslt"], "videos"),
        (["dataset.nam=artemis"], "did you mean 'dataset.name'"),
        (["dataset.train_ds.json_path=null", "dataset.train_ds.visual_dir=null"], "nothing to check: give"),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(tmp_path, capsys, options, words):
    assert run(tmp_path / "out", [*write_data(tmp_path, 1), *(o for o in options if "=" in o)],
               *(o for o in options if "=" not in o)) == 2  # fmt: skip
    assert words in capsys.readouterr().err


def test_other_files_are_not_replaced(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/instructions_train.jsonl").write_text("mine", encoding="utf-8")
    assert run(tmp_path / "out", write_data(tmp_path, 1)) == 2
    assert "was not made by this command" in capsys.readouterr().err
    assert (tmp_path / "out/instructions_train.jsonl").read_text(encoding="utf-8") == "mine"


def test_two_at_once_are_refused(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out/.lock"):
        assert run(tmp_path / "out", write_data(tmp_path, 1)) == 2
    assert "is in use by another run" in capsys.readouterr().err


def test_real_paintings(shared_data, made):
    folder = shared_data / "paintings"
    talks, manifest = made(keys_of(folder / "artEmisX_train.json", folder / "wikiart"))
    kinds = Counter(talk["kind"] for talk in talks)
    annotations = sum(len(e["emotions"]) for e in json.loads((folder / "artEmisX_train.json").read_bytes()).values())
    assert kinds["categorical"] == kinds["reasoning"] == annotations
    assert 0.97 * annotations < kinds["observation"] <= annotations
    assert kinds["observation"] + sum(manifest["left_out"].values()) == annotations
    for talk in talks:
        assert (folder / "wikiart" / talk["image"]).is_file()
        assert not re.search(r"  |because because|\bbecause\W*$", answer_of(talk))
