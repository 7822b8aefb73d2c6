"""Files of tokens: what a line names is there, whatever happened to the files."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import data.token_files
from data.images import ImageError
from data.token_files import CachedTokens, TokenWriter, WriteError, read_places, row_bytes

SHAPE = (3, 8)


def tokens_of(number: int, rows: int = 1) -> np.ndarray:
    return np.random.default_rng(number).standard_normal((rows, *SHAPE)).astype(np.float16)


def write(folder: Path, contents: dict[str, np.ndarray]) -> None:
    with TokenWriter(folder) as writer:
        for name, tokens in contents.items():
            writer.add(name, tokens)
    assert writer.written == len(contents)


def cached(folder: Path, names: list[str], reasons: dict | None = None) -> CachedTokens:
    return CachedTokens(folder, SHAPE, names, read_places(folder, SHAPE), reasons or {})


@pytest.fixture
def contents() -> dict[str, np.ndarray]:
    return {name: tokens_of(i, rows) for i, (name, rows) in enumerate([("a", 1), ("clip/4", 4), ("b", 1), ("c", 2)])}


def check(folder: Path, contents: dict[str, np.ndarray]) -> set[str]:
    """All that is said to be there is right; its names."""
    there = read_places(folder, SHAPE)
    found = cached(folder, list(there))
    for index, name in enumerate(there):
        assert torch.equal(found[index], torch.from_numpy(contents[name])), name
    return set(there)


def test_tokens_come_back_bit_for_bit(tmp_path, contents):
    write(tmp_path, contents)
    assert check(tmp_path, contents) == set(contents)
    found = cached(tmp_path, ["b", "clip/4", "b", "unknown"], {"unknown": "it is damaged"})
    assert len(found) == 4 and found[0].dtype == torch.float16
    assert torch.equal(found[0], found[2]) and found[1].shape == (4, *SHAPE)
    with pytest.raises(ImageError, match="it is damaged"):
        found[3]


def test_what_is_read_is_ones_own(tmp_path, contents):
    write(tmp_path, contents)
    cached(tmp_path, ["a"])[0].zero_()
    assert check(tmp_path, contents) == set(contents)


def test_every_writer_adds_and_none_changes_what_is_there(tmp_path, contents):
    write(tmp_path, dict(list(contents.items())[:2]))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write(tmp_path, dict(list(contents.items())[2:]))
    assert all(path.read_bytes() == data for path, data in before.items())
    assert check(tmp_path, contents) == set(contents)
    write(tmp_path, {})
    assert len(list(tmp_path.iterdir())) == 4, "a writer without tokens makes no files"


def test_two_writers_at_once_do_not_meet(tmp_path):
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


def test_processes_that_begin_together_get_files_of_their_own(tmp_path):
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


def test_tokens_that_lost_their_index_are_left_alone(tmp_path, contents):
    write(tmp_path, contents)
    (tmp_path / "0000.jsonl").unlink()
    before = (tmp_path / "0000.tokens").read_bytes()
    write(tmp_path, contents)
    assert check(tmp_path, contents) == set(contents) and (tmp_path / "0000.tokens").read_bytes() == before


def test_a_file_of_tokens_cut_anywhere_loses_entries_and_spoils_none(tmp_path, contents):
    write(tmp_path, contents)
    whole = (tmp_path / "0000.tokens").read_bytes()
    ends = np.cumsum([len(tokens) for tokens in contents.values()]) * row_bytes(SHAPE)
    for cut in [*range(0, len(whole), 29), *ends, *(ends - 1)]:
        (tmp_path / "0000.tokens").write_bytes(whole[:cut])
        expected = {name for name, end in zip(contents, ends, strict=True) if end <= cut}
        assert check(tmp_path, contents) == expected
    (tmp_path / "0000.tokens").unlink()
    assert check(tmp_path, contents) == set()


def test_an_index_torn_anywhere_loses_entries_and_spoils_none(tmp_path, contents):
    write(tmp_path, contents)
    whole = (tmp_path / "0000.jsonl").read_bytes()
    counts = []
    for cut in range(len(whole) + 1):
        (tmp_path / "0000.jsonl").write_bytes(whole[:cut])
        counts.append(len(check(tmp_path, contents)))
    assert counts == sorted(counts) and set(counts) == set(range(len(contents) + 1))


NONSENSE = ["null", "[]", "7", "\0", "[[], 0, 1]", '["a", 0]', '["a", "0", 1]', '["a", 1.5, 1]', '["a", -1, 1]']
NONSENSE += ['["a", 0, 0]', '["a", 0, 99]']


@pytest.mark.parametrize("line", NONSENSE)
def test_lines_that_make_no_sense_are_passed_over(tmp_path, contents, line):
    write(tmp_path, contents)
    index = tmp_path / "0000.jsonl"
    index.write_text(f"{line}\n{index.read_text()}{line}\n")
    assert check(tmp_path, contents) == set(contents)


def test_tokens_taken_away_while_they_are_used_are_told(tmp_path, contents):
    write(tmp_path, contents)
    shortened, removed = cached(tmp_path, list(contents)), cached(tmp_path, list(contents))
    os.truncate(tmp_path / "0000.tokens", row_bytes(SHAPE))
    assert torch.equal(shortened[0], torch.from_numpy(contents["a"]))
    with pytest.raises(ImageError, match=r"no longer in .*0000\.tokens"):
        shortened[1]
    (tmp_path / "0000.tokens").unlink()
    with pytest.raises(ImageError, match=r"0000\.tokens cannot be read"):
        removed[0]


def test_workers_get_small_arrays(tmp_path):
    write(tmp_path, {str(i): tokens_of(i, 20) for i in range(50)})
    found = cached(tmp_path, [str(i) for i in range(50)])
    assert torch.equal(found[7], torch.from_numpy(tokens_of(7, 20)))
    sent = pickle.dumps(found)
    assert len(sent) < 3000 < 50 * 20 * row_bytes(SHAPE)
    assert torch.equal(pickle.loads(sent)[7], found[7])


@contextmanager
def largest_file(size: int):
    """No file may become larger: as a full disk, `write` takes a part of the data and then none."""
    resource = pytest.importorskip("resource")
    old, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (old, most))


@pytest.mark.parametrize("every", [0.0, 60.0])
def test_a_full_disk_keeps_what_is_whole(tmp_path, contents, monkeypatch, every):
    monkeypatch.setattr(data.token_files, "COMMIT_SECONDS", every)
    writer = TokenWriter(tmp_path)
    with largest_file(int(5.5 * row_bytes(SHAPE))), pytest.raises(WriteError, match="large"), writer:
        for name, tokens in contents.items():
            writer.add(name, tokens)
    assert writer.written == 2 and check(tmp_path, contents) == {"a", "clip/4"}
    assert (tmp_path / "0000.tokens").stat().st_size == 5 * row_bytes(SHAPE), "half a row would only take space"


def test_what_may_not_have_reached_the_disk_is_not_named(tmp_path, contents, monkeypatch):
    """A disk that fails once may answer the next fsync as if nothing had been."""
    monkeypatch.setattr(data.token_files, "COMMIT_SECONDS", 0.0)
    fsync, calls = os.fsync, []

    def failing(file: int) -> None:
        calls.append(file)
        if len(calls) == 5:  # the tokens of the third entry; two calls for each
            raise OSError(28, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(WriteError, match="No space left"), TokenWriter(tmp_path) as writer:
        for name, tokens in contents.items():
            writer.add(name, tokens)
    assert len(calls) > 5 and check(tmp_path, contents) == {"a", "clip/4"}


def test_after_an_error_elsewhere_what_is_whole_is_kept(tmp_path, contents):
    with pytest.raises(KeyboardInterrupt), TokenWriter(tmp_path) as writer:
        writer.add("a", contents["a"])
        raise KeyboardInterrupt
    assert check(tmp_path, contents) == {"a"}
