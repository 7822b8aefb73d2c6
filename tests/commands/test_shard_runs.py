"""Predictions of shards by one process and by two, broken off and continued; training from shards and from a folder."""

from __future__ import annotations

import json
import os
import random
from functools import partial
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from data.cache.feature_cache import FeatureCache
from tests.helpers.jobs import finish_job, launch_job
from tests.helpers.launch import died_at_change
from tests.helpers.runs import contents, lines
from tests.helpers.shards import artemis_tars, write_parquet, write_tar
from tests.helpers.tiny import composed, run_mode, write_pictures, write_run, write_splits
from trainer.score.configured import _training_texts

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread, so that the test process may fork."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("splits"))


@pytest.fixture(scope="module")
def run(keys) -> Path:
    """A trained run; read-only."""
    return write_run(keys, "run")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 11)


@pytest.fixture
def shards(tmp_path, pictures) -> str:
    """Five shards in the list: one is missing, one torn, one has a broken picture."""
    for number in range(4):
        chosen = pictures[3 * number : 3 * number + 3]
        write_tar(tmp_path / "s" / f"{number}.tar", {path.name: path.read_bytes() for path in chosen})
    os.truncate(tmp_path / "s" / "1.tar", 1024 * 2 + 520)
    write_tar(tmp_path / "s" / "3.tar", {"a.png": b"no picture", "b.png": pictures[9].read_bytes()})
    return f"{tmp_path}/s/{{0..4}}.tar"


@pytest.fixture
def settings(run, shards, tmp_path) -> dict[str, object]:
    own = {"pretrained_name": run, "image": shards, "trainer.exp_dir": tmp_path, "dataset.test_ds.batch_size": 2}
    return own | {"dataset.test_ds.num_workers": 0, "trainer.device": "cpu"}


@pytest.fixture
def predict(settings, tmp_path):
    """Predict the shards into tmp_path/NAME, and return the folder."""

    def call(name: str, **changes) -> Path:
        run_mode("predict", {**settings, "name": name, **{key.replace("__", "."): v for key, v in changes.items()}})
        return tmp_path / name / "predict"

    return call


def results(folder: Path) -> dict[str, bytes]:
    """Return the files of the results, without the speed."""
    found = {str(path.relative_to(folder)): content for path, content in contents(folder).items()}
    summary = json.loads(found.pop("summary.json"))
    del summary["pictures_per_second"]
    return {name: found[name] for name in found if not name.startswith((".", "report"))} | {"summary": str(summary)}


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_each_shard_has_its_results_which_equal_those_of_a_folder(predict, run, tmp_path, pictures, capsys):
    folder = predict("one")
    assert sorted(path.name for path in (folder / "predictions").iterdir()) == [f"{i}.jsonl" for i in range(4)]
    found = rows(folder / "predictions")
    assert [row["id"] for row in found][:4] == [
        *(f"0.tar/{path.name}" for path in pictures[:3]),
        f"1.tar/{pictures[3].name}",
    ]
    skipped = {row["id"]: row["reason"] for row in rows(folder / "skipped")}
    assert "torn" in skipped["1.tar"] and "not a readable image" in skipped["3.tar/a.png"]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["shards"], summary["pictures"], summary["skipped"]) == (4, len(found), 1)
    assert sum(summary["emotions"].values()) == len(found) == 3 + 2 + 3 + 1
    assert [*summary["faults"]] == ["1.tar"] and summary["not read"] == {"4.tar": "there is no such shard"}
    printed = capsys.readouterr().out
    assert "9 pictures of 4 shards" in printed and "4.tar: there is no such shard" in printed
    page = (folder / "report.html").read_text()
    assert page.count("data:image/") >= 9 and "the first 9 of 9 pictures" in page

    first = tmp_path / "first"
    first.mkdir()
    for path in pictures[:3]:
        (first / path.name).symlink_to(path)
    predict("folder", image=first, dataset__follow_links=True)
    expected = json.loads((tmp_path / "folder" / "predict" / "predictions.json").read_text())
    for row, other in zip(found, expected, strict=False):
        keys = row.keys() - {"id", "image"}
        assert {key: row[key] for key in keys} == {key: other[key] for key in keys}


