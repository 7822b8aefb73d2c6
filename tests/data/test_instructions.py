"""python -m data.prepare instructions without a model: conversations from annotations."""

from __future__ import annotations

import json
import re
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from common.locks import locked
from data.emotions import EMOTIONS
from data.prepare.__main__ import main
from data.prepare.instructions.class_words import class_words
from data.prepare.instructions.conversations import because, dominant, from_annotations
from data.samples import Samples
from data.schema import Sample
from tests.helpers.folders import write_emotions
from tests.helpers.instruction_data import answer_of, conversations, keys_of, write_data, write_picture


def run(out: Path, keys: list[str], *options: object) -> int:
    return main(["instructions", *keys, "--out", str(out), *map(str, options)])


@pytest.fixture
def made(tmp_path):
    """Return a function that makes conversations and returns them and the manifest."""

    def make(keys: list[str], *options: object) -> tuple[list[dict], dict]:
        assert run(tmp_path / "out", keys, *options) == 0
        manifest = json.loads((tmp_path / "out/manifest_train.json").read_text(encoding="utf-8"))
        return conversations(tmp_path / "out"), manifest

    return make


def text_of(turn: dict) -> str:
    return "".join(part.get("text", "") for part in turn["content"])


def test_three_kinds_of_conversations_for_each_annotation(made, tmp_path, capsys):
    talks, manifest = made(write_data(tmp_path, 1))
    assert sorted((talk["kind"], talk["label"], answer_of(talk)) for talk in talks) == [
        ("categorical", "awe", "awe"),
        ("categorical", "sadness", "sadness"),
        ("categorical", "sadness", "sadness"),
        ("observation", "sadness", "The lonely boat drifts on the dark sea and the sky is heavy."),
        ("observation", "sadness", "The old woman has nobody to talk to."),
        ("reasoning", "awe", "because I am in awe."),
        ("reasoning", "sadness", "because the lonely boat drifts on the dark sea and the sky is heavy."),
        ("reasoning", "sadness", "because the old woman has nobody to talk to."),
    ]
    assert {(talk["source"], talk["image"]) for talk in talks} == {("annotation", "Style/picture 0.png")}
    counted = Counter((talk["kind"], talk["label"]) for talk in talks)
    stated = manifest["conversations"]
    assert {(kind, label): number for kind in stated for label, number in stated[kind].items() if number} == counted
    assert manifest["left_out"] == {"observation: nothing is left without the name of the emotion": 1}
    assert manifest["output"]["sha256"] == sha256((tmp_path / "out/instructions_train.jsonl").read_bytes()).hexdigest()
    assert manifest["labels"] == list(EMOTIONS) and "sadly" in manifest["forbidden_words"]["sadness"]
    assert re.search(r"observation +2\n", capsys.readouterr().out)


def test_dominant_emotions_and_missing_images(made, tmp_path):
    keys = write_data(tmp_path, 3)
    entries = json.loads((tmp_path / "annotations.json").read_text(encoding="utf-8"))
    entries["id2"]["emotions"] = ["awe", "fear", "anger"]
    (tmp_path / "annotations.json").write_text(json.dumps(entries), encoding="utf-8")
    (tmp_path / "images/Style/picture 1.png").unlink()
    talks, manifest = made(keys, "--categorical", "dominant")
    assert [(talk["id"], talk["label"]) for talk in talks if talk["kind"] == "categorical"] == [
        ("id0-0-categorical", "sadness")
    ]
    assert manifest["left_out"]["image not found"] == 1
    assert manifest["left_out"]["categorical: no emotion of its image is the most frequent"] == 1
    shares = (0.1, 0.6, 0.3, 0, 0, 0, 0, 0, 0)
    assert dominant(Sample("a", Path("a"), ("x",), (2,), shares), EMOTIONS) == "awe"
    assert dominant(Sample("a", Path("a"), ("x",), (2,)), EMOTIONS) == "contentment"
    assert dominant(Sample("a", Path("a"), ("x",)), EMOTIONS) is None


