"""Randomly damaged files of each kind: each is used, skipped or refused with a clear message, without side effects.

Annotations and common image formats are in test_damaged_data.py, runs in test_fuzz_runs.py.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from common.config.files import load_file as load_configuration
from data.cache.digests import FileDigests
from data.cache.feature_cache import MEMO
from data.cache.token_files import CachedTokens, TokenWriter, read_places
from data.images import build_transform, open_image
from data.prepare.rows import read_rows
from data.readers.mlslt import read_frames
from data.text import Template
from data.tokenizer import load_tokenizer
from data.vad.lexicon_files import read_lexicon
from model.checkpoint_import.perceiver import read_perceiver
from model.checkpoint_import.sevlm import read_sevlm
from model.text_emotion import build_text_emotion
from model.vision import build_vision
from model.weights.gpt2 import build_gpt2
from model.weights.nlxgpt import nlxgpt_settings, nlxgpt_state
from tests.helpers import sevlm_reference
from tests.helpers.clips import write_clip
from tests.helpers.damage import (
    BYTES,
    Account,
    Kind,
    changed_head,
    changed_json,
    changed_line,
    changed_yaml,
    other_values,
)
from tests.helpers.data_files import artemis, coco, encoded
from tests.helpers.hostile import snapshot
from tests.helpers.perceiver_files import changed as perceiver
from tests.helpers.perceiver_files import random_state, random_tower, write_checkpoint
from tests.helpers.tiny import go_offline, sentences, write_gpt2, write_lexicon, write_open_clip, write_tokenizer
from trainer.score.predictions import read_predictions
from trainer.score.references import read_references
from trainer.text_emotion.text_classifier import TextClassifier, Vocabulary, load_classifier

MEMORY = 1 << 30  # limit on the growth of memory, in bytes
JSON = (*BYTES, *[changed_json] * 4)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    resource = pytest.importorskip("resource")
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < MEMORY


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path) -> None:
    go_offline(monkeypatch, tmp_path / "hub")


# --- undamaged files and their readers --------------------------------------------------------------------------------


def text(name: str, content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return write


def within(write: Callable[[Path], object], name: str) -> Callable[[Path], Path]:
    """Return a writer of a whole folder that gives the path of one file in it."""
    return lambda folder: (write(folder / "whole"), folder / "whole" / name)[1]


def picture(form: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "picture").write_bytes(encoded(0, format=form))
        return folder / "picture"

    return write


def use_tokenizer(path: Path) -> None:
    template = Template(load_tokenizer(str(path)), max_length=60)
    template.decode(template.encode(" ".join(sentences(3)), 0).input_ids)


def tokenizer_json(folder: Path) -> Path:
    write_tokenizer(folder / "parts")
    load_tokenizer(str(folder / "parts")).backend_tokenizer.save(str(folder / "t.json"))
    return folder / "t.json"


def tokenizer_folder(folder: Path) -> None:
    load_tokenizer(str(write_tokenizer(folder))).save_pretrained(str(folder))
    (folder / "added_tokens.json").write_text(json.dumps({"<pad>": 330, "<prefix>": 331}), encoding="utf-8")


def use_cache(path: Path) -> None:
    tokens = CachedTokens((3, 4), ["a", "b"], read_places(path.parent), {})
    tokens[0], tokens[1]


def cache(folder: Path) -> Path:
    with TokenWriter(folder) as writer:
        for name in ("a", "b"):
            writer.add(name, np.zeros((2, 3, 4), np.float16))
    return next(folder.glob("*.safetensors"))


def memo(folder: Path) -> Path:
    known = {str(folder / f"{i}.png"): [1, 2, 3, 4, "00" * 20] for i in range(5)}
    return text(MEMO, json.dumps(known))(folder)


def classifier(folder: Path) -> None:
    sizes = dict.fromkeys(("embedding_dim", "word_dim", "hidden_dim", "head_dim"), 4)
    settings = {"network": {"name": "lstm", "vocabulary": 5, "classes": 9, **sizes}}
    words = Vocabulary(["<pad>", "<unk>", "a", "vast", "sky"])
    TextClassifier(build_text_emotion(settings["network"]), words, settings).save(folder)


def use_classifier(path: Path) -> None:
    load_classifier(path.parent, device="cpu").read(["a vast sky"])


def clip(folder: Path) -> None:
    write_open_clip(folder, mean=[0.5] * 3, std=[0.5] * 3, interpolation="bilinear", resize_mode="squash")


def use_clip(path: Path) -> None:
    build_transform(build_vision(pretrained_name=str(path.parent)).preprocess)


def gpt2(folder: Path) -> None:
    write_gpt2(folder, vocab_size=300)


def gpt2_pickle(folder: Path) -> None:
    gpt2(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def use_gpt2(path: Path) -> None:
    build_gpt2(pretrained_name=str(path.parent), config=None, vocab_size=300, eos_id=0)


def sevlm(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = sevlm_reference.random_state(generator, n_layer=1, d=64, vocabulary=334, positions=40)
    emo = sevlm_reference.random_vad_encoder(generator)
    tokenizer = write_tokenizer(folder.parent / "t")
    sevlm_reference.write_official(folder, state, emo, tokenizer=tokenizer, heads=4)


def nlxgpt(folder: Path) -> None:
    sevlm(folder)
    shutil.rmtree(folder / "nle_gpt2_tokenizer_0")  # it has SEVLM's four tokens
    path = folder / "nle_model_best-res" / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in state.items() if "VAD" not in name and "sim_mlp" not in name}, path)


def use_nlxgpt(path: Path) -> None:
    nlxgpt_settings(path.parent), nlxgpt_state(path.parent, vocab_size=334)


def perceiver_file(folder: Path) -> Path:
    config = perceiver()
    return write_checkpoint(folder / "p.pt", config, random_state(config, vocabulary=50, tower=random_tower()))


CONFIGURATION = "name: mine\nseed: 3\nmodel: {mapper: {depth: 2}}\ndataset: {name: coco, root: x}\n"
CONFIGURATION += "trainer: {epochs: 2, exp_name: '${name}', test: {metrics: [bleu]}}\n"
PREDICTED = [{"id": f"{i}", "emotion": "awe", "explanation": s, "references": [s]} for i, s in enumerate(sentences(6))]
PREDICTIONS = "".join(json.dumps(row) + "\n" for row in PREDICTED)
RAW = "art_style,painting,emotion,utterance,repetition\n" + "".join(
    f'Rococo,boat-{i},awe,"a sky, and a boat {i}",5\n' for i in range(9)
)
SEVLM = "nle_model_best-res/"
# fmt: off
KINDS = {
    "lexicon": Kind(lambda folder: write_lexicon(folder / "l.csv"), read_lexicon, BYTES, 60, 0.1),
    "configuration": Kind(text("c.yaml", CONFIGURATION), lambda p: load_configuration(str(p.parent), p.name),
                          (*BYTES, *[changed_yaml] * 2, *[other_values] * 2), 48, 0.1),
    "tokenizer": Kind(tokenizer_json, use_tokenizer, JSON, 60),
    "vocab.json": Kind(within(write_tokenizer, "vocab.json"), lambda p: use_tokenizer(p.parent), JSON, 24, 0.0),
    "merges.txt": Kind(within(write_tokenizer, "merges.txt"), lambda p: use_tokenizer(p.parent), BYTES, 20, 0.0),
    "tokenizer_config.json": Kind(within(tokenizer_folder, "tokenizer_config.json"),
                                  lambda p: use_tokenizer(p.parent), JSON, 40, 0.0),
    "added_tokens.json": Kind(within(tokenizer_folder, "added_tokens.json"),
                              lambda p: use_tokenizer(p.parent), JSON, 20, 0.0),
    "predictions": Kind(text("p.jsonl", PREDICTIONS), lambda p: (read_predictions(p), read_references(p)),
                        (*BYTES, *[changed_line] * 4), 40),
    "COCO references": Kind(text("r.json", json.dumps(coco())), read_references, JSON, 40, 0.1),
    "SEVLM references": Kind(text("r.json", json.dumps(artemis())), read_references, JSON, 40),
    "raw ArtEmis": Kind(text("raw.csv", RAW), lambda p: read_rows(p, new=None, left_out=[]), BYTES, 40, 0.0),
    "classifier": Kind(within(classifier, "settings.json"), use_classifier, JSON, 16),
    "classifier's words": Kind(within(classifier, "vocabulary.json"), use_classifier, (*BYTES, changed_json), 20),
    "classifier's weights": Kind(within(classifier, "model.safetensors"), use_classifier, (*BYTES, changed_head), 20),
    "CLIP": Kind(within(clip, "open_clip_config.json"), use_clip, (*JSON, *[other_values] * 4), 48),
    "CLIP's weights": Kind(within(clip, "open_clip_model.safetensors"), use_clip, (*BYTES, changed_head), 20),
    "GPT-2": Kind(within(gpt2, "config.json"), use_gpt2, (*JSON, *[other_values] * 4), 24, 0.1),
    "GPT-2's weights": Kind(within(gpt2, "model.safetensors"), use_gpt2, (*BYTES, changed_head), 20),
    "GPT-2's pickle": Kind(within(gpt2_pickle, "pytorch_model.bin"), use_gpt2, BYTES, 20),
    "SEVLM's settings": Kind(within(sevlm, f"{SEVLM}config.json"), lambda p: read_sevlm(p.parents[1]), JSON, 24, 0.1),
    "SEVLM's pickle": Kind(within(sevlm, f"{SEVLM}pytorch_model.bin"), lambda p: read_sevlm(p.parents[1]), BYTES, 16),
    "SEVLM's training": Kind(within(sevlm, "ckpt_stats_best-res.tar"), lambda p: read_sevlm(p.parent), BYTES, 16),
    "NLX-GPT's settings": Kind(within(nlxgpt, f"{SEVLM}config.json"), use_nlxgpt, JSON, 16, 0.1),
    "NLX-GPT's pickle": Kind(within(nlxgpt, f"{SEVLM}pytorch_model.bin"), use_nlxgpt, BYTES, 16),
    "a perceiver": Kind(perceiver_file, lambda p: read_perceiver(p, tokenizer="gpt2"), BYTES, 8),
    "feature cache": Kind(cache, use_cache, (*BYTES, changed_head), 25, 0.0),
    "digests": Kind(memo, lambda p: FileDigests(p).contents([p], show=False), (*BYTES, changed_json), 25, 0.0),
    "clip": Kind(lambda folder: write_clip(folder / "c.mp4", 9), lambda p: read_frames(p, max_frames=4), BYTES, 32),
    **{f"{form} picture": Kind(picture(form), open_image, BYTES, 16, 0.1)
       for form in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "JPEG2000", "PCX", "PPM", "DIB", "QOI")},
}
# fmt: on


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files(name, tmp_path):
    kind = KINDS[name]
    (tmp_path / "files").mkdir()
    path = kind.write(tmp_path / "files")
    whole, others, account = path.read_bytes(), snapshot(tmp_path), Account(path.parent)
    others.pop(path)
    kind.read(path)
    for seed in range(kind.cases):
        damage = kind.damages[seed % len(kind.damages)]
        path.write_bytes(damage(whole, random.Random(f"{name}/{seed}")))
        account.read(f"{damage.__name__} {seed}", lambda: kind.read(path))
    account.close(cases=kind.cases, refused=kind.refused)
    after = snapshot(tmp_path)
    after.pop(path)
    assert after == others