def test_a_repeated_command_predicts_what_is_new_or_changed(predict, tmp_path, pictures, capsys):
    folder = predict("one")
    before = {path: path.stat().st_mtime_ns for path in (folder / "predictions").iterdir()}
    write_tar(tmp_path / "s" / "1.tar", {path.name: path.read_bytes() for path in pictures[3:6]})
    write_tar(tmp_path / "s" / "4.tar", {"new.png": pictures[0].read_bytes()})
    predict("one")
    assert "3 of 5 shards are finished" in capsys.readouterr().err
    changed = [path.name for path in (folder / "predictions").iterdir() if before.get(path) != path.stat().st_mtime_ns]
    assert sorted(changed) == ["1.jsonl", "4.jsonl"] and not (folder / "skipped" / "1.jsonl").exists()
    assert results(folder) == results(predict("again"))


def test_results_of_other_settings_are_kept_unless_overwritten(predict):
    folder = predict("one")
    before = contents(folder)
    with pytest.raises(UserError, match=r"predictions of 4 shards by an earlier command with top_emotions=1, not 2"):
        predict("one", top_emotions=2)
    with pytest.raises(UserError, match=r"save_as=\"jsonl\", not \"parquet\""):
        predict("one", save_as="parquet")
    assert contents(folder) == before
    predict("one", top_emotions=2, trainer__overwrite=True)
    assert len(rows(folder / "predictions")[0]["reasons"]) == 2


def test_results_as_parquet_hold_the_same_rows(predict):
    import pyarrow.dataset

    from trainer.prediction.parquet_rows import read_parquet_rows

    expected = rows(predict("one", top_emotions=2) / "predictions")
    folder = predict("two", top_emotions=2, save_as="parquet") / "predictions"
    found = [row for path in sorted(folder.iterdir()) for row in read_parquet_rows(path)]
    assert found == expected and found[0]["reasons"]
    table = pyarrow.dataset.dataset(folder, format="parquet").to_table(columns=["id", "emotion"])
    assert table["id"].to_pylist() == [row["id"] for row in expected]


def test_broken_off_anywhere_and_continued_gives_the_same(predict, tmp_path):
    whole = results(predict("whole"))
    folder, at, deaths = tmp_path / "killed", 1, 0
    while died_at_change(at, folder, partial(predict, "killed")):
        at, deaths = at + random.Random(at).randint(3, 12), deaths + 1
    assert deaths > 4
    assert results(folder / "predict") == whole
    assert not [*folder.rglob(".*.tmp")]


def test_two_processes_with_loaders_give_the_files_of_one(predict, settings, tmp_path):
    whole = results(predict("one"))
    own = {**settings, "mode": "predict", "name": "two", "dataset.test_ds.num_workers": 1}
    printed = finish_job(launch_job(own, tmp_path / "logs"), tmp_path / "logs")
    assert results(tmp_path / "two" / "predict") == whole
    assert "9 pictures of 4 shards" in printed[0] and not printed[1]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"group_by": "folder"}, "group_by=folder compares all pictures at once"),
        ({"dataset__strict": True}, "4.tar: there is no such shard; dataset.strict=false goes on"),
        ({"dataset__strict": True, "image": "{folder}/s/{0,1}.tar"}, "1.tar: the shard is torn"),
        ({"image": "{folder}/s/[89].tar"}, "none of its 0 shards can be read"),
        ({"image": "{folder}/s/1.tar.gz"}, "unpack it"),
    ],
)
def test_what_cannot_be_predicted_is_refused(predict, tmp_path, changes, text):
    changes = {key: v.replace("{folder}", str(tmp_path)) if isinstance(v, str) else v for key, v in changes.items()}
    with pytest.raises(UserError, match=text):
        predict("one", **changes)


