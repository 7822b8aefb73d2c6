"""Training with dataset.feature_cache: the losses of a training without it, and reproducible bit for bit."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from common.errors import UserError
from data.cache.feature_cache import MEMO
from data.cache.token_files import read_places
from data.samples import Samples
from tests.helpers.clips import write_clip
from tests.helpers.tiny import (
    RESNET,
    ROOT,
    VISION,
    make_captioner,
    make_samples,
    run_mode,
    write_pictures,
    write_splits,
)
from trainer.runs.checkpoint import find_checkpoint
from trainer.setup.device import make_accelerator
from trainer.setup.loading import Features


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """10 images to train on, one of them damaged; 4 to validate on; 5 to test on."""
    root = tmp_path_factory.mktemp("splits")
    keys = write_splits(root, train=10)
    (root / "train" / "images" / "Style" / "picture-006.png").write_bytes(b"no picture")
    return keys | {"model.text.xattn.gate_init": 0.7, "model.text.trainable": True}  # with dropout


@pytest.fixture
def train(keys, tmp_path):
    """Train as run.py into tmp_path/NAME, by default with the cache tmp_path/cache."""

    def call(name: str, **changes) -> Path:
        own = {key.replace("__", "."): value for key, value in changes.items()}
        cache = {"dataset.feature_cache": tmp_path / "cache"}
        run_mode("train", {**keys, "trainer.exp_dir": tmp_path, "name": name, **cache, **own})
        return tmp_path / name

    return call


@pytest.fixture(scope="module")
def baseline(keys, tmp_path_factory) -> Path:
    """A folder with a run and its cache; tests change copies only."""
    root = tmp_path_factory.mktemp("baseline")
    run_mode("train", {**keys, "trainer.exp_dir": root, "name": "run", "dataset.feature_cache": root / "cache"})
    return root


def figures(run: Path) -> list[dict]:
    """Return losses and accuracies of each step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "loss" in k or k in ("step", "validation/accuracy")} for line in lines]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_checkpoint(str(run), run.parent, prefer="last").folder / "model.safetensors")


