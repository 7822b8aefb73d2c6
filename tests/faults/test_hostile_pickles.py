"""A malicious pickle in each place that reads files of others: refused with a clear message, and not run."""

from __future__ import annotations

import codecs
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from data.cache.digests import FileDigests
from data.cache.feature_cache import MEMO
from data.cache.token_files import read_places
from data.readers.split import read_split
from data.tokenizer import load_tokenizer
from data.vad.lexicon_files import read_lexicon
from model.vision import build_vision
from model.weights.gpt2 import build_gpt2
from model.weights.nlxgpt import nlxgpt_settings, nlxgpt_state
from model.weights.plain import numpy_numbers, read_torch
from tests.helpers.data_files import dataset
from tests.helpers.hostile import (
    FORMS,
    checkpoint_of,
    composed,
    confined,
    picture_of,
    refusal,
    sent_run,
    train_keys,
    write_evil,
)
from tests.helpers.tiny import go_offline, write_gpt2, write_open_clip, write_run, write_tokenizer
from trainer import commands
from trainer.metrics.clipscore import Clip
from trainer.score.predictions import read_predictions
from trainer.setup.import_checkpoint import main as import_checkpoint
from trainer.text_emotion.import_artemis import import_classifier, read_vocabulary
from trainer.text_emotion.text_classifier import load_classifier
from trainer.text_emotion.word_vectors import read_vectors

TOWER = "ViT-S-32-alt"
SHARDS = {"weight_map": {"transformer.wte.weight": "a-1.bin"}}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path) -> None:
    go_offline(monkeypatch, tmp_path / "hub")


# --- folders in which one file is missing, and their readers ----------------------------------------------------------


def gpt2(folder: Path, name: str, **config: object) -> Path:
    write_gpt2(folder, vocab_size=300)
    (folder / "model.safetensors").unlink()
    whole = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(whole | config), encoding="utf-8")
    return folder / name


def sharded(folder: Path) -> Path:
    path = gpt2(folder, "a-1.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(SHARDS), encoding="utf-8")
    return path


def clip(folder: Path, name: str) -> Path:
    write_open_clip(folder)
    (folder / "open_clip_model.safetensors").unlink()
    return folder / name


def sevlm(folder: Path, *, stats: bool) -> Path:
    model = gpt2(folder / "nle_model_best-res", "pytorch_model.bin")
    write_tokenizer(folder / "nle_gpt2_tokenizer_0")
    if stats:
        torch.save({}, model)
        return folder / "ckpt_stats_best-res.tar"
    torch.save({}, folder / "ckpt_stats_best-res.tar")
    return model


def classifier(folder: Path, name: str) -> Path:
    network = {"name": "lstm", "vocabulary": 2, "classes": 9, **dict.fromkeys(("embedding_dim", "word_dim"), 4)}
    settings = {"network": network | dict.fromkeys(("hidden_dim", "head_dim"), 4)}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "vocabulary.json").write_text('["<pad>", "<unk>"]', encoding="utf-8")
    return folder / name


def read_gpt2(path: Path) -> None:
    build_gpt2(pretrained_name=str(path.parent), config=None, vocab_size=300, eos_id=0)


def read_tower(path: Path) -> None:
    build_vision(pretrained_name=str(path), architecture=TOWER)


def read_clip(path: Path) -> None:
    build_vision(pretrained_name=str(path.parent))


def read_clip_score(path: Path) -> None:
    folder = path.suffix != ".pt"
    Clip(str(path.parent if folder else path), None if folder else TOWER, section="--clip")


def by_command(*arguments: object, capsys: pytest.CaptureFixture) -> None:
    """`python -m model.checkpoint_import …`"""
    if import_checkpoint([*map(str, arguments)]) == 2:
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        raise UserError(line)


