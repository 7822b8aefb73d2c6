"""Texts in several languages: tokenizer and scores of each, a multilingual language model, letters that are lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from common.errors import UserError
from data.round_trip import lost_letters
from data.samples import Samples
from data.schema import Sample
from data.text import Template
from tests.helpers.tiny import run_mode, write_splits
from tests.model.test_language_families import FAMILIES
from trainer.metrics.captions import caption_scores
from trainer.score.measure import measure
from trainer.score.references import read_references
from trainer.score.scores import Settings
from trainer.score.tables import metrics_text

ENGLISH = "ab"
CHINESE, ARABIC = "平静的大海，让我想起了故乡。", "أشعر بالهدوء عندما أنظر إلى هذا البحر"


def row(id: str, language: str, text: str, reference: str) -> dict:
    return {"id": id, "language": language, "emotion": "awe", "explanation": text, "references": [reference],
            "reference_emotions": ["awe"], "histogram": [0, 1, 0, 0, 0, 0, 0, 0, 0]}  # fmt: skip


ROWS = [
    row("a", "chinese", "平静的山，让我想起了故乡", CHINESE),
    row("b", "chinese", "天空很蓝", "天空很暗，像夜晚"),
    row("c", "arabic", ARABIC, ARABIC),
    row("d", "english", "a calm sea", "a calm sea and a boat"),
]


def test_chinese_is_scored_by_characters() -> None:
    """As nltk's BLEU of the same characters, punctuation left out."""
    from nltk.translate.bleu_score import corpus_bleu

    rows = {row["id"]: row for row in ROWS[:2]}
    scores = caption_scores(
        {id: row["explanation"] for id, row in rows.items()},
        {id: row["references"] for id, row in rows.items()},
        metrics=("bleu", "meteor", "rouge_l"),
        tokenizer="words",
    )
    characters = [[c for c in text if c not in "，。"] for text in (row["explanation"] for row in rows.values())]
    references = [[[c for c in row["references"][0] if c not in "，。"]] for row in rows.values()]
    assert scores.scores["BLEU-2"] == pytest.approx(corpus_bleu(references, characters, weights=(0.5, 0.5)), abs=1e-6)
    assert scores.tokenizer == "words, and characters in scripts without spaces"
    assert "METEOR" not in scores.scores and scores.notes == ["METEOR left out: for English texts only"]


def test_scores_by_language() -> None:
    found = measure(ROWS, Settings(metrics=("bleu", "rouge_l"), novelty=False)).metrics
    assert found["tokenizer"] == "words, and characters in scripts without spaces"
    by_language = found["languages"]
    assert {name: values["images"] for name, values in by_language.items()} == {"arabic": 1, "chinese": 2, "english": 1}
    assert by_language["arabic"]["BLEU-4"] == pytest.approx(1) and by_language["english"]["tokenizer"] == "whitespace"
    alone = measure(ROWS[:2], Settings(metrics=("bleu", "rouge_l"), novelty=False)).metrics
    assert alone["captions"]["ROUGE-L"] == by_language["chinese"]["ROUGE-L"] and "languages" not in alone
    text = metrics_text(found)
    assert "By language" in text and "chinese" in text and "whitespace: english" in text


def test_references_name_their_language(tmp_path: Path) -> None:
    entry = {"image_name": "a.jpg", "emotions": ["awe"], "explanations": [CHINESE], "language": "chinese"}
    (tmp_path / "a.json").write_text(json.dumps({"7": entry}), encoding="utf-8")
    assert read_references(tmp_path / "a.json").rows["7"]["language"] == "chinese"


def test_a_language_that_is_not_named_shows_in_its_script() -> None:
    rows = [{**row, "language": ""} for row in ROWS[:2]]
    found = measure(rows, Settings(metrics=("bleu",), novelty=False)).metrics
    assert found["tokenizer"] == "words, and characters in scripts without spaces" and found["captions"]["BLEU-1"] > 0.5


@pytest.mark.parametrize("family", ["bloom", "xglm"])
def test_multilingual_model_on_a_table_of_arabic_and_chinese(tmp_path: Path, family: str) -> None:
    keys = write_splits(tmp_path, train=4, val=4, test=4)
    lines = ["image,text,emotion,language,split"]
    for split in ("train", "validation", "test"):
        for i in range(2):
            texts = ((ARABIC, "Arabic"), (CHINESE, "Chinese"))
            lines += [
                f"{split}/images/Style/picture-00{i}.png,{t},awe,{name},{split.replace('idation', '')}"
                for t, name in texts
            ]
        keys |= {f"dataset.{split}_ds.json_path": tmp_path / "table.csv", f"dataset.{split}_ds.visual_dir": tmp_path}
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    keys |= {"dataset.name": "table", "dataset.max_length": 128, "model.text.config": FAMILIES[family]}
    run_mode("train", {**keys, "name": family, "trainer.checkpoint_every_n_steps": 1})
    tested = {key: keys[key] for key in keys if key.startswith("dataset.test_ds")}
    run_mode("test", {**tested, "pretrained_name": tmp_path / "runs" / family})
    found = json.loads((tmp_path / "runs" / family / "test/metrics.json").read_text(encoding="utf-8"))
    assert found["images"] == 4 and set(found["languages"]) == {"arabic", "chinese"}
    assert found["languages"]["chinese"]["tokenizer"].startswith("words, and characters")
    rows = (tmp_path / "runs" / family / "test/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(row)["language"] for row in rows} == {"arabic", "chinese"}


def letters_only(alphabet: str, folder: Path) -> Template:
    """Return a template whose tokenizer knows these letters, and reads others as <unk>."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", "</s>", *dict.fromkeys(alphabet + " ")])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    tokenizer.name_or_path = "letters"
    return Template(tokenizer, max_length=400)


@pytest.mark.parametrize(
    ("texts", "warning"),
    [([ENGLISH] * 9, None), ([ENGLISH] * 30 + ["a ж"], "cannot write 2% of the letters of FILE, such as 'ж'")],
)
def test_letters_that_a_tokenizer_cannot_write(tmp_path: Path, texts: list[str], warning: str | None) -> None:
    template = letters_only("abcdefghijklmnopqrstuvwxyz", tmp_path)
    samples = Samples.pack([Sample("a", tmp_path / "a.png", tuple(texts))])
    found = lost_letters(template, samples, where="FILE")
    assert found is None if warning is None else warning in found
    samples = Samples.pack([Sample("a", tmp_path / "a.png", (CHINESE, ENGLISH[:3]))])
    with pytest.raises(
        UserError, match=r"dataset\.tokenizer: letters cannot write .* such as '平'; use a language model"
    ):
        lost_letters(template, samples, where="FILE")


def test_bytes_can_write_every_letter(template: Template, tmp_path: Path) -> None:
    samples = Samples.pack([Sample("a", tmp_path / "a.png", (CHINESE, ARABIC, "ВСЁ Straße"))])
    assert lost_letters(template, samples, where="FILE") is None
