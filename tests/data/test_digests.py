"""File digests depend on the content; an unchanged file is not read again."""

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
    """Make every file old enough to be remembered."""
    monkeypatch.setattr(data.cache.digests, "TICK_NS", -(10**18))


@pytest.fixture
def memo(tmp_path) -> Path:
    return tmp_path / "memo" / "files.json"


@pytest.fixture
def files(tmp_path) -> list[Path]:
    paths = [tmp_path / f"{i}.bin" for i in range(5)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 3000)
    return paths


def digests(memo: Path, paths: list[Path]) -> list[str | None]:
    contents = FileDigests(memo).contents(paths)
    return [contents[path].digest for path in paths]


def test_digest_of_the_bytes(memo, files):
    expected = [hashlib.blake2b(path.read_bytes(), digest_size=20).hexdigest() for path in files]
    assert digests(memo, files) == expected
    files[0].rename(files[0].with_name("other name"))
    assert digests(memo, [files[0].with_name("other name")]) == expected[:1]


def test_remembered_digest_is_used(memo, files, settled):
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
def test_changed_file_is_read_again(memo, files, settled, change):
    os.utime(files[2], ns=(LONG_AGO, LONG_AGO))
    before = digests(memo, files)
    change(files[2])
    after = digests(memo, files)
    assert after[2] == hashlib.blake2b(files[2].read_bytes(), digest_size=20).hexdigest() != before[2]
    assert [*after[:2], *after[3:]] == [*before[:2], *before[3:]]
    assert digests(memo, files) == after


def test_new_file_is_not_remembered(memo, files):
    """It may change again within one tick of the file system's clock."""
    digests(memo, files)
    assert not memo.exists() or not FileDigests(memo).known


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"a": 1}', '{"a": [1, 2, 3]}', '{"a": [1, 2, 3, null, "d"]}', "\udcff"]
)
def test_damaged_memo_is_ignored(memo, files, settled, text):
    expected = digests(memo, files)
    memo.write_text(text, errors="surrogateescape")
    assert digests(memo, files) == expected and set(FileDigests(memo).known) == set(map(str, files))


def test_no_digest_without_an_ordinary_file(memo, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("nothing", "pipe", "loop", "a\0b", "", "x" * 300):
        assert digests(memo, [tmp_path / name]) == [None]


def test_names_with_arbitrary_bytes(memo, tmp_path, settled):
    paths = [tmp_path / "naïve ✓\n.bin", Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))]
    for path in paths:
        path.write_bytes(os.fsencode(path))
    assert len(set(digests(memo, paths))) == 2
    assert set(FileDigests(memo).known) == set(map(str, paths))


def test_duplicate_paths_are_read_once(memo, files):
    assert list(FileDigests(memo).contents([*files, *files[::-1]])) == files
    assert digests(memo, [files[1], *files])[:1] == digests(memo, files)[1:2]


def test_memo_size_is_limited(memo, files, settled, monkeypatch):
    monkeypatch.setattr(data.cache.digests, "MOST", 3)
    expected = digests(memo, files)
    assert list(FileDigests(memo).known) == list(map(str, files[-3:])) and digests(memo, files) == expected


def test_unwritable_memo_is_ignored(tmp_path, files):
    (tmp_path / "taken").write_text("a file where the folder should be")
    assert None not in digests(tmp_path / "taken" / "files.json", files)