# Key or command → writer of the other files, which returns the path of the pickle, and reader.
PLACES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "model.text.pretrained_name=FOLDER, pytorch_model.bin": (lambda d: gpt2(d, "pytorch_model.bin"), read_gpt2),
    "model.text.pretrained_name=FOLDER, model.safetensors": (lambda d: gpt2(d, "model.safetensors"), read_gpt2),
    "model.text.pretrained_name=FOLDER, shards": (sharded, read_gpt2),
    "model.text.pretrained_name=FOLDER of NLX-GPT, its settings": (
        lambda d: gpt2(d, "pytorch_model.bin", add_cross_attention=True),
        lambda p: nlxgpt_settings(p.parent),
    ),
    "model.text.pretrained_name=FOLDER of NLX-GPT, its weights": (
        lambda d: gpt2(d, "pytorch_model.bin", add_cross_attention=True),
        lambda p: nlxgpt_state(p.parent, vocab_size=300),
    ),
    **{f"model.vision.pretrained_name=FILE{end}": (lambda d, end=end: d / f"x{end}", read_tower)
       for end in (".pt", ".bin", ".pth", ".safetensors", ".npz")},
    **{f"model.vision.pretrained_name=FOLDER, {name}": (lambda d, name=name: clip(d, name), read_clip)
       for name in ("open_clip_pytorch_model.bin", "open_clip_model.safetensors", "anything.pth")},
    "trainer.test.clip_score, FOLDER": (lambda d: clip(d, "open_clip_pytorch_model.bin"), read_clip_score),
    "trainer.test.clip_score, FILE": (lambda d: d / "x.pt", read_clip_score),
    "trainer.text_emotion import MODEL": (lambda d: d / "m.pt", lambda p: import_classifier(p, p)),
    "trainer.text_emotion import VOCABULARY": (lambda d: d / "v.pkl", read_vocabulary),
    "trainer.text_emotion train --vectors": (lambda d: d / "glove.txt", lambda p: read_vectors(p, ["sky"])),
    **{f"trainer.test.text_emotion=FOLDER, {name}":
       (lambda d, name=name: classifier(d, name), lambda p: load_classifier(p.parent))
       for name in ("settings.json", "vocabulary.json", "model.safetensors")},
    "dataset.tokenizer=FILE": (lambda d: d / "t.json", lambda p: load_tokenizer(str(p))),
    "dataset.tokenizer=FOLDER": (lambda d: write_tokenizer(d) / "vocab.json", lambda p: load_tokenizer(str(p.parent))),
    "dataset.vad_lexicon": (lambda d: d / "l.csv", read_lexicon),
    "dataset.*.json_path": (lambda d: d / "a.json", lambda p: read_split(dataset("artemis", p, p.parent), "train_ds")),
    "trainer.score PREDICTIONS": (lambda d: d / "p.jsonl", read_predictions),
}  # fmt: skip
COMMANDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], list]]] = {
    "perceiver": (lambda d: d / "x.pt", lambda p: ["perceiver", p, "--tokenizer", write_tokenizer(p.parent / "t")]),
    "sevlm, weights": (lambda d: sevlm(d, stats=False), lambda p: ["sevlm", p.parent.parent]),
    "sevlm, state of the training": (lambda d: sevlm(d, stats=True), lambda p: ["sevlm", p.parent]),
}