def equal(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def skipped(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("vision", [VISION, RESNET], ids=["ViT", "ResNet"])
def test_losses_equal_those_without_the_cache(train, vision):
    settings = {"model__vision__config": vision, "trainer__log_every_n_steps": 1, "trainer__epochs": 2}
    plain = train("plain", dataset__feature_cache=None, **settings)
    filling, reading = train("filling", **settings), train("reading", **settings)
    assert equal(filling, reading) and figures(filling) == figures(reading)
    assert not equal(plain, reading), "the tokens come from the cache"
    assert len(figures(plain)) > 6
    for a, b in zip(figures(plain), figures(reading), strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert b[name] == pytest.approx(value, rel=2e-3), name
    assert skipped(plain) == skipped(reading) and len(skipped(plain)) == 1


def test_a_resumed_run_equals_an_uninterrupted_one(train, tmp_path):
    schedule = {"model__optimizer__scheduler__name": "constant", "model__optimizer__scheduler__warmup_steps": 0}
    unbroken = train("a", trainer__epochs=2, **schedule)
    broken = train("b", trainer__epochs=1, **schedule)
    shutil.rmtree(tmp_path / "cache")
    train("b", trainer__epochs=2, pretrained_name=broken, resume_pretrained_state=True, **schedule)
    assert equal(unbroken, broken)


def test_workers_do_not_matter(train, baseline):
    workers = {f"dataset__{split}_ds__num_workers": 2 for split in ("train", "validation")}
    assert equal(baseline / "run", train("run", **workers))


@pytest.mark.parametrize(
    "change",
    [{"dataset__texts_per_image": 1}, {"dataset__shuffle_images": True}, {"dataset__emotions": False}],
    ids=lambda change: "".join(change),
)
def test_losses_equal_with_other_settings(train, baseline, tmp_path, change):
    shutil.copytree(baseline / "cache", tmp_path / "cache")
    before = sorted((tmp_path / "cache").rglob("*.safetensors"))
    plain, cached = train("plain", dataset__feature_cache=None, **change), train("cached", **change)
    for a, b in zip(figures(plain), figures(cached), strict=True):
        assert a == pytest.approx(b, rel=2e-3)
    assert sorted((tmp_path / "cache").rglob("*.safetensors")) == before, "nothing is encoded again"
    (folder,) = (tmp_path / "cache").glob("*/")
    assert len(read_places(folder)) == 9 + 4, "training and validation images"


def test_each_precision_has_its_own_tokens(train, baseline, tmp_path):
    shutil.copytree(baseline / "cache", tmp_path / "cache")
    plain = train("plain", trainer__precision="bf16", dataset__feature_cache=None)
    cached = train("cached", trainer__precision="bf16")
    for a, b in zip(figures(plain), figures(cached), strict=True):
        assert a == pytest.approx(b, rel=2e-3)
    words = [json.loads(path.read_text()) for path in (tmp_path / "cache").glob("*/encoder.json")]
    assert sorted(w["precision"] for w in words) == ["bf16", "fp32"] and words[0]["weights"] == words[1]["weights"]


def test_strict_raises_the_same_error_with_the_cache(train):
    with pytest.raises(UserError) as plain:
        train("plain", dataset__feature_cache=None, dataset__strict=True)
    with pytest.raises(UserError) as cached:
        train("cached", dataset__strict=True)
    assert str(plain.value) == str(cached.value) and "picture-006.png" in str(cached.value)


def test_testing_uses_the_cache_and_predicting_does_not(train, keys, tmp_path):
    run = train("run")
    encoders = list((tmp_path / "cache").glob("*/"))
    for number in range(2):
        run_mode("test", {"pretrained_name": run})
        (run / "test" / "predictions.jsonl").rename(tmp_path / f"{number}.jsonl")
    run_mode("test", {"pretrained_name": run, "dataset.feature_cache": None})
    rows = [json.loads(line) for line in (run / "test" / "predictions.jsonl").read_text().splitlines()]
    assert (tmp_path / "0.jsonl").read_text() == (tmp_path / "1.jsonl").read_text()
    for a, line in zip(rows, (tmp_path / "0.jsonl").read_text().splitlines(), strict=True):
        assert json.loads(line)["emotion_distribution"] == pytest.approx(a["emotion_distribution"], abs=1e-3)
    assert list((tmp_path / "cache").glob("*/")) == encoders and len(list(encoders[0].glob("*.safetensors"))) == 3
    others = write_pictures(tmp_path / "others", 3, seed=77)
    run_mode("predict", {"pretrained_name": run, "image": others[0].parent})
    assert len(list(encoders[0].glob("*.safetensors"))) == 3
    assert not any(str(path) in (tmp_path / "cache" / MEMO).read_text() for path in others)


def test_a_trained_encoder_is_refused(train, tmp_path):
    with pytest.raises(UserError) as error:
        train("run", model__vision__trainable=True)
    message = str(error.value)
    assert f"dataset.feature_cache={tmp_path / 'cache'}" in message and "model.vision.trainable=true" in message
    assert "\n" not in message and list(tmp_path.iterdir()) == []


def test_an_invalid_cache_leaves_an_older_run_unchanged(train, tmp_path):
    run = train("run", dataset__feature_cache=None)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        train("run", dataset__feature_cache=tmp_path / "file", trainer__overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def compute(rank: int, port: int, cache: Path, template, samples: Samples, results) -> None:
    """One of two processes: put rank, number of encoded batches, and the tokens into `results`."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    config = OmegaConf.load(ROOT / "config.yaml")
    config.trainer.device, config.dataset.feature_cache = "cpu", str(cache)
    captioner, seen = make_captioner(template), []
    captioner.vision.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    accelerator = make_accelerator(config)
    assert accelerator.num_processes == 2
    tokens = Features(config, captioner, accelerator)("train_ds", samples)
    results.put((rank, len(seen), [tokens[i].numpy() for i in range(len(tokens))]))


def test_one_process_encodes_for_all(tmp_path, template):
    samples = Samples.pack(make_samples(tmp_path / "images", 6))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    rest = (port, tmp_path / "cache", template, samples, results)
    processes = [fork.Process(target=compute, args=(rank, *rest)) for rank in range(2)]
    for process in processes:
        process.start()
    (_, first, one), (_, second, other) = sorted((results.get(timeout=300) for _ in processes), key=lambda r: r[0])
    for process in processes:
        process.join()
    assert (first, second) == (1, 0)
    assert all((a == b).all() for a, b in zip(one, other, strict=True)) and len(one) == 6


def test_the_timeout_covers_filling_the_cache(tmp_path):
    config = OmegaConf.load(ROOT / "config.yaml")
    config.trainer.device, config.dataset.feature_cache = "cpu", str(tmp_path)
    assert make_accelerator(config).init_handler.timeout >= timedelta(hours=12)


def test_clips_of_different_lengths(train, tmp_path):
    """Clips are padded in a batch; the padding must not matter, with frames or with tokens."""
    items = []
    for i, count in enumerate((1, 4, 2, 5, 3)):
        (tmp_path / "clips" / str(i)).mkdir(parents=True)
        write_clip(tmp_path / "clips" / str(i) / "en.mp4", count)
        items.append({"id": i, "sign_list": [{"lang": "en", "text": f"the tiny boat is calm {i}"}]})
    (tmp_path / "clips.json").write_text(json.dumps(items))
    files = {"visual_dir": tmp_path / "clips", "json_path": tmp_path / "clips.json"}
    settings = {f"dataset__{split}_ds__{key}": path for split in ("train", "validation") for key, path in files.items()}
    settings |= {"dataset__name": "mlslt", "dataset__max_frames": 4, "trainer__log_every_n_steps": 1}
    plain, cached = train("plain", dataset__feature_cache=None, **settings), train("cached", **settings)
    assert not equal(plain, cached)
    for a, b in zip(figures(plain), figures(cached), strict=True):
        assert a == pytest.approx(b, rel=2e-3)
