"""python -m data.prepare check: lexicons and tokenizers that do not fit the texts; a hub out of reach."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from data.prepare.__main__ import main
from tests.helpers.tiny import ROOT, write_lexicon, write_pictures, write_tokenizer

CHINESE = "平静的大海，让我想起了故乡。"


@pytest.fixture
def keys(tmp_path: Path) -> list[str]:
    """A table of two pictures with a text in English and one in Chinese each."""
    rows = [
        f"{path.name},{text}" for path in write_pictures(tmp_path / "images", 2) for text in ("a calm sea", CHINESE)
    ]
    (tmp_path / "t.csv").write_text("\n".join(["image,text", *rows]) + "\n", encoding="utf-8")
    files = [f"dataset.train_ds.json_path={tmp_path / 't.csv'}", f"dataset.train_ds.visual_dir={tmp_path / 'images'}"]
    return ["preset=none", "dataset.name=table", *files]


def check(tmp_path: Path, *keys: str, status: int) -> dict[str, str]:
    """Run the command and return the first reason by kind of problem."""
    assert main(["check", *keys, "--out", str(tmp_path / "out"), "--workers", "1"]) == status
    with (tmp_path / "out/problems.csv").open(encoding="utf-8", newline="") as file:
        return {row["kind"]: row["reason"] for row in csv.DictReader(file)}


def test_a_lexicon_of_another_language_is_a_problem(tmp_path: Path, keys: list[str]) -> None:
    keys = [*keys, f"dataset.tokenizer={write_tokenizer(tmp_path / 'tokenizer')}"]
    assert check(tmp_path, *keys, f"dataset.vad_lexicon={write_lexicon(tmp_path / 'l.csv')}", status=0) == {}
    (tmp_path / "german.csv").write_text(
        "word,valence,arousal,dominance\nruhig,0.8,-0.9,0.2\n,1,1,1\n", encoding="utf-8"
    )
    found = check(tmp_path, *keys, f"dataset.vad_lexicon={tmp_path / 'german.csv'}", status=1)
    assert (
        found.keys() == {"coverage", "lexicon rows"}
        and "no word of its texts is in the VAD lexicon" in found["coverage"]
    )
    assert "1 rows without a word are skipped" in found["lexicon rows"]


def test_a_picture_with_texts_in_two_languages_is_no_duplicate(tmp_path: Path, keys: list[str]) -> None:
    path, tokenizer = tmp_path / "t.csv", write_tokenizer(tmp_path / "tokenizer")
    head, *rows = path.read_text(encoding="utf-8").splitlines()
    named = [f"{row},{('english', 'chinese')[i % 2]}" for i, row in enumerate(rows)]
    path.write_text("\n".join([f"{head},language", *named]), encoding="utf-8")
    assert check(tmp_path, *keys, f"dataset.tokenizer={tokenizer}", status=0) == {}
    path.write_text("\n".join([f"{head},language", *named, "copy.png,one,english"]), encoding="utf-8")
    shutil.copy(tmp_path / "images/picture-000.png", tmp_path / "images/copy.png")
    assert check(tmp_path, *keys, f"dataset.tokenizer={tokenizer}", status=1).keys() == {"duplicate"}


def test_a_tokenizer_without_the_letters_is_a_problem(tmp_path: Path, keys: list[str]) -> None:
    alphabet = " abcdefghijklmnopqrstuvwxyzAB1,."
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(["<unk>", "</s>", *alphabet])}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.save(str(tmp_path / "letters.json"))
    found = check(tmp_path, *keys, f"dataset.tokenizer={tmp_path / 'letters.json'}", status=1)
    assert (
        found.keys() == {"letters"} and "cannot write 60% of the letters of train_ds, such as '平'" in found["letters"]
    )


def test_a_hub_out_of_reach_is_not_retried(tmp_path: Path, keys: list[str]) -> None:
    """The switch is set before huggingface_hub, which reads it when it is imported."""
    unset = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "data.prepare", "check", *keys, "dataset.tokenizer=nobody/nothing", "--no-decode"]
    ran = subprocess.run([*command, "--out", str(tmp_path / "out")], cwd=ROOT, env=environment, capture_output=True,
                         text=True, check=False, timeout=120)  # fmt: skip
    assert ran.returncode == 1 and "'nobody/nothing' is not on this machine" in ran.stdout, ran.stderr
