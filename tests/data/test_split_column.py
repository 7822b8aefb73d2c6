"""Splits that come with the data: a column of a CSV or table, or a file given as --split."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from common.errors import UserError
from data.cache.digests import equal_files
from data.prepare.__main__ import main
from data.readers.table import read_table
from data.readers.texts import read_annotated_texts
from tests.helpers.tiny import run_mode, write_splits

# The columns of ArtEmis' own artemis_preprocessed.csv; v2's has version, image_file and grounding_emotion too.
HEAD = ("art_style", "painting", "emotion", "utterance", "repetition", "split", "tokens", "tokens_len",
        "utterance_spelled", "tokens_encoded", "emotion_label")  # fmt: skip
SPLITS = ("train", "train", "test", "val", "rest", "test", "train", "")


def preprocessed(count: int = 40, *, splits: Sequence[str] = SPLITS, version: str = "") -> list[dict[str, object]]:
    """Return five rows of each painting; the splits alternate, so that no draw would give them by chance."""
    rows = []
    for i in range(count):
        for j, emotion in enumerate(("awe", "fear", "awe", "sadness", "amusement")):
            text = f"the number {i} boat looks lost under a sky {j}"
            cells = ("Realism", f"boat-{i:02d}", emotion, text, 5, splits[i % len(splits)], [text], 9, text, [1, 2], j)
            rows.append(dict(zip(HEAD, cells, strict=True)) | ({"version": version} if version else {}))
    return rows


def write(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def prepare(source: Path, out: Path, *options: object) -> dict[str, Counter[str]]:
    """Run the command; return the number of annotations by painting of each file."""
    assert main(["artemis", str(source), "--out", str(out), "--spelling", "off", *map(str, options)]) == 0
    return {
        part: Counter(
            {entry["image_name"][:-4]: len(entry["emotions"]) for entry in json.loads(path.read_text()).values()}
        )
        for part in ("train", "val", "test", "rest")
        if (path := out / f"artEmisX_{part}.json").exists()
    }


def recount(rows: Sequence[dict[str, object]], split: str) -> Counter[str]:
    return Counter(f"{row['art_style']}/{row['painting']}" for row in rows if row["split"] == split)


@pytest.fixture
def refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main(["artemis", *map(str, arguments), "--out", str(tmp_path / "refused")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and not (tmp_path / "refused").exists()
        return error

    return run


# --- ArtEmis' own file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["", "new"])
def test_split_column_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str], version: str) -> None:
    """v2's file has a column version, but no longer the anchors."""
    rows = preprocessed(version=version)
    write(tmp_path / "combined" / "artemis_preprocessed.csv", rows)
    found = prepare(tmp_path / "combined", tmp_path / "out")
    assert found == {split: recount(rows, split) for split in ("train", "val", "test", "rest")}
    assert [len(found[split]) for split in ("train", "val", "test", "rest")] == [15, 5, 10, 5]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["left_out"] == {"no split": 25}
    assert manifest["settings"]["split"] == str(tmp_path / "combined/artemis_preprocessed.csv")
    printed = capsys.readouterr().out
    assert "split as in" in printed and "no split" in printed


def test_v2_rows_of_both_versions_are_kept_whole(tmp_path: Path) -> None:
    """Drawn splits take a sample of v1; a file with splits is one already."""
    old = preprocessed(24, splits=("train", "test", "rest"), version="old")
    new = [
        {**row, "version": "new", "utterance": f"{row['utterance']} again"} for row in old if row["split"] == "train"
    ]
    found = prepare(write(tmp_path / "rows.csv", old + new), tmp_path / "out")
    assert found == {split: recount(old + new, split) for split in ("train", "test", "rest")}


def test_other_spellings_of_splits(tmp_path: Path) -> None:
    rows = preprocessed(10, splits=("Training", " valid", "validation", "dev", "TESTING"))
    found = prepare(write(tmp_path / "rows.csv", rows), tmp_path / "out")
    assert {split: len(found[split]) for split in found} == {"train": 2, "val": 6, "test": 2}


def test_a_painting_in_two_splits_is_refused(tmp_path: Path, refusal) -> None:
    rows = preprocessed(10, splits=("train", "test"))
    rows[17] |= {"split": "val"}
    error = refusal(write(tmp_path / "rows.csv", rows))
    assert "rows.csv: Realism/boat-03 is in two splits, test and val" in error


def test_an_unknown_split_is_refused_with_the_names(tmp_path: Path, refusal) -> None:
    rows = preprocessed(10, splits=("train", "holdout"))
    error = refusal(write(tmp_path / "rows.csv", rows))
    assert "rows.csv, line 7: 'holdout' is not the name of a split" in error
    assert "train, training, val, valid, validation, dev, test, testing, rest" in error


def test_options_that_draw_a_split_are_refused(tmp_path: Path, refusal) -> None:
    path = write(tmp_path / "rows.csv", preprocessed(10, version="new"))
    assert "--split with shares draws a split, but" in refusal(path, "--split", 0.8, 0.1, 0.1)
    assert "--subset draws a split, but" in refusal(path, "--subset", "new")


# --- --split FILE -----------------------------------------------------------------------------------------------------


