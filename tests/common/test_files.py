"""Atomic writes of files and folders, also if the process is killed."""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from common.files import WriteError, remove_folder, tidy, to_json, write_folder, write_json, write_text
from tests.helpers.launch import died_at_change


def fill(folder: Path, text: str) -> None:
    for name in ("a", "b"):
        (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("there", [False, True])
def test_write_folder_is_atomic(tmp_path, there):
    path, number = tmp_path / "folder", 0
    seen = set()
    while True:
        number += 1
        shutil.rmtree(path, ignore_errors=True)
        if there:
            path.mkdir()
            fill(path, "old")
        died = died_at_change(number, tmp_path, lambda: write_folder(path, lambda folder: fill(folder, "new")))
        tidy(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] in ([], ["folder"]), number
        found = contents(path) if path.exists() else None
        assert found in ({"a": "old", "b": "old"} if there else None, {"a": "new", "b": "new"}), number
        seen.add(found and found["a"])
        if not died:
            break
    assert number > 6 and seen == {"old" if there else None, "new"}


def test_remove_folder_is_atomic(tmp_path):
    path, number, died = tmp_path / "folder", 0, True
    while died:
        number += 1
        path.mkdir(exist_ok=True)
        fill(path, "old")
        died = died_at_change(number, tmp_path, lambda: remove_folder(path))
        assert not path.exists() or contents(path) == {"a": "old", "b": "old"}
        tidy(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] in ([], ["folder"])
    assert number > 3


def test_failed_fill_keeps_the_old_folder(tmp_path):
    write_folder(tmp_path / "folder", lambda folder: fill(folder, "old"))

    def fail(folder: Path) -> None:
        fill(folder, "new")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_folder(tmp_path / "folder", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert contents(tmp_path / "folder") == {"a": "old", "b": "old"}


@pytest.mark.parametrize("durable", [False, True])
def test_write_text_is_atomic(tmp_path, durable):
    path, number, died = tmp_path / "folder" / "text", 0, True
    while died:
        number += 1
        write_text(path, "old")
        died = died_at_change(number, tmp_path, lambda: write_text(path, "new", durable=durable))
        assert path.read_text() in ("old", "new")
        tidy(path.parent)
        assert [p.name for p in path.parent.iterdir()] == ["text"]
    assert path.read_text() == "new" and number > 2


def test_leftovers_of_killed_processes_are_removed_at_the_next_write(tmp_path):
    done = subprocess.Popen(["true"])
    done.wait()
    names = {f".text.{platform.node()}.{number}.tmp" for number in (done.pid, 10**20, os.getppid())}
    other = {f".text.{platform.node()}x.{done.pid}.tmp", f".other.{platform.node()}.{done.pid}.tmp"}
    for name in names | other:
        (tmp_path / name).write_text("unfinished")
    write_text(tmp_path / "text", "new")
    kept = other | {"text", f".text.{platform.node()}.{os.getppid()}.tmp"}
    assert {path.name for path in tmp_path.iterdir()} == kept, "not those of other machines and running processes"
    (tmp_path / f".folder.{platform.node()}.{done.pid}.tmp" / "a").mkdir(parents=True)
    write_folder(tmp_path / "folder", lambda folder: fill(folder, "new"))
    assert {path.name for path in tmp_path.iterdir()} == kept | {"folder"}


def test_json_has_null_for_what_is_not_finite(tmp_path):
    write_json(tmp_path / "a", {"é": [1.5, math.nan, {"b": -math.inf}]})
    assert (tmp_path / "a").read_text() == '{\n  "é": [\n    1.5,\n    null,\n    {\n      "b": null\n    }\n  ]\n}\n'
    assert to_json({"é": math.inf}, ensure_ascii=True) == '{"\\u00e9": null}\n'


def test_advice_fits_a_wrong_path(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    wrong = {"folder": "remove the folder", "file/a": "remove", f"{'a' * 300}": "name a folder with a shorter path"}
    for name, way_out in wrong.items():
        with pytest.raises(WriteError) as caught:
            write_text(tmp_path / name, "")
        assert way_out in str(caught.value) and "room" not in str(caught.value) and "free" not in str(caught.value)


def test_tidy_keeps_other_files(tmp_path):
    for name in (".hidden", ".x.tmp", "x.1.tmp", ".x.1.tmpx", ".lock"):
        (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    tidy(tmp_path)
    tidy(tmp_path / "nowhere")
    assert contents(tmp_path) == before
