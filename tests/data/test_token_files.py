"""Token files: what is listed can be read, whatever happened to the files."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import data.cache.token_files
from common.files import WriteError
from data.cache.token_files import CachedTokens, TokenWriter, read_places
from data.images import ImageError

SHAPE = (3, 8)
FRAME_BYTES = 2 * 3 * 8


def tokens_of(number: int, rows: int = 1) -> np.ndarray:
    return np.random.default_rng(number).standard_normal((rows, *SHAPE)).astype(np.float16)


def write(folder: Path, contents: dict[str, np.ndarray]) -> None:
    with TokenWriter(folder) as writer:
        for name, tokens in contents.items():
            writer.add(name, tokens)
    assert writer.written == len(contents)


def cached(folder: Path, names: list[str], reasons: dict | None = None) -> CachedTokens:
    return CachedTokens(SHAPE, names, read_places(folder), reasons or {})


@pytest.fixture
def contents() -> dict[str, np.ndarray]:
    return {name: tokens_of(i, rows) for i, (name, rows) in enumerate([("a", 1), ("clip/4", 4), ("b", 1), ("c", 2)])}


def check(folder: Path, contents: dict[str, np.ndarray]) -> set[str]:
    """Check every listed entry, and return the names."""
    there = read_places(folder)
    found = cached(folder, list(there))
    for index, name in enumerate(there):
        assert torch.equal(found[index], torch.from_numpy(contents[name])), name
    return set(there)


def test_tokens_are_restored_exactly(tmp_path, contents):
    write(tmp_path, contents)
    assert check(tmp_path, contents) == set(contents)
    found = cached(tmp_path, ["b", "clip/4", "b", "unknown"], {"unknown": "it is damaged"})
    assert len(found) == 4 and found[0].dtype == torch.float16
    assert torch.equal(found[0], found[2]) and found[1].shape == (4, *SHAPE)
    with pytest.raises(ImageError, match="it is damaged"):
        found[3]


def test_returned_tokens_are_copies(tmp_path, contents):
    write(tmp_path, contents)
    cached(tmp_path, ["a"])[0].zero_()
    assert check(tmp_path, contents) == set(contents)


def test_writers_add_and_never_change_files(tmp_path, contents):
    write(tmp_path, dict(list(contents.items())[:2]))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write(tmp_path, dict(list(contents.items())[2:]))
    assert all(path.read_bytes() == data for path, data in before.items())
    assert check(tmp_path, contents) == set(contents)
    write(tmp_path, {})
    assert len(list(tmp_path.iterdir())) == 2, "a writer without tokens makes no files"


def test_two_concurrent_writers(tmp_path):
    with TokenWriter(tmp_path) as one, TokenWriter(tmp_path) as two:
        for i in range(4):
            one.add(f"one {i}", tokens_of(i))
            two.add(f"two {i}", tokens_of(10 + i))
    expected = {f"one {i}": tokens_of(i) for i in range(4)} | {f"two {i}": tokens_of(10 + i) for i in range(4)}
    assert check(tmp_path, expected) == set(expected)


def add_one(folder: Path, name: str, start) -> None:
    writer = TokenWriter(folder)
    start.wait()
    with writer:
        writer.add(name, tokens_of(int(name)))


def test_concurrent_processes_write_separate_files(tmp_path):
    fork = multiprocessing.get_context("fork")
    for round in range(3):
        folder, start = tmp_path / str(round), fork.Barrier(6)
        folder.mkdir()
        processes = [fork.Process(target=add_one, args=(folder, str(i), start)) for i in range(6)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        expected = {str(i): tokens_of(i) for i in range(6)}
        assert check(folder, expected) == set(expected)


def file_in(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def test_truncated_file_is_ignored(tmp_path, contents):
    write(tmp_path, contents)
    path = file_in(tmp_path)
    whole = path.read_bytes()
    for cut in range(0, len(whole), 29):
        path.write_bytes(whole[:cut])
        assert read_places(tmp_path) == {}
    path.write_bytes(whole)
    assert check(tmp_path, contents) == set(contents)


def test_other_files_are_ignored(tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    save_file({"a": np.zeros((1, 3, 4), np.float16), "b": np.zeros((1, *SHAPE))}, tmp_path / "c.safetensors")
    found = cached(tmp_path, ["a", "b"])
    for index in range(2):
        with pytest.raises(ImageError, match=r"c\.safetensors have another shape"):
            found[index]


def test_tokens_deleted_while_in_use(tmp_path, contents):
    write(tmp_path, contents)
    found = cached(tmp_path, list(contents))
    file_in(tmp_path).unlink()
    with pytest.raises(ImageError, match=r"its tokens in .*\.safetensors cannot be read"):
        found[0]


def test_pickled_size_is_small(tmp_path):
    write(tmp_path, {str(i): tokens_of(i, 20) for i in range(50)})
    found = cached(tmp_path, [str(i) for i in range(50)])
    assert torch.equal(found[7], torch.from_numpy(tokens_of(7, 20)))
    sent = pickle.dumps(found)
    assert len(sent) < 3000 < 50 * 20 * FRAME_BYTES
    assert torch.equal(pickle.loads(sent)[7], found[7])


@contextmanager
def largest_file(size: int):
    """Limit the file size: like a full disk, `write` accepts a part of the data and then fails."""
    resource = pytest.importorskip("resource")
    old, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (old, most))


def test_full_disk_keeps_earlier_files(tmp_path, contents, monkeypatch):
    monkeypatch.setattr(data.cache.token_files, "SECONDS", 0.0)
    with largest_file(3 * FRAME_BYTES), pytest.raises(WriteError, match="large"), TokenWriter(tmp_path) as writer:
        for name, tokens in contents.items():
            writer.add(name, tokens)
    assert writer.written == 1 and check(tmp_path, contents) == {"a"} and len(list(tmp_path.iterdir())) == 1


def test_tokens_are_written_after_an_error(tmp_path, contents):
    with pytest.raises(KeyboardInterrupt), TokenWriter(tmp_path) as writer:
        writer.add("a", contents["a"])
        raise KeyboardInterrupt
    assert check(tmp_path, contents) == {"a"}
