"""A user's CSV, TSV or JSON Lines table with one row per text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import UserError
from data.emotions import INDEX
from data.readers.table import read_table

ROWS = [
    {"image": "a.jpg", "text": 'calm, and "wide"', "emotion": "awe"},
    {"image": "b.jpg", "text": "two\nlines", "emotion": "fear"},
    {"image": "a.jpg", "text": "a grey sky; rain", "emotion": "sadness"},
]
OTHER_HEADS = [
    {"Caption": row["text"], "label": row["emotion"], "extra": "", "FILE_NAME": row["image"]} for row in ROWS
]


def separated(path: Path, rows: list[dict], delimiter: str = ",", end: str = "\n", bom: bool = False) -> Path:
    def cell(value: str) -> str:
        return '"' + value.replace('"', '""') + '"'

    lines = [delimiter.join(map(cell, rows[0])), *(delimiter.join(map(cell, row.values())) for row in rows)]
    path.write_bytes(("\ufeff" * bom + end.join(lines) + end).encode())
    return path


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: separated(folder / "t.csv", ROWS),
        lambda folder: separated(folder / "t.csv", ROWS, delimiter=";", end="\r\n", bom=True),
        lambda folder: separated(folder / "t.tsv", ROWS, delimiter="\t"),
        lambda folder: lines(folder / "t.jsonl", ROWS),
        lambda folder: separated(folder / "t.csv", OTHER_HEADS),
    ],
)
def test_rows_are_grouped_by_image(tmp_path: Path, write) -> None:
    a, b = read_table(write(tmp_path), tmp_path)
    assert (a.id, a.path, b.id) == ("a.jpg", tmp_path / "a.jpg", "b.jpg")
    assert a.texts == ('calm, and "wide"', "a grey sky; rain") and b.texts == ("two\nlines",)
    assert a.emotions == (INDEX["awe"], INDEX["sadness"]) and b.emotions == (INDEX["fear"],)
    assert a.histogram == (0, 0.5, 0, 0, 0, 0, 0, 0.5, 0)


@pytest.mark.parametrize("rows", [[{"image": "a.jpg", "text": "x"}], [{"image": "a.jpg", "text": "x", "emotion": ""}]])
def test_emotions_are_optional(tmp_path: Path, rows: list[dict]) -> None:
    (sample,) = read_table(lines(tmp_path / "t.jsonl", rows), tmp_path)
    assert sample.emotions == () and sample.histogram is None


def test_words_that_look_like_missing_values(tmp_path: Path) -> None:
    words = ["null", "nan", "None", "N/A"]
    rows = [{"image": f"{word}.jpg", "text": word} for word in words]
    assert [s.texts[0] for s in read_table(separated(tmp_path / "t.csv", rows), tmp_path)] == words


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "picture,words\na,b\n", r"no column 'image' \(nor image_name.*'picture', 'words'"),
        ("t.csv", "image,emotion\na,awe\n", "no column 'text'"),
        ("t.csv", "image,text\na.jpg,one, two\n", "line 2: more cells than the 2 columns.*quote texts"),
        ("t.csv", "image,text\na.jpg\n", "line 2: fewer cells"),
        ("t.csv", "image,text\na.jpg,\n", "line 2: the column 'text' is empty"),
        ("t.csv", 'image,text\na.jpg,"never closed\n', "line 2: not readable as CSV"),
        ("t.csv", "image,text,emotion\na.jpg,x,joyful\n", "line 2: 'joyful' is not one of the nine"),
        ("t.csv", "image,text,emotion\na.jpg,x,awee\n", "did you mean 'awe'"),
        ("t.csv", "image,text,text\na.jpg,x,y\n", "two columns are named 'text'; rename or delete one"),
        ("t.csv", "image,text,Text\na.jpg,x,y\n", "two columns are named 'text'; rename or delete one"),
        ("t.csv", "image,text\na.jpg,x\nImage, TEXT\n", "line 3: the names of the columns again"),
        ("t.csv", 'image,text\na.jpg,"x" y\n', "line 2: .* in quotation marks, and double those in it"),
        ("t.csv", "image,text,emotion\na.jpg,x,awe\nb.jpg,y,\n", "line 3: the emotion is empty, while"),
        ("t.csv", "image,text\n../a.jpg,x\n", "line 2: image name '../a.jpg' leads out"),
        ("t.csv", "", "no rows"),
        ("t.csv", "image,text\n", "no rows"),
        ("t.jsonl", '{"image": "a.jpg", "text": "x"}\n{"image": }\n', "line 2: not JSON"),
        ("t.jsonl", "[1]\n", "line 1: must be an object, not a list"),
        ("t.jsonl", '{"image": 3, "text": "x"}\n', "line 1: 'image' must be text, not a number"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        read_table(tmp_path / name, tmp_path)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such annotation file"):
        read_table(tmp_path / "none.csv", tmp_path)
    (tmp_path / "latin.csv").write_bytes("image,text\na.jpg,größer\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.csv: the annotation file is not UTF-8 text \(byte 19\)"):
        read_table(tmp_path / "latin.csv", tmp_path)


@pytest.mark.parametrize("text", ['"so calm, like a long summer', '"so calm" she said', 'so "cold"', '""', '"'])
def test_quotation_marks_between_tabs_are_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.tsv").write_text(f"image\ttext\temotion\na.jpg\t{text}\tawe\nb.jpg\tdark\tfear\n")
    found = read_table(tmp_path / "t.tsv", tmp_path)
    assert [(sample.texts, sample.emotions) for sample in found] == [((text,), (1,)), (("dark",), (6,))]


@pytest.mark.parametrize(
    "content",
    [
        "image,text,emotion\na.jpg,x,awe\n,,\n,,\n",
        "\n\nimage,text,emotion\na.jpg,x,awe\n",
        "sep=;\nimage;text;emotion\na.jpg;x;awe\n",
        '"sep=,"\r\nimage,text,emotion\r\na.jpg,x,awe\r\n',
        "image,text,emotion\na.jpg,x,awe,,\n",
        ",image,text,emotion\n0,a.jpg,x,awe\n",
        "image,text,emotion,,\na.jpg,x,awe,,\n",
    ],
)
def test_what_spreadsheets_add_is_skipped(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    assert [(s.id, s.texts, s.emotions) for s in read_table(tmp_path / "t.csv", tmp_path)] == [("a.jpg", ("x",), (1,))]


@pytest.mark.parametrize("label", ["Awe", " awe ", "AWE"])
def test_labels_have_one_spelling(tmp_path: Path, label: str) -> None:
    (tmp_path / "t.csv").write_text(f"image,text,emotion\na.jpg,x,{label}\na.jpg,y,Something_Else\n")
    assert read_table(tmp_path / "t.csv", tmp_path)[0].emotions == (1, 8)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
@pytest.mark.parametrize("how", ["with its head", "without", "each row"])
def test_file_joined_to_itself(tmp_path: Path, name: str, how: str) -> None:
    rows = [{"image": f"{i}.jpg", "text": "grey" if i else "a sea", "emotion": "fear"} for i in range(3)]
    path = (
        lines(tmp_path / name, rows) if name == "t.jsonl" else separated(tmp_path / name, rows, "\t,"[".csv" in name])
    )
    content = path.read_text(encoding="utf-8").splitlines()
    head = 0 if name == "t.jsonl" else 1
    end = {"with its head": content, "without": content[head:], "each row": []}[how]
    once = [line for line in content[head:] for _ in range(2)] if how == "each row" else content[head:]
    path.write_text("\n".join([*content[:head], *once, *end]) + "\n", encoding="utf-8")
    again = how == "with its head" and head
    message = "line 5: the names of the columns again" if again else "3 different rows occurs more than once"
    with pytest.raises(UserError, match=message):
        read_table(path, tmp_path)
    faults: list[str] = []
    assert len(read_table(path, tmp_path, faults=faults)) == 3 and message in " ".join(faults)


def test_repeated_rows_are_no_fault(tmp_path: Path) -> None:
    """Two annotators may write the same."""
    rows = [{"image": name, "text": "grey"} for name in ("a.jpg", "a.jpg", "b.jpg")]
    assert len(read_table(separated(tmp_path / "t.csv", rows), tmp_path)) == 2
    assert len(read_table(separated(tmp_path / "t.csv", rows[:2]), tmp_path)) == 1


def test_faults_are_collected(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("image,text,emotion\na.jpg,x,awe\nb.jpg,y,joy\nc.jpg,z,\nd.jpg,w,fear\ne.jpg\n", encoding="utf-8")
    faults: list[str] = []
    assert [s.id for s in read_table(table, tmp_path, faults=faults)] == ["a.jpg", "d.jpg"]
    assert sorted(fault.split(":")[0].split()[-1] for fault in faults) == ["3", "4", "6"]


def test_custom_labels(tmp_path):
    rows = [{"image": f"{i}.jpg", "text": "why", "emotion": name} for i, name in enumerate(("joy", "fear", "joy"))]
    found = read_table(lines(tmp_path / "t.jsonl", rows), tmp_path, labels=("joy", "fear"))
    assert found.labels == ("joy", "fear") and [sample.emotions for sample in found] == [(0,), (1,), (0,)]
    assert [sample.histogram for sample in found] == [(1.0, 0.0), (0.0, 1.0), (1.0, 0.0)]
    with pytest.raises(UserError, match="'fear' is not one of the two emotions"):
        read_table(tmp_path / "t.jsonl", tmp_path, labels=("joy", "sadness"))