def test_data_without_emotions_gives_observations_only(made, tmp_path):
    write_picture(tmp_path / "images/a.png", 1)
    (tmp_path / "table.csv").write_text("image,text\na.png,two dogs on a beach\n", encoding="utf-8")
    talks, manifest = made(keys_of(tmp_path / "table.csv", tmp_path / "images", name="table"))
    found = [(talk["kind"], talk["label"], answer_of(talk)) for talk in talks]
    assert found == [("observation", None, "two dogs on a beach")]
    assert manifest["left_out"] == {f"{kind}: its image has no emotion": 1 for kind in ("categorical", "reasoning")}


def test_images_without_texts_give_categorical_only(tmp_path):
    samples = Samples.pack([Sample("a", tmp_path / "a.png", (), (), (0, 0, 0, 0, 0, 0, 0, 1.0, 0))])
    talks = list(from_annotations(samples, [0], tmp_path, each_vote=True))
    assert [(talk.kind, talk.answer) for talk in talks if talk.answer] == [("categorical", "sadness")]
    assert [talk.reason for talk in talks if not talk.answer] == ["its image has no explanation"] * 2


def test_folders_of_two_emotions(made, tmp_path):
    """The validation split is a share of the training folder."""
    root = write_emotions(tmp_path / "two", ("positive", "negative"), {"train": 6, "test": 2})
    keys = ["preset=emotion_folder", f"dataset.root={root}", "dataset.validation_share=0.3"]
    talks, manifest = made(keys, "--split", "train", "--split", "val", "--split", "test")
    talks += conversations(tmp_path / "out", "val")
    assert {(talk["kind"], talk["label"]) for talk in talks} == {
        ("categorical", label) for label in ("negative", "positive")
    }
    assert len(talks) == 12 == len({talk["image"] for talk in talks})
    assert all((root / "train" / talk["image"]).is_file() for talk in talks)
    assert all("negative or positive" in text_of(talk["messages"][1]) for talk in talks)
    assert all((root / "test" / talk["image"]).is_file() for talk in conversations(tmp_path / "out", "test"))
    assert manifest["labels"] == ["negative", "positive"] and manifest["input"] is None


@pytest.mark.parametrize(
    ("label", "text", "reason"),
    [
        ("awe", "The mountains are high", "because the mountains are high"),
        ("awe", "Because the mountains are high", "because the mountains are high"),
        ("awe", "It's because of the light", "because of the light"),
        ("awe", "I'm lost in it", "because I'm lost in it"),
        ("awe", "Monet paints the light", "because Monet paints the light"),
        ("awe", "Van Gogh paints it", "because Van Gogh paints it"),
        ("sadness", "This picture makes me sad because it rains", "because it rains"),
        ("sadness", "The boat is lost and I feel sad because it rains", None),
        ("awe", "the light is soft because it rains", None),
    ],
)
def test_reasons_begin_with_because_once(label, text, reason):
    assert because(text, label) == (reason or f"because {text[0].lower()}{text[1:]}")


def test_observations_never_name_their_class(made, tmp_path):
    texts = [(label, f"The dark {word} in the house and the tall trees are {word}, because of it a storm comes.")
             for label in EMOTIONS for word in class_words(label).forms]  # fmt: skip
    texts += [(label, f"I feel {label} because the red boats are so far away.") for label in EMOTIONS]
    talks = [talk for talk in made(write_data(tmp_path, 1, texts=texts))[0] if talk["kind"] == "observation"]
    assert {talk["label"] for talk in talks} == set(EMOTIONS)
    for talk in talks:
        assert answer_of(talk).strip() and class_words(talk["label"]).named_in(answer_of(talk)) is None


@pytest.mark.parametrize("system", ["on", "off"])
def test_form_of_chat_templates(made, tmp_path, system):
    talks, _ = made(write_data(tmp_path, 2), "--system", system)
    for talk in talks:
        assert list(talk) == ["id", "image", "kind", "label", "source", "messages"]
        assert [turn["role"] for turn in talk["messages"]] == ["system", "user", "assistant"][system == "off" :]
        assert [part["type"] for part in talk["messages"][-2]["content"]] == ["image", "text"]
        for turn in talk["messages"]:
            assert all(part == {"type": "image"} or part["text"] for part in turn["content"])
    assert len({talk["id"] for talk in talks}) == len(talks)


