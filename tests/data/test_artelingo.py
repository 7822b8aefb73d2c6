"""ArtELingo and ArtELingo-28 in the layouts of their publication: columns, languages, lengths and counts."""

from __future__ import annotations

import csv
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from data.languages import words
from data.prepare.__main__ import main
from data.readers.artemis import read_artemis
from data.readers.table import read_table

TEXTS = {
    "english": "It's a calm sea, and the boats' sails don't move",
    "arabic": "أشعر بالهدوء عندما أنظر إلى هذا البحر الجميل",
    "chinese": "平静的大海，让我想起了故乡。",
}
SHORT = {"english": "a calm sea", "arabic": "بحر جميل", "chinese": "很美！"}
LONG = {"english": "sea and " * 20, "arabic": "بحر جميل " * 20, "chinese": "平静的大海" * 20}
SPLITS = ("train", "train", "val", "test", "rest", "")


def release() -> list[dict[str, str]]:
    """Return rows of artelingo_release_lite.csv: names in NFD, rows without a split, ArtEmis' rest."""
    rows = []
    for i in range(12):
        for language in TEXTS:
            for text in (TEXTS, SHORT, LONG) if i % 5 == 0 else (TEXTS,):
                rows.append(
                    {
                        "art_style": "Realism",
                        "emotion": ("awe", "something else", "sadness")[i % 3],
                        "language": language,
                        "painting": unicodedata.normalize("NFD", f"café-{i:02d}"),
                        "split": SPLITS[i % 6],
                        "utterance": text[language],
                    }
                )
    rows.append({**rows[0], "emotion": "bored"})
    rows.append({**rows[1], "utterance": " "})
    return rows


def twenty_eight() -> list[dict[str, str]]:
    """Return rows of artelingo28_train_val.csv: capital names of languages, the emotion other, no test rows."""
    texts = {
        "Thai": "ภาพนี้ทำให้ฉันรู้สึกสงบ",
        "Urdu": "یہ تصویر مجھے سکون دیتی ہے",
        "Kyrgyz": "Бул сүрөт мага тынчтык берет, ооба",
    }
    return [
        {
            "painting": f"p({i})", "image_name": f"Cubism/p({i}).jpg", "image_id": "7", "art_style": "Cubism",
            "genre": "portrait", "language": language, "caption": text, "emotion": ("awe", "other")[i % 2],
            "split": ("train", "val")[i % 3 == 0],
        }
        for i in range(6)
        for language, text in texts.items()
    ]  # fmt: skip


