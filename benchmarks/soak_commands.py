"""The commands that benchmarks.soak disturbs, and what they are given."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase

from PIL import Image

from common.config.check import ROOT
from tests.helpers.perceiver_files import CONFIG, random_state, random_tower, write_checkpoint
from tests.helpers.tiny import write_tokenizer

EMPTY_FILES, LEXICON_ROWS = 200_000, 10_000_000
SHORT = ["trainer.epochs=2", "trainer.checkpoint_every_n_steps=3", "dataset.train_ds.batch_size=8"]
SHORT += ["dataset.demo_images=64", "dataset.train_ds.num_workers=1", "trainer.num_validation_captions=8"]
STUDENT = ["expert.student.teacher=null", "expert.student.epochs=3", "expert.student.batch_size=16"]
TOKENIZER = ["--tokenizer", "{given}/tokenizer"]
FEW = ["trainer.test.limit_batches=2", "dataset.test_ds.batch_size=8", "trainer.test.best_of=2"]
FEW += ["trainer.test.match_images=8", "trainer.test.metrics=[rouge_l]", "trainer.test.novelty=false"]


@dataclass
class Command:
    """A command line, and what its files are by then.

    Args:
        words: after `python`; {} is the folder of the round, {given} that of `write_inputs`.
        files: whose content must be that of an undisturbed command.
        inputs: folders that it needs, copied from the undisturbed commands.
        once: a folder that is there when the command has finished, and that it refuses to write again.
        weight: how often it is taken, beside 1 for the others.
        expected, seconds: digests of the files and duration of the undisturbed command, a guess until that has run.
    """

    words: list[str]
    files: list[str]
    inputs: list[str] = field(default_factory=list)
    once: str | None = None
    weight: float = 1.0
    expected: dict[str, str] = field(default_factory=dict)
    seconds: float = 60.0


def run_py(mode: str, *keys: str) -> list[str]:
    return [str(ROOT / "run.py"), f"mode={mode}", "trainer.exp_dir={}/runs", "dataset.root={}/demo", *keys]


COMMANDS = {
    "paint": Command(
        ["-m", "data.demo", "--root", "{}/demo", "--num-train", "64"], ["demo/artEmisX_train.json", "demo/images"]
    ),
    "train": Command(
        run_py("train", "name=run", "trainer.resume=auto", *SHORT),
        ["runs/run/checkpoints/*/model.safetensors"],
        ["demo"],
    ),
    "test": Command(
        run_py("test", "pretrained_name={}/runs/run", *FEW), ["runs/run/test/predictions.jsonl"], ["demo", "runs"]
    ),
    "predict": Command(
        run_py("predict", "pretrained_name={}/runs/run", "image={}/demo/samples", "dataset.test_ds.batch_size=1"),
        ["runs/run/predict/predictions.json"],
        ["demo", "runs"],
    ),
    "prepare": Command(
        ["-m", "data.prepare", "images", "{}/demo/images", "--out", "{}/small", "--max-side", "24"],
        ["small/*/*.png", "small/left_out.csv"],  # its manifest counts the pictures of earlier runs
        ["demo"],
    ),
    "student": Command(
        run_py("train", "stage=student", "pretrained_name={}/runs/run", "trainer.resume=auto", *STUDENT),
        ["runs/run-student/checkpoints/*/*.safetensors"],
        ["demo", "runs"],
    ),
    "import": Command(
        ["-m", "model.checkpoint_import", "perceiver", "{given}/captions.pt", "--out", "{}/imported", *TOKENIZER],
        ["imported/checkpoints/*/model.safetensors"],
        once="imported",
    ),
    "empty files": Command(
        run_py("predict", "pretrained_name={}/runs/run", "image={given}/many", "dataset.test_ds.batch_size=64"),
        ["runs/run/predict/predictions.json", "runs/run/predict/skipped.jsonl"],
        ["demo", "runs"],
        weight=0.3,
    ),
    "lexicon": Command(["-m", "data.lexicon", "{given}/lexicon.csv"], [], weight=0.1),
    "export": Command(
        ["-m", "trainer.export", "{}/runs/run", "--out", "{}/export", "--overwrite"],
        ["export/model.safetensors"],
        ["demo", "runs"],
    ),
}


def write_inputs(folder: Path) -> None:
    """Write a published checkpoint with its tokenizer, a picture among EMPTY_FILES, and a lexicon of LEXICON_ROWS."""
    tokenizer = write_tokenizer(folder / "tokenizer")
    vocabulary = len(json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8")))
    write_checkpoint(folder / "captions.pt", CONFIG, random_state(CONFIG, vocabulary=vocabulary, tower=random_tower()))
    (folder / "many").mkdir()
    for number in range(EMPTY_FILES):
        (folder / "many" / f"{number:06d}.jpg").touch()
    Image.new("RGB", (64, 64), "teal").save(folder / "many" / "picture.png")
    words = map("".join, islice(product(ascii_lowercase, repeat=5), LEXICON_ROWS))
    with (folder / "lexicon.csv").open("w", encoding="utf-8") as file:
        file.write("word,valence,arousal,dominance\n")
        file.writelines(f"{word},.1,.2,.3\n" for word in words)