def test_transformers_renders_the_conversations(made, tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    template = (
        "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{% if part.type == 'image' %}[IMAGE]"
        "{% else %}{{ part.text }}{% endif %}{% endfor %}</{{ m.role }}>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template=template)
    for talk in made(write_data(tmp_path, 1))[0]:
        text = tokenizer.apply_chat_template(talk["messages"], tokenize=False)
        prompt = tokenizer.apply_chat_template(talk["messages"][:-1], tokenize=False, add_generation_prompt=True)
        assert prompt.endswith(f"<user>[IMAGE]{text_of(talk['messages'][1])}</user><assistant>")
        assert text == f"{prompt}{answer_of(talk)}</assistant>"


def test_order_of_the_file_does_not_change_the_output(tmp_path):
    keys = write_data(tmp_path, 12)
    assert run(tmp_path / "one", keys) == 0
    entries = json.loads((tmp_path / "annotations.json").read_text(encoding="utf-8"))
    (tmp_path / "annotations.json").write_text(json.dumps(dict(reversed(entries.items()))), encoding="utf-8")
    assert run(tmp_path / "reversed", keys) == run(tmp_path / "seeded", keys, "--seed", 1) == 0
    one, other, seeded = (
        (tmp_path / name / "instructions_train.jsonl").read_bytes() for name in ("one", "reversed", "seeded")
    )
    assert one == other != seeded
    talks = conversations(tmp_path / "one")
    ids = [re.sub(r"-\d+-\w+$", "", talk["id"]) for talk in talks]
    assert ids == sorted(ids) and [*map(answer_of, talks)] == [*map(answer_of, conversations(tmp_path / "seeded"))]
    assert len({text_of(talk["messages"][1]) for talk in talks if talk["kind"] == "categorical"}) == 5


def test_splits_and_a_limit(tmp_path):
    keys = write_data(tmp_path, 5)
    keys += keys_of(tmp_path / "annotations.json", tmp_path / "images", split="validation_ds")[2:]
    assert run(tmp_path / "out", keys, "--split", "train", "--split", "val", "--limit", 2) == 0
    for split in ("train", "val"):
        images = {talk["image"] for talk in conversations(tmp_path / "out", split)}
        assert images == {"Style/picture 0.png", "Style/picture 1.png"}
    names = {"instructions_train.jsonl", "instructions_val.jsonl", "manifest_train.json", "manifest_val.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--split", "test"], "dataset.test_ds.json_path"),
        (["--model", "m"], "--endpoint and --model belong together"),
        (["--retries", "-1"], "--retries must be at least 0"),
        (["dataset.name=mlslt"], "videos"),
        (["dataset.nam=artemis"], "did you mean 'dataset.name'"),
        (["dataset.train_ds.json_path=null", "dataset.train_ds.visual_dir=null"], "there is no data: give"),
    ],
)
def test_wrong_usage(tmp_path, capsys, options, words):
    keys, flags = [o for o in options if "=" in o], [o for o in options if "=" not in o]
    assert run(tmp_path / "out", [*write_data(tmp_path, 1), *keys], *flags) == 2
    assert words in capsys.readouterr().err


def test_other_files_and_folders_in_use_are_refused(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/instructions_train.jsonl").write_text("mine", encoding="utf-8")
    assert run(tmp_path / "out", write_data(tmp_path, 1)) == 2
    assert "was not made by this command" in capsys.readouterr().err
    assert (tmp_path / "out/instructions_train.jsonl").read_text(encoding="utf-8") == "mine"
    (tmp_path / "used").mkdir()
    with locked(tmp_path / "used/.lock", purpose="testing"):
        assert run(tmp_path / "used", write_data(tmp_path, 1)) == 2
    assert "is in use by process" in capsys.readouterr().err


def test_real_paintings(shared_data, made):
    folder = shared_data / "paintings"
    talks, manifest = made(keys_of(folder / "artEmisX_train.json", folder / "wikiart"))
    kinds = Counter(talk["kind"] for talk in talks)
    annotations = sum(len(e["emotions"]) for e in json.loads((folder / "artEmisX_train.json").read_bytes()).values())
    assert kinds["categorical"] == kinds["reasoning"] == annotations
    assert 0.97 * annotations < kinds["observation"] == annotations - sum(manifest["left_out"].values())
    for talk in talks:
        assert (folder / "wikiart" / talk["image"]).is_file()
        assert not re.search(r"  |because because|\bbecause\W*$", answer_of(talk))