def as_csv(path: Path, pairs: dict[str, str]) -> Path:
    rows = [{"art_style": style, "painting": name, "split": split}
            for (style, name), split in ((key.split("/"), split) for key, split in pairs.items())]  # fmt: skip
    return write(path, rows)


def as_lists(path: Path, pairs: dict[str, str]) -> Path:
    lists = {split: [f"{name}.jpg" for name in pairs if pairs[name] == split] for split in {*pairs.values()}}
    path.write_text(json.dumps(lists))
    return path


def as_object(path: Path, pairs: dict[str, str]) -> Path:
    path.write_text(json.dumps({name.partition("/")[2]: split for name, split in pairs.items()}))
    return path


@pytest.mark.parametrize("form", [as_csv, as_lists, as_object])
def test_split_file_decides_over_the_column(tmp_path: Path, form) -> None:
    rows = preprocessed(20)
    names = list(dict.fromkeys(f"Realism/{row['painting']}" for row in rows))
    wanted = {name: ("test", "train", "validation")[i % 3] for i, name in enumerate(names[:15])}
    options = ["--split", form(tmp_path / "splits.any", wanted)]
    found = prepare(write(tmp_path / "rows.csv", rows), tmp_path / "out", *options)
    assert {name: split for split in found for name in found[split]} == {
        name: split.replace("validation", "val") for name, split in wanted.items()
    }
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["left_out"] == {"no split": 25} and manifest["inputs"]["split_file"]["bytes"] > 0


def test_unusable_split_files(tmp_path: Path, refusal) -> None:
    rows, path = write(tmp_path / "rows.csv", preprocessed(4)), tmp_path / "splits.json"
    assert "nowhere.json: there is no such file" in refusal(rows, "--split", "nowhere.json")
    for content, words in (
        ({"train": ["boat-00"], "test": ["boat-00.jpg"]}, "boat-00 is in two splits, train and test"),
        ({"boat-00": "holdout"}, "'holdout' is not the name of a split; accepted are train"),
        ({"other": "train"}, "has none of the paintings of"),
        ({"boat-00": 3}, "'boat-00' needs the name of a split"),
    ):
        path.write_text(json.dumps(content))
        assert words in refusal(rows, "--split", path)
    assert "no column 'split'" in refusal(rows, "--split", write(tmp_path / "s.csv", [{"painting": "a", "part": "b"}]))


# --- tables -----------------------------------------------------------------------------------------------------------


def table(path: Path, splits: Sequence[str]) -> Path:
    rows = [{"image": f"{i}.jpg", "text": f"text {i} {j}", "emotion": "awe", "Split": split}
            for i, split in enumerate(splits) for j in range(2)]  # fmt: skip
    return write(path, rows)


def test_table_with_a_split_column_gives_each_split_its_rows(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", ["train", "Test", "dev", "train", "rest", "training"])
    found = {split: [s.id for s in read_table(path, tmp_path, split=split)] for split in ("train", "val", "test")}
    assert found == {"train": ["0.jpg", "3.jpg", "5.jpg"], "val": ["2.jpg"], "test": ["1.jpg"]}
    texts = [found.text for found in read_annotated_texts(path, split="train")]
    assert texts == [f"text {i} {j}" for i in (0, 3, 5) for j in range(2)]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train", "holdout"], r"t.csv, line 4: 'holdout' is not the name of a split; accepted are train, training"),
        (["train", ""], r"t.csv, line 4: the column 'Split' is empty; fill it, or delete the column"),
        (["test", "rest"], r"t.csv: the column split has no row of train \(test 2, rest 2\)"),
    ],
)
def test_unusable_split_columns_of_tables(tmp_path: Path, splits: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_table(table(tmp_path / "t.csv", splits), tmp_path)


def test_table_with_an_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    rows = [{"image": "a.jpg", "text": "x", "split": split} for split in ("train", "test")]
    with pytest.raises(UserError, match=r"t.csv: a.jpg is in two splits, train and test; give all rows"):
        read_table(write(tmp_path / "t.csv", rows), tmp_path)


# --- the same picture in two splits -----------------------------------------------------------------------------------


def test_equal_files_are_found_by_content(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png", "d.png")]
    for path, content in zip(paths, (b"one", b"two", b"one", b"other"), strict=True):
        path.write_bytes(content)
    assert equal_files(paths[:2], [*paths[2:], tmp_path / "missing.png"], None) == [(paths[0], paths[2])]


def test_training_warns_of_a_picture_in_train_and_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = write_splits(tmp_path, train=4, val=4)
    run_mode("train", {**keys, "name": "apart"})
    assert "training images too" not in capsys.readouterr().err
    picture = Path(keys["dataset.train_ds.visual_dir"]) / "Style/picture-002.png"
    copy = Path(keys["dataset.validation_ds.visual_dir"]) / "Style/picture-001.png"
    Image.open(picture).verify()
    copy.write_bytes(picture.read_bytes())
    run_mode("train", {**keys, "name": "leaked"})
    printed = capsys.readouterr().err
    assert f"1 of the validation images are training images too, the first is {copy}" in printed
    with pytest.raises(UserError, match=f"the same as {picture}: give every picture one split"):
        run_mode("train", {**keys, "name": "strict", "dataset.strict": True})
