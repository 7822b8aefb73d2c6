"""Files of every kind, damaged by the hundred: each is used, left out or refused in a sentence, and nothing else.

Pictures and annotations are in test_damaged_data.py.
"""

from __future__ import annotations

import json
import random
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml

from config_files import load_file
from data.digests import FileDigests
from data.feature_cache import MEMO
from data.images import ImageError, open_image
from data.lexicon import read_lexicon
from data.mlslt import read_frames
from data.prepare import journal
from data.prepare.table import read_rows
from data.text import Template, load_tokenizer
from data.token_files import CachedTokens, TokenWriter, read_places
from errors import UserError
from model.language import build_gpt2
from model.text_emotion import build_text_emotion
from model.vision import build_vision
from tests.hostile import checkpoint_of, composed, snapshot, time_limit, train_keys, write_run
from tests.test_damaged_data import artemis, coco, encoded, flipped, one_change, shuffled, truncated, zeroed
from tests.test_mlslt import write_clip
from tests.tiny import go_offline, sentences, write_gpt2, write_lexicon, write_open_clip, write_tokenizer
from trainer import commands
from trainer.score.predictions import read_predictions
from trainer.score.references import read_references
from trainer.text_emotion.classifier import TextClassifier, Vocabulary, load_classifier

SECONDS = 20  # for one case
MEMORY = 1 << 30  # bytes that all cases together may add
BYTES = (truncated, flipped, zeroed, shuffled)
Damage = Callable[[bytes, random.Random], bytes]


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < MEMORY


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path) -> None:
    go_offline(monkeypatch, tmp_path / "hub")


