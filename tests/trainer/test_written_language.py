"""A network of several languages is given the one to write, and its baselines are in that language."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from common.config.check import default_config
from common.errors import UserError
from data.text import IGNORED, Template
from emoscribe import EmoScribe
from tests.helpers.tiny import make_template, run_mode, write_splits
from trainer.metrics.baselines import baseline_texts
from trainer.prediction.matching import blocks_of
from trainer.setup.autos import resolve_auto

SENTENCES = {"english": "calm calm calm", "french": "small small small"}


@pytest.fixture
def template(tmp_path: Path) -> Template:
    tokenizer = make_template(tmp_path / "tokenizer").tokenizer
    return Template(tokenizer, max_length=60, languages=["arabic", "english", "french"])


@pytest.mark.parametrize("emotion", [3, None])
def test_language_is_read_before_the_explanation_and_not_supervised(template: Template, emotion: int | None) -> None:
    encoded = template.encode("a calm boat", emotion, language="french")
    prompt, in_segment = template.explanation_prompt(emotion, "french")
    start = encoded.explanation_start
    assert encoded.input_ids[:start] == prompt and template.decode(encoded.input_ids[start:]) == "a calm boat"
    assert template.decode(prompt).endswith("(french):") and sum(encoded.segment[:start]) == in_segment
    named = len(template.language_ids["french"])
    assert encoded.labels[start - named : start] == [IGNORED] * named
    assert encoded.labels[start:] == encoded.input_ids[start:]
    assert (encoded.labels[start - named - 1] == IGNORED) == (emotion is None)  # "because" is supervised


def test_text_without_a_language_is_in_english(template: Template) -> None:
    assert template.encode("a boat", 0) == template.encode("a boat", 0, language="english")
    one = Template(template.tokenizer, max_length=60)
    assert one.encode("a boat", 0, language="french") == one.encode("a boat", 0)


@pytest.mark.parametrize(
    ("listed", "found", "expected"),
    [
        (None, ["arabic", "chinese"], ["arabic", "chinese"]),
        (None, ["chinese"], []),
        ([], ["arabic", "chinese"], []),
        (["Chinese", "Arabic"], ["arabic"], ["chinese", "arabic"]),
    ],
)
def test_languages_are_those_of_several_training_texts(listed, found, expected) -> None:
    config = default_config()
    config.dataset.languages = listed
    resolve_auto(config, has_emotions=True, languages=found)
    assert list(config.dataset.languages) == expected


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train until the same picture gets a sentence in each language."""
    root = tmp_path_factory.mktemp("languages")
    keys = write_splits(root, train=4, val=4, test=4)
    lines = ["image,text,emotion,language,split"]
    for split in ("train", "validation", "test"):
        for i in range(4):
            for language, text in SENTENCES.items():
                image = f"{split}/images/Style/picture-{i:03d}.png"
                lines.append(f"{image},{text},awe,{language},{split.replace('idation', '')}")
        keys |= {f"dataset.{split}_ds.json_path": root / "table.csv", f"dataset.{split}_ds.visual_dir": root}
    (root / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    keys |= {"dataset.vad_lexicon": None, "model.contrastive.enabled": False, "dataset.name": "table"}
    keys |= {"model.text.trainable": True, "model.optimizer.lr": 5e-3, "trainer.epochs": 40}
    keys |= {"trainer.check_val_every_n_epoch": 40, "trainer.test.metrics": ["rouge_l"], "trainer.test.novelty": False}
    run_mode("train", {**keys, "name": "two"})
    run_mode("test", {"pretrained_name": root / "runs" / "two"})
    return root / "runs" / "two"


def test_each_row_is_written_in_its_language(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "test/predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 8
    assert {(row["language"], row["explanation"]) for row in rows} == {*SENTENCES.items()}
    assert all(row["nearest"] == SENTENCES[row["language"]] for row in rows)


@pytest.mark.parametrize(("language", "written"), [(None, "english"), (" French", "french")])
def test_predict_in_a_language(run: Path, language: str | None, written: str) -> None:
    picture = run.parents[1] / "test/images/Style/picture-000.png"
    run_mode("predict", {"pretrained_name": run, "image": picture, "language": language, "trainer.overwrite": True})
    (row,) = json.loads((run / "predict/predictions.json").read_text(encoding="utf-8"))
    assert row["language"] == written and row["explanation"] == SENTENCES[written]
    assert EmoScribe.from_pretrained(run, keys={"language": language}).explain(picture).text == SENTENCES[written]


def test_predict_shards_in_a_language(run: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        archive.add(run.parents[1] / "test/images/Style/picture-000.png", "a.png")
    keys = {"image": tmp_path / "0.tar", "language": "french", "name": "tar", "trainer.exp_dir": run.parent}
    run_mode("predict", {"pretrained_name": run, **keys})
    row = json.loads((run.parent / "tar/predict/predictions/0.jsonl").read_text(encoding="utf-8"))
    assert row["language"] == "french" and row["explanation"] == SENTENCES["french"]


def test_language_that_the_network_does_not_write_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match=r"language=Dutch: the network of \S+ writes english, french"):
        EmoScribe.from_pretrained(run, keys={"language": "Dutch"})


def test_baselines_are_in_the_language_of_the_row() -> None:
    texts, emotions = ["a", "b", "b", "c", "d"], ["awe", "awe", "awe", "awe", "fear"]
    languages = ["french", "dutch", "dutch", "french", "french"]
    rows = [{"id": str(i), "emotion": "awe", "language": name, "explanation": f"{name} {i}"}
            for i, name in enumerate(["french", "dutch"] * 4)]  # fmt: skip
    rows += [{"id": "8", "emotion": "fear", "language": "dutch", "explanation": ""}]
    found, _ = baseline_texts(rows, texts, emotions, languages, seed=1)
    assert [found["commonest"][str(i)] for i in (0, 1, 8)] == ["a", "b", "b"]  # no Dutch text of fear: any Dutch one
    assert all(found["random"][row["id"]] in ({"a", "c"} if row["language"] == "french" else {"b"}) for row in rows)
    assert all(found["other_picture"][row["id"]].startswith(row["language"]) for row in rows[:8])
    blocks, _ = blocks_of(rows, count=9, seed=1)
    assert all(len({rows[int(id)]["language"] for id in block}) == 1 for block in blocks)