@pytest.mark.parametrize("form", FORMS)
def test_unsafe_loading_runs_the_pickles(form, tmp_path):
    path, marker = write_evil(tmp_path / "x.pt", tmp_path / "marker", form), tmp_path / "marker"
    with confined(tmp_path / "elsewhere") as noticed:
        pickle.loads(path.read_bytes()) if form == "raw" else torch.load(path, weights_only=False)
    assert marker.is_dir() and noticed == [f"os.mkdir {marker}"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", PLACES)
def test_no_pickle_is_run(place, form, tmp_path):
    marker, (prepare, read) = tmp_path / "marker", PLACES[place]
    (tmp_path / "files").mkdir()
    path = write_evil(prepare(tmp_path / "files"), marker, form)
    with confined(tmp_path / "files") as noticed:
        refusal(lambda: read(path), tmp_path / "files")
    assert not marker.exists() and not noticed


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_import_runs_a_pickle(command, form, tmp_path, capsys):
    marker, (prepare, arguments) = tmp_path / "marker", COMMANDS[command]
    (tmp_path / "files").mkdir()
    path = write_evil(prepare(tmp_path / "files"), marker, form)
    typed = [*arguments(path), "--out", tmp_path / "out"]
    with confined(tmp_path / "files") as noticed:
        refusal(lambda: by_command(*typed, capsys=capsys), path)
    assert not marker.exists() and not noticed and not (tmp_path / "out").exists()


class Call:
    """Pickled as a call of that function."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def test_bombs_of_allowed_names_are_refused(tmp_path):
    scalar = np.float64(0).__reduce__()[0]
    text, bombs = "a" * 8, {"codec": Call(codecs.encode, "é", "punycode")}
    for _ in range(9):
        text = Call(codecs.encode, text, "hex_codec")
    bombs |= {"nested": text, "dtype": [Call(scalar, np.dtype("V900000"), None)] * 3}
    for name, bomb in bombs.items():
        with (tmp_path / name).open("wb") as file:
            torch.save({"x": bomb}, file)
        with pytest.raises(UserError, match=r"cannot be read|is refused"):
            read_torch(tmp_path / name, allowed=numpy_numbers())
    good = {"x": b"\xff\x00", "y": np.float64(0.5), "z": np.int64(2), "w": np.float32(1)}
    torch.save(good, tmp_path / "good")
    assert read_torch(tmp_path / "good", allowed=numpy_numbers()) == good


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return write_run(train_keys(tmp_path_factory.mktemp("trained")), "run")


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return sent_run(trained, tmp_path)


def predict(run: Path, trained: Path) -> None:
    keys = {"preset": "none", "pretrained_name": run, "trainer.device": "cpu", "image": picture_of(trained)}
    commands.predict(composed("predict", keys))


NAMES = ("model.safetensors", "training.pt", "checkpoint.json", "config.yaml", "tokenizer.json", "SHA256SUMS")
WAYS = {  # uses of a run, and the files of it that they do not read
    "predict": ("training.pt",),
    "resume_pretrained_state": ("tokenizer.json",),  # a training uses the tokenizer of its own configuration
}
# Text files are decoded as UTF-8 first, so that the form of the pickle does not matter.
CASES = [
    (name, form) for name in NAMES for form in (FORMS if name in ("model.safetensors", "training.pt") else ["raw"])
]


@pytest.mark.parametrize(
    ("way", "name", "form"), [(way, *case) for way in WAYS for case in CASES if case[0] not in WAYS[way]]
)
def test_no_pickle_in_a_run_is_run(run, trained, tmp_path, way, name, form):
    write_evil(checkpoint_of(run) / name, tmp_path / "marker", form)
    if way == "predict":
        refusal(lambda: predict(run, trained), checkpoint_of(run))
    else:
        keys = train_keys(tmp_path / "data") | {"name": "on", "pretrained_name": run, "resume_pretrained_state": True}
        config = composed("train", keys)
        refusal(lambda: commands.train(config), checkpoint_of(run))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(("name", "form"), CASES)
def test_no_pickle_is_run_by_automatic_resume(run, tmp_path, capsys, name, form):
    """trainer.resume=auto starts anew if no checkpoint is intact, and reports the reason."""
    folder = checkpoint_of(run)
    write_evil(folder / name, tmp_path / "marker", form)
    keys = train_keys(tmp_path / "data") | {"trainer.exp_dir": run.parent, "name": "run", "trainer.epochs": 2}
    try:
        commands.train(composed("train", keys | {"trainer.resume": "auto"}))
        message = capsys.readouterr().err
    except UserError as error:
        message = str(error)
    assert not (tmp_path / "marker").exists()
    assert str(folder) in message or name == "tokenizer.json"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["a.safetensors", MEMO])
def test_no_pickle_in_a_feature_cache_is_run(tmp_path, name, form):
    write_evil(tmp_path / name, tmp_path / "marker", form)
    assert read_places(tmp_path) == {} and FileDigests(tmp_path / MEMO).known == {}
    assert not (tmp_path / "marker").exists()


def test_no_pickle_in_the_index_of_a_run_is_run(run, trained, tmp_path):
    """An index that cannot be read is ignored."""
    write_evil(run / "checkpoints" / "index.json", tmp_path / "marker", "raw")
    predict(run, trained)
    assert not (tmp_path / "marker").exists()