class Account:
    """What became of the cases; whatever is neither used nor refused in a sentence is named at the end."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.broken: list[str] = []

    def read(self, what: str, read: Callable[[], object]) -> None:
        try:
            with time_limit(SECONDS):
                read()
            self.count["used"] += 1
        except (UserError, ImageError) as error:
            self.count["refused"] += 1
            if not 0 < len(str(error)) < 3000:
                self.broken.append(f"{what}: {str(error)[:200]!r}")
        except BaseException as error:
            self.broken.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")

    def close(self, *, refused: float) -> None:
        cases = self.count.total() + len(self.broken)
        assert not self.broken, f"{len(self.broken)} of {cases}:\n" + "\n".join(self.broken)
        assert self.count["refused"] >= refused * cases, self.count


def changed_json(data: bytes, rng: random.Random) -> bytes:
    """One value of a JSON file replaced or gone."""
    return json.dumps(one_change(json.loads(data), rng).data).encode()


def changed_line(data: bytes, rng: random.Random) -> bytes:
    """The same in one line of a file of JSON lines."""
    lines = data.splitlines()
    i = rng.randrange(len(lines))
    return b"\n".join([*lines[:i], changed_json(b"[%s]" % lines[i], rng)[1:-1], *lines[i + 1 :]]) + b"\n"


def changed_yaml(data: bytes, rng: random.Random) -> bytes:
    return yaml.dump(one_change(yaml.safe_load(data), rng).data).encode("utf-8", "surrogatepass")


def changed_head(data: bytes, rng: random.Random) -> bytes:
    """One value in the head of a safetensors file replaced or gone."""
    length = int.from_bytes(data[:8], "little")
    head = changed_json(data[8 : 8 + length], rng)
    return len(head).to_bytes(8, "little") + head + data[8 + length :]


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("fuzz"))


DAMAGES: dict[str, tuple[Damage, ...]] = {
    "model.safetensors": (*BYTES, *[changed_head] * 4),
    "checkpoint.json": (*BYTES, *[changed_json] * 4),
    "tokenizer.json": (*BYTES, *[changed_json] * 4),
    "config.yaml": (*BYTES, *[changed_yaml] * 14),
    "SHA256SUMS": BYTES,
    "../index.json": (flipped, changed_json),
}


def test_damaged_runs(run):
    """Its files, one at a time; the checksums, which would tell, are gone in most cases, as whoever does harm would."""
    folder, root, account = checkpoint_of(run), run.parent.parent, Account()
    keys = {"preset": "none", "pretrained_name": run, "trainer.device": "cpu", "trainer.exp_dir": run.parent}
    config = composed("predict", {**keys, "image": root / "test" / "images" / "Style" / "picture-000.png"})
    sums = (folder / "SHA256SUMS").read_bytes()
    outside = {path: info for path, info in snapshot(root).items() if not path.is_relative_to(run)}
    for name, damages in DAMAGES.items():
        path = folder / name
        whole = path.read_bytes()
        for seed in range(3 * len(damages)):
            rng, damage = random.Random(f"{name}/{seed}"), damages[seed % len(damages)]
            if name != "SHA256SUMS" and seed % 10:
                (folder / "SHA256SUMS").unlink()
            path.write_bytes(damage(whole, rng))
            account.read(f"{name} {damage.__name__} {seed}", lambda: commands.predict(config.copy()))
            path.write_bytes(whole)
            (folder / "SHA256SUMS").write_bytes(sums)
    account.close(refused=0.4)
    assert {path: info for path, info in snapshot(root).items() if not path.is_relative_to(run)} == outside


def test_damaged_states_of_a_training(run, tmp_path):
    root, account = run.parent.parent, Account()
    keys = train_keys(root) | {"trainer.epochs": 2, "pretrained_name": run, "resume_pretrained_state": True}
    config = composed("train", {**keys, "name": "on", "trainer.exp_dir": tmp_path, "trainer.overwrite": True})
    path = checkpoint_of(run) / "training.pt"
    whole = path.read_bytes()
    (path.parent / "SHA256SUMS").unlink()
    for seed in range(24):
        path.write_bytes(BYTES[seed % 4](whole, random.Random(f"training/{seed}")))
        account.read(f"training.pt {seed}", lambda: commands.train(config.copy()))
    path.write_bytes(whole)
    account.close(refused=0.4)


# --- single files ---------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """How a whole file is written below a folder, how it is read, and what is done to it."""

    write: Callable[[Path], Path]
    read: Callable[[Path], object]
    damages: tuple[Damage, ...]
    cases: int
    refused: float = 0.2  # at least so many


def text(name: str, content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return write


def beside(write: Callable[[Path], Path], name: str) -> Callable[[Path], Path]:
    """A file in the folder that `write` fills."""
    return lambda folder: write(folder / "whole") / name


def use_tokenizer(path: Path) -> None:
    template = Template(load_tokenizer(str(path)), max_length=60)
    template.decode(template.encode(" ".join(sentences(3)), 0).input_ids)


def tokenizer_json(folder: Path) -> Path:
    write_tokenizer(folder / "parts")
    load_tokenizer(str(folder / "parts")).backend_tokenizer.save(str(folder / "t.json"))
    return folder / "t.json"


def use_cache(path: Path) -> None:
    places = read_places(path.parent, (3, 4))
    tokens = CachedTokens(path.parent, (3, 4), ["a", "b"], places, {})
    tokens[0], tokens[1]


def cache(folder: Path) -> Path:
    with TokenWriter(folder) as writer:
        for name in ("a", "b"):
            writer.add(name, np.zeros((2, 3, 4), np.float16))
    return folder / "0000.jsonl"


def memo(folder: Path) -> Path:
    lines = [json.dumps([str(folder / f"{i}.png"), 1, 2, 3, 4, "00" * 20]) + "\n" for i in range(5)]
    return text(MEMO, "".join(lines))(folder)


def copies(folder: Path) -> Path:
    settings = journal.Settings(60, 95)
    journal.begin(folder, settings, {"a.png": journal.Copy("a.png", "resized", 1, 2, 3)}).close()
    return folder / journal.NAME


def write_classifier(folder: Path) -> Path:
    sizes = dict.fromkeys(("embedding_dim", "word_dim", "hidden_dim", "head_dim"), 4)
    settings = {"network": {"name": "lstm", "vocabulary": 5, "classes": 9, **sizes}}
    words = Vocabulary(["<pad>", "<unk>", "a", "vast", "sky"])
    TextClassifier(build_text_emotion(settings["network"]), words, settings).save(folder)
    return folder


def use_classifier(path: Path) -> None:
    load_classifier(path.parent, device="cpu").read(["a vast sky"])


CONFIGURATION = "name: mine\nseed: 3\nmodel: {mapper: {depth: 2}}\ndataset: {name: coco, root: x}\n"
CONFIGURATION += "trainer: {epochs: 2, exp_name: '${name}', test: {metrics: [bleu]}}\n"
PREDICTED = [{"id": f"{i}", "emotion": "awe", "explanation": s, "references": [s]} for i, s in enumerate(sentences(6))]
RAW = "art_style,painting,emotion,utterance,repetition\n" + "".join(
    f'Rococo,boat-{i},awe,"a sky, and a boat {i}",5\n' for i in range(9)
)
KINDS = {
    "lexicon": Kind(lambda folder: write_lexicon(folder / "l.csv"), read_lexicon, BYTES, 40, 0.1),
    "configuration": Kind(
        text("c.yaml", CONFIGURATION),
        lambda p: load_file(str(p.parent), p.name),
        (*BYTES, *[changed_yaml] * 4),
        48,
        0.1,
    ),
    "tokenizer": Kind(tokenizer_json, use_tokenizer, (*BYTES, *[changed_json] * 4), 48),
    "vocab.json": Kind(
        beside(write_tokenizer, "vocab.json"), lambda p: use_tokenizer(p.parent), (*BYTES, changed_json), 20, 0.0
    ),
    "merges.txt": Kind(beside(write_tokenizer, "merges.txt"), lambda p: use_tokenizer(p.parent), BYTES, 20, 0.0),
    "predictions": Kind(
        text("p.jsonl", "".join(json.dumps(row) + "\n" for row in PREDICTED)),
        lambda p: (read_predictions(p), read_references(p)),
        (*BYTES, *[changed_line] * 4),
        40,
    ),
    "COCO references": Kind(
        text("r.json", json.dumps(coco())), read_references, (*BYTES, *[changed_json] * 4), 40, 0.1
    ),
    "SEVLM references": Kind(text("r.json", json.dumps(artemis())), read_references, (*BYTES, *[changed_json] * 4), 40),
    "raw ArtEmis": Kind(text("raw.csv", RAW), lambda p: read_rows(p, new=None, left_out=[]), BYTES, 40, 0.0),
    "classifier": Kind(beside(write_classifier, "settings.json"), use_classifier, (*BYTES, changed_json), 25),
    "classifier's words": Kind(beside(write_classifier, "vocabulary.json"), use_classifier, (*BYTES, changed_json), 20),
    "classifier's weights": Kind(
        beside(write_classifier, "model.safetensors"), use_classifier, (*BYTES, changed_head), 20
    ),
    "CLIP": Kind(
        beside(write_open_clip, "open_clip_config.json"),
        lambda p: build_vision(pretrained_name=str(p.parent)),
        (*BYTES, *[changed_json] * 4),
        40,
    ),
    "CLIP's weights": Kind(
        beside(write_open_clip, "open_clip_model.safetensors"),
        lambda p: build_vision(pretrained_name=str(p.parent)),
        (*BYTES, changed_head),
        20,
    ),
    "GPT-2": Kind(
        beside(lambda folder: write_gpt2(folder, vocab_size=300), "config.json"),
        lambda p: build_gpt2(pretrained_name=str(p.parent), config=None, vocab_size=300, eos_id=0),
        (*BYTES, *[changed_json] * 4),
        40,
    ),
    "GPT-2's weights": Kind(
        beside(lambda folder: write_gpt2(folder, vocab_size=300), "model.safetensors"),
        lambda p: build_gpt2(pretrained_name=str(p.parent), config=None, vocab_size=300, eos_id=0),
        (*BYTES, changed_head),
        20,
    ),
    "feature cache": Kind(cache, use_cache, (*BYTES, changed_line), 25, 0.0),
    "digests": Kind(memo, lambda p: FileDigests(p).contents([p], show=False), (*BYTES, changed_line), 25, 0.0),
    "journal of copies": Kind(
        copies, lambda p: journal.read(p.parent, journal.Settings(60, 95)), (*BYTES, changed_line), 25, 0.0
    ),
    "clip": Kind(lambda folder: write_clip(folder / "c.mp4", 9), lambda p: read_frames(p, max_frames=4), BYTES, 32),
}
for form in ("JPEG2000", "PCX", "PPM", "DIB", "QOI"):

    def write_picture(folder: Path, form: str = form) -> Path:
        (folder / "picture").write_bytes(encoded(0, format=form))
        return folder / "picture"

    KINDS[f"{form} picture"] = Kind(write_picture, open_image, BYTES, 16, 0.1)


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files(name, tmp_path):
    kind, account = KINDS[name], Account()
    (tmp_path / "files").mkdir()
    path = kind.write(tmp_path / "files")
    whole, others = path.read_bytes(), snapshot(tmp_path)
    others.pop(path)
    kind.read(path)
    for seed in range(kind.cases):
        damage = kind.damages[seed % len(kind.damages)]
        path.write_bytes(damage(whole, random.Random(f"{name}/{seed}")))
        account.read(f"{damage.__name__} {seed}", lambda: kind.read(path))
    account.close(refused=kind.refused)
    after = snapshot(tmp_path)
    after.pop(path)
    assert after == others
