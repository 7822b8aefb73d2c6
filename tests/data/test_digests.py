"""Digests of files: the content decides, and a file that did not change is not read again."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

import data.cache.digests
from data.cache.digests import FileDigests

LONG_AGO = time.time_ns() - 10**12


@pytest.fixture
def settled(monkeypatch):
    """As if every file had been written long before it is looked at."""
    monkeypatch.setattr(data.cache.digests, "TICK_NS", -(10**18))


@pytest.fixture
def memo(tmp_path) -> Path:
    return tmp_path / "memo" / "common.files.json"


@pytest.fixture
def files(tmp_path) -> list[Path]:
    paths = [tmp_path / f"{i}.bin" for i in range(5)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 3000)
    return paths


def digests(memo: Path, paths: list[Path]) -> list[str | None]:
    contents = FileDigests(memo).contents(paths)
    return [contents[path].digest for path in paths]


def test_a_digest_is_that_of_the_bytes(memo, files):
    expected = [hashlib.blake2b(path.read_bytes(), digest_size=20).hexdigest() for path in files]
    assert digests(memo, files) == expected
    files[0].rename(files[0].with_name("other name"))
    assert digests(memo, [files[0].with_name("other name")]) == expected[:1]


def test_what_is_remembered_is_believed(memo, files, settled):
    digests(memo, files)
    text = memo.read_text()
    forged = text.replace(digests(memo, files[:1])[0], "0" * 40)
    assert forged != text
    memo.write_text(forged)
    assert digests(memo, files)[0] == "0" * 40, "the file was read again"


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"longer" * 1000),
        lambda path: path.write_bytes(b"x" * 3000),
        lambda path: (path.write_bytes(b"x" * 3000), os.utime(path, ns=(LONG_AGO, LONG_AGO))),
        lambda path: (path.with_name("new").write_bytes(b"x" * 3000), path.with_name("new").replace(path)),
    ],
    ids=["size", "time", "time set back", "another file"],
)
def test_a_changed_file_is_read_again(memo, files, settled, change):
    os.utime(files[2], ns=(LONG_AGO, LONG_AGO))
    before = digests(memo, files)
    change(files[2])
    after = digests(memo, files)
    assert after[2] == hashlib.blake2b(files[2].read_bytes(), digest_size=20).hexdigest() != before[2]
    assert [*after[:2], *after[3:]] == [*before[:2], *before[3:]]
    assert digests(memo, files) == after


def test_a_file_written_just_now_is_not_remembered(memo, files):
    """Its clock may not have ticked on before it is changed once more."""
    digests(memo, files)
    assert not memo.exists() or not FileDigests(memo).known


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"a": 1}', '{"a": [1, 2, 3]}', '{"a": [1, 2, 3, null, "d"]}', "\udcff"]
)
def test_a_memo_that_is_damaged_costs_reading_only(memo, files, settled, text):
    expected = digests(memo, files)
    memo.write_text(text, errors="surrogateescape")
    assert digests(memo, files) == expected and set(FileDigests(memo).known) == set(map(str, files))


def test_what_is_no_file_has_no_digest(memo, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("nothing", "pipe", "loop", "a\0b", "", "x" * 300):
        assert digests(memo, [tmp_path / name]) == [None]


def test_names_of_any_bytes(memo, tmp_path, settled):
    paths = [tmp_path / "naïve ✓\n.bin", Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))]
    for path in paths:
        path.write_bytes(os.fsencode(path))
    assert len(set(digests(memo, paths))) == 2
    assert set(FileDigests(memo).known) == set(map(str, paths))


def test_a_file_is_looked_at_once_however_often_it_is_named(memo, files):
    assert list(FileDigests(memo).contents([*files, *files[::-1]])) == files
    assert digests(memo, [files[1], *files])[:1] == digests(memo, files)[1:2]


def test_the_memo_does_not_grow_for_ever(memo, files, settled, monkeypatch):
    monkeypatch.setattr(data.cache.digests, "MOST", 3)
    expected = digests(memo, files)
    assert list(FileDigests(memo).known) == list(map(str, files[-3:])) and digests(memo, files) == expected


def test_a_memo_that_cannot_be_written_is_done_without(tmp_path, files):
    (tmp_path / "taken").write_text("a file where the folder should be")
    assert None not in digests(tmp_path / "taken" / "common.files.json", files)