def test_shards_without_a_picture_end_with_the_reason(predict, tmp_path):
    write_parquet(tmp_path / "t" / "0.parquet", {"text": ["a"]})
    with pytest.raises(UserError, match="no picture of its shards can be read; see"):
        predict("one", image=tmp_path / "t" / "0.parquet")
    summary = json.loads((tmp_path / "one" / "predict" / "summary.json").read_text())
    assert "no column of pictures" in summary["faults"]["0.parquet"][0]


def test_training_from_tars_and_from_a_folder_give_the_same_weights(keys, run, tmp_path):
    own = {**keys, "dataset.name": "shards", "trainer.exp_dir": tmp_path, "dataset.train_ds.num_workers": 1}
    for split in SPLITS:
        files = f"dataset.{split}_ds"
        of_split = (keys[f"{files}.{key}"] for key in ("json_path", "visual_dir"))
        own |= {f"{files}.json_path": artemis_tars(*of_split, tmp_path / split, count=3), f"{files}.visual_dir": None}
    found = write_run(own, "shards")
    assert lines(found) == lines(run)
    weights = [sorted(folder.glob("checkpoints/*/model.safetensors")) for folder in (found, run)]
    assert [path.read_bytes() for path in weights[0]] == [path.read_bytes() for path in weights[1]] and weights[0]
    for name in (run, found):
        run_mode(
            "test", {"pretrained_name": name, "trainer.exp_dir": tmp_path, "trainer.exp_name": f"test {name.name}"}
        )
    tested = [rows(tmp_path / f"test {name.name}" / "test") for name in (run, found)]
    for row, other in zip(*tested, strict=True):
        assert {**row, "image": ""} == {**other, "image": ""}

    texts = [
        _training_texts(composed("test", each), notes := []) for each in (keys, {**own, "dataset.name": "artemis"})
    ]
    assert sorted(texts[0]) == sorted(texts[1]) and texts[0] and not notes

    with pytest.raises(UserError, match=r"the content of dataset.train_ds.json_path has changed"):
        changed = artemis_tars(
            keys["dataset.validation_ds.json_path"], keys["dataset.validation_ds.visual_dir"], tmp_path / "o", count=1
        )
        write_run(
            {**own, "dataset.train_ds.json_path": changed, "trainer.resume": "auto", "trainer.epochs": 2}, "shards"
        )


def test_training_from_parquet_with_a_feature_cache_equals_that_from_a_table(keys, tmp_path, monkeypatch):
    """The tokens are computed once for both, since equal pictures have equal digests."""
    own = {**keys, "trainer.exp_dir": tmp_path, "dataset.feature_cache": tmp_path / "cache"}
    tables = dict(own, **{"dataset.name": "table"})
    parquets = dict(own, **{"dataset.name": "shards"})
    for split in SPLITS[:2]:
        files = f"dataset.{split}_ds"
        folder = Path(keys[f"{files}.visual_dir"])
        entries = json.loads(Path(keys[f"{files}.json_path"]).read_text()).values()
        texts = [
            {"image": entry["image_name"], "text": text, "emotion": emotion}
            for entry in entries
            for text, emotion in zip(entry["explanations"], entry["emotions"], strict=True)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
        tables |= {f"{files}.json_path": tmp_path / f"{split}.jsonl"}
        columns = {key: [row[key] for row in texts] for key in ("text", "emotion")}
        columns["image"] = [{"bytes": (folder / row["image"]).read_bytes(), "path": row["image"]} for row in texts]
        path = write_parquet(tmp_path / f"{split}.parquet", columns, group=5)
        parquets |= {f"{files}.json_path": path, f"{files}.visual_dir": None}
    first = write_run(tables, "table")
    monkeypatch.setattr(FeatureCache, "_add", None)  # nothing is missing
    second = write_run(parquets, "parquet")
    assert lines(first) == lines(second)