def write(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def prepare(source: Path, out: Path, *options: str) -> dict:
    """Run the command and return the manifest."""
    assert main(["artemis", str(source), "--out", str(out), "--spelling", "off", *options]) == 0
    return json.loads((out / "manifest.json").read_text(encoding="utf-8"))


def entries(out: Path, part: str) -> list[dict]:
    return list(json.loads((out / f"artEmisX_{part}.json").read_text(encoding="utf-8")).values())


# --- languages --------------------------------------------------------------------------------------------------------


def test_several_languages_are_not_mixed_silently(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "artelingo_release_lite.csv", release())
    assert main(["artemis", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "3 languages (" in error and "english 18" in error and "choose with --language NAME[,NAME] or all" in error
    assert main(["artemis", str(path), "--out", str(tmp_path / "out"), "--language", "french"]) == 2
    assert "--language french: " in capsys.readouterr().err


@pytest.mark.parametrize("language", TEXTS)
def test_one_language(tmp_path: Path, language: str) -> None:
    rows = release()
    manifest = prepare(write(tmp_path / "a.csv", rows), tmp_path / "out", "--language", language.upper())
    own = [row for row in rows if row["language"] == language and row["split"] == "train" and row["emotion"] != "bored"]
    kept = [row for row in own if row["utterance"] == TEXTS[language]]
    kept += [row for row in own if row["utterance"] == LONG[language]] if language != "english" else []
    assert manifest["splits"]["train"]["annotations"] == len(kept)
    assert {entry["language"] for entry in entries(tmp_path / "out", "train")} == {language}
    samples = read_artemis(tmp_path / "out/artEmisX_train.json", tmp_path)
    assert {sample.language for sample in samples} == {language}
    assert samples[0].path.name == unicodedata.normalize("NFC", "café-00.jpg")


def test_every_row_is_counted_by_language_and_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = release()
    languages = prepare(write(tmp_path / "a.csv", rows), tmp_path / "out", "--language", "arabic,chinese")["languages"]
    assert {name: found["rows"] for name, found in languages.items()} == Counter(row["language"] for row in rows)
    assert all(found["rows"] == found["kept"] + sum(found["left_out"].values()) for found in languages.values())
    faults = {"empty utterance": 1, "unknown emotion": 1}
    assert languages["english"] == {"rows": 20, "kept": 0, "left_out": {"not chosen": 18, **faults}}
    assert languages["arabic"]["left_out"] == {"fewer than 5 tokens": 2, "no split": 4}
    printed = capsys.readouterr().out
    assert "language" in printed and "fewer than 5 tokens 2" in printed and "not chosen 18" in printed


def test_all_languages_give_an_entry_for_each(tmp_path: Path) -> None:
    rows = release()
    prepare(write(tmp_path / "a.csv", rows), tmp_path / "out", "--language", "all")
    found = entries(tmp_path / "out", "val")
    wanted = {(row["painting"], row["language"]) for row in rows if row["split"] == "val"}
    assert len(found) == len(wanted) == 6
    assert {(Path(e["image_name"]).stem, e["language"]) for e in found} == {
        (unicodedata.normalize("NFC", name), language) for name, language in wanted
    }


def test_a_painting_is_in_one_split_whatever_the_language(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = release()
    unsplit = write(tmp_path / "a.csv", [{key: row[key] for key in row if key != "split"} for row in rows])
    parts = {}
    for language in ("arabic", "all"):
        prepare(unsplit, tmp_path / language, "--language", language, "--split", "0.5", "0.25", "0.25")
        for part in ("train", "val", "test"):
            parts[language, part] = {entry["image_name"] for entry in entries(tmp_path / language, part)}
    assert all(parts["arabic", part] == parts["all", part] for part in ("train", "val", "test"))
    next(row for row in rows if row["language"] == "arabic" and row["split"] == "train")["split"] = "test"
    path = write(tmp_path / "b.csv", rows)
    assert main(["artemis", str(path), "--out", str(tmp_path / "b"), "--language", "english"]) == 2
    assert "is in two splits" in capsys.readouterr().err


# --- texts ------------------------------------------------------------------------------------------------------------


def test_only_english_is_cleaned(tmp_path: Path) -> None:
    prepare(write(tmp_path / "a.csv", release()), tmp_path / "out", "--language", "all")
    texts = {entry["language"]: entry["explanations"][0] for entry in entries(tmp_path / "out", "val")}
    assert texts["english"] == "it is a calm sea and the boats sails do not move"
    assert (texts["arabic"], texts["chinese"]) == (TEXTS["arabic"], TEXTS["chinese"])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("平静的大海，让我想起了故乡。", 12),
        ("静かな海だ", 5),
        ("ภาพนี้ทำให้ฉันรู้สึกสงบ", 16),  # vowels above and below belong to their consonant
        ("고요한 바다가 나를 편안하게 한다", 5),
        ("मुझे शांति मिलती है।", 4),
        ("2只鸟 and a boat", 6),
    ],
)
def test_words_of_a_script_without_spaces_are_characters(text: str, count: int) -> None:
    assert len(words(text)) == count


def test_a_file_without_the_column_may_be_of_another_language(tmp_path: Path) -> None:
    rows = [{key: row[key] for key in row if key != "language"} for row in release() if row["language"] == "chinese"]
    prepare(write(tmp_path / "a.csv", rows), tmp_path / "out", "--language", "Chinese")
    assert entries(tmp_path / "out", "val")[0]["explanations"] == [TEXTS["chinese"]]


# --- ArtELingo-28 -----------------------------------------------------------------------------------------------------


def test_artelingo_28(tmp_path: Path) -> None:
    rows = twenty_eight()
    manifest = prepare(write(tmp_path / "a.csv", rows), tmp_path / "out", "--language", "thai,kyrgyz")
    for split in ("train", "val"):
        own = [row for row in rows if row["split"] == split and row["language"] != "Urdu"]
        assert manifest["splits"][split]["annotations"] == len(own)
        assert manifest["splits"][split]["emotions"]["something else"] == sum(row["emotion"] == "other" for row in own)
    assert "test" not in manifest["splits"]
    assert manifest["languages"]["urdu"] == {"rows": 6, "kept": 0, "left_out": {"not chosen": 6}}


def test_a_table_with_languages_has_a_sample_for_each(tmp_path: Path) -> None:
    rows = [row | {"emotion": "awe"} for row in twenty_eight()]
    samples = read_table(write(tmp_path / "a.csv", rows), tmp_path, split="val")
    assert [(s.id, s.language) for s in samples][:2] == [
        ("Cubism/p(0).jpg thai", "thai"),
        ("Cubism/p(0).jpg urdu", "urdu"),
    ]
    assert len(samples) == sum(row["split"] == "val" for row in rows)
