"""Interrupted predictions continue and end with the same files."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from data.samples import Samples
from data.schema import Sample, Skipped
from tests.helpers.launch import died_at_change
from tests.helpers.runs import contents
from tests.helpers.tiny import run_mode, write_pictures, write_run, write_splits
from trainer.prediction.resume import Rows, Unfinished


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


@pytest.fixture
def pictures(tmp_path) -> Path:
    paths = write_pictures(tmp_path / "pictures", 11)
    for index in (0, 4, 5, 10):
        paths[index].write_bytes(b"no picture")
    return tmp_path / "pictures"


@pytest.fixture
def predict(run, pictures, tmp_path):
    """Predict the images in batches of two into tmp_path/NAME, and return the folder."""

    def call(name: str, **changes) -> Path:
        own = {key.replace("__", "."): value for key, value in changes.items()}
        into = {"pretrained_name": run, "image": pictures, "trainer.exp_dir": tmp_path, "name": name}
        run_mode("predict", {**into, "dataset.test_ds.batch_size": 2, **own})
        return tmp_path / name / "predict"

    return call


def results(folder: Path) -> dict[str, bytes]:
    """Return all files but the lock of a killed process and the page, which names machine and folder."""
    kept = {path: text for path, text in contents(folder).items() if not path.name.startswith(".lock")}
    found = {str(path.relative_to(folder)): text for path, text in kept.items()}
    return {name: text for name, text in found.items() if name != "report.html"}


# --- killed ----------------------------------------------------------------------------------------------------------


def test_restart_after_a_kill_at_every_file_change(predict, tmp_path, capsys):
    predict = partial(predict, dataset__test_ds__batch_size=4)
    unbroken = results(predict("unbroken"))
    assert sorted(unbroken) == ["predictions.json", "predictions.jsonl", "skipped.jsonl"]
    deaths, change = 0, 1
    while died_at_change(change, tmp_path / "killed", lambda: predict("killed")):
        deaths, change = deaths + 1, change + 1
        if deaths % 6 == 0:  # else it is killed again before any progress
            predict("killed")
            assert results(tmp_path / "killed/predict") == unbroken, f"killed at the change {change - 1}"
    assert deaths >= 12
    assert results(tmp_path / "killed/predict") == unbroken
    assert not (tmp_path / "killed/predict/.lock").exists()


# --- under other keys ------------------------------------------------------------------------------------------------


@pytest.fixture
def broken_off(predict, pictures, tmp_path) -> Path:
    """The folder of a prediction that stopped at its fifth image."""
    with pytest.raises(UserError, match="picture-004"):
        (pictures / "picture-000.png").write_bytes((pictures / "picture-001.png").read_bytes())
        predict("run", dataset__strict=True)
    return tmp_path / "run/predict"


OTHERS = {"seed": 7, "emotion": "fear", "top_emotions": 2, "trainer.test.max_length": 3, "trainer.precision": "bf16"}


@pytest.mark.parametrize("key", [*OTHERS, "images"])
def test_changed_settings_need_overwrite(predict, pictures, broken_off, key):
    before = contents(broken_off)
    if key == "images":
        (pictures / "picture-003.png").write_bytes((pictures / "picture-002.png").read_bytes())
    own = {} if key == "images" else {key.replace(".", "__"): OTHERS[key]}
    with pytest.raises(UserError) as caught:
        predict("run", **own)
    message = str(caught.value)
    named = "other images" if key == "images" else f"{key}="
    assert named in message and "holds 4 predictions" in message and "trainer.overwrite=true" in message
    assert "\n" not in message and contents(broken_off) == before
    predict("run", **own, trainer__overwrite=True)
    assert sorted(results(broken_off)) == ["predictions.json", "predictions.jsonl", "skipped.jsonl"]
    assert len(Rows(broken_off / "predictions.jsonl")) == 8


def test_existing_predictions_are_reused(predict, broken_off, capsys):
    part = broken_off / "predictions.jsonl.part"
    part.write_text(part.read_text().replace('"explanation": "', '"explanation": "MARK ', 1))
    capsys.readouterr()
    rows = (predict("run", dataset__strict=False) / "predictions.jsonl").read_bytes()
    assert "continuing after 4 of 11 images" in capsys.readouterr().err
    assert rows.replace(b"MARK ", b"") == (predict("unbroken") / "predictions.jsonl").read_bytes() != rows


def test_batch_size_may_change(predict, broken_off, capsys):
    capsys.readouterr()
    predict("run", dataset__test_ds__batch_size=3, dataset__strict=False)
    assert "continuing after 3 of 11 images" in capsys.readouterr().err
    assert len(Rows(broken_off / "predictions.jsonl")) == 8


def test_interrupted_test_continues(run, keys, tmp_path, capsys):
    own = {"pretrained_name": run, "trainer.exp_dir": tmp_path, "trainer.test.metrics": "[rouge_l]"}
    own |= {"dataset.test_ds.batch_size": 2}
    run_mode("test", {**own, "name": "unbroken"})
    part = tmp_path / "killed/test/predictions.jsonl.part"
    assert died_at_change(4, part, lambda: run_mode("test", {**own, "name": "killed"}))  # after removal and creation
    assert len(part.read_bytes().splitlines()) == 2, "the first batch"
    capsys.readouterr()
    run_mode("test", {**own, "name": "killed"})
    assert "continuing after" in capsys.readouterr().err
    for name in ("predictions.jsonl", "metrics.json", "per_image.jsonl"):
        assert (tmp_path / "killed/test" / name).read_bytes() == (tmp_path / "unbroken/test" / name).read_bytes(), name
    assert sorted(results(tmp_path / "killed/test")) == ["metrics.json", "per_image.jsonl", "predictions.jsonl"]


# --- the files -------------------------------------------------------------------------------------------------------


def unfinished_of(folder: Path, *, size: int) -> tuple[Unfinished, list[tuple[list[dict], list[Skipped]]]]:
    """Return Unfinished for eleven images and the result of each batch; images 2, 3 and 10 are skipped."""
    samples = Samples.pack(Sample(f"ä{i}", folder / f"{i}.png", ()) for i in range(11))
    batches = []
    for start in range(0, 11, size):
        images = range(start, min(start + size, 11))
        rows = [{"id": f"ä{i}", "explanation": "ü" * i} for i in images if i not in (2, 3, 10)]
        batches.append((rows, [Skipped(f"ä{i}", folder / f"{i}.png", "no") for i in images if i in (2, 3, 10)]))
    return Unfinished(folder, samples, batch_size=size), batches


@pytest.mark.parametrize("size", [1, 2, 4, 20])
def test_truncated_files_keep_complete_batches(tmp_path, size):
    unfinished, batches = unfinished_of(tmp_path / "out", size=size)
    assert unfinished.begin({"seed": 1}, overwrite=False) == 0
    ends = []  # sizes of the two files after each batch
    for rows, skipped in batches:
        unfinished.add(rows, skipped)
        lengths = [path.stat().st_size if path.exists() else 0 for path in (unfinished.part, unfinished.skipped)]
        ends.append(lengths)
    whole = [path.read_bytes() for path in (unfinished.part, unfinished.skipped)]
    rng = random.Random(size)
    for cut in [*(end for end, _ in ends), *(rng.randrange(len(whole[0])) for _ in range(30))]:
        for torn in (whole[1], whole[1][: rng.randrange(len(whole[1]))]):
            unfinished.part.write_bytes(whole[0][:cut])
            unfinished.skipped.write_bytes(torn)
            done = unfinished.begin({"seed": 1}, overwrite=False)
            assert done % size == 0 or done == 11
            kept = min(done // size + (done % size > 0), len(batches))
            assert [*ends[kept - 1]] == [unfinished.part.stat().st_size, unfinished.skipped.stat().st_size] or kept == 0
            for rows, skipped in batches[kept:]:
                unfinished.add(rows, skipped)
            assert [unfinished.part.read_bytes(), unfinished.skipped.read_bytes()] == whole
    unfinished.part.write_bytes(whole[0])
    unfinished.skipped.write_bytes(whole[1])
    assert unfinished.begin({"seed": 1}, overwrite=False) == 11, "all images are done"
    assert len(unfinished.name_rows()) == 8 and len(unfinished.skipped_images()) == 3
    assert unfinished.begin({"seed": 1}, overwrite=False) == 11, "also after renaming"
    unfinished.close()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.jsonl"]


def test_symbolic_links_are_rejected(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.jsonl.part").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="symbolic link"):
        unfinished_of(tmp_path / "out", size=2)


def test_damaged_files_are_ignored(tmp_path):
    unfinished, batches = unfinished_of(tmp_path, size=2)
    unfinished.begin({"seed": 1}, overwrite=False)
    unfinished.add(*batches[0])
    for text in ("[]\n", "3\n", "null\n", '{"id": 4}\n', "{\n"):
        unfinished.part.write_text(text)
        unfinished.skipped.write_text(text)
        assert unfinished.begin({"seed": 1}, overwrite=False) == 0
    unfinished.record.write_text("no JSON")
    assert unfinished.begin({"seed": 2}, overwrite=False) == 0


def test_rows_are_a_lazy_sequence(tmp_path):
    rows = [{"id": str(i), "text": "ä\u2028" * i} for i in range(5)]
    (tmp_path / "rows").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    found = Rows(tmp_path / "rows")
    assert list(found) == rows == list(found) and len(found) == len(rows)
    (tmp_path / "none").write_text("")
    assert list(Rows(tmp_path / "none")) == []
