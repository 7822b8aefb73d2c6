"""VAD lexicon files: published layouts, errors that name file, line and column, and ambiguous files."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from pathlib import Path

import pytest

from common.errors import UserError
from data.vad.lexicon_files import configured_lexicon, read_lexicon

# Bipolar values that are exact on every scale below.
WORDS = {
    "happy": (0.75, 0.5, -0.25),
    "null": (-0.5, -1.0, 0.25),
    "none": (-0.25, 0.0, 0.0),
    "nan": (0.0, 0.25, 0.5),
    "true": (0.5, -0.25, 1.0),
    "false": (-0.75, 0.25, -0.5),
    "still life": (0.25, -0.75, 0.0),
}


def rescaled(values: tuple[float, ...], low: float, high: float) -> list[str]:
    return [f"{low + (v + 1) * (high - low) / 2:.6g}" for v in values]


def write(path: Path, rows: list[list[str]], *, delimiter: str = ",", end: str = "\n", bom: str = "") -> Path:
    path.write_bytes((bom + "".join(delimiter.join(row) + end for row in rows)).encode())
    return path


def table_rows(low: float, high: float) -> list[list[str]]:
    return [[word, *rescaled(values, low, high)] for word, values in WORDS.items()]


def with_decimal_commas(low: float, high: float) -> list[list[str]]:
    return [[cell.replace(".", ",") for cell in row] for row in table_rows(low, high)]


def warriner_rows() -> list[list[str]]:
    head = ["", "Word", *(f"{d}.{s}.Sum" for d in "VAD" for s in ("Mean", "SD", "Rat"))]
    head += [f"{d}.Mean.{group}" for group in range(18) for d in "VAD"]
    rows = []
    for number, (word, values) in enumerate(WORDS.items(), start=1):
        v, a, d = rescaled(values, 1, 9)
        rows.append([str(number), word, v, "1.1", "20", a, "2.2", "21", d, "3.3", "22", *["4.4"] * 54])
    assert len(head) == len(rows[0]) == 65
    return [head, *rows]


def glasgow_rows() -> list[list[str]]:
    rows = [["word", "length", "AROU_M", "AROU_SD", "VAL_M", "VAL_SD", "DOM_M"]]
    for word, values in WORDS.items():
        v, a, d = rescaled(values, 1, 9)
        rows.append([word, "5", a, "9.9", v, "9.9", d])
    return rows


def anew_rows() -> list[list[str]]:
    rows = [["Description", "Word No.", "Valence Mean", "Valence SD", "Arousal Mean", "Arousal SD", "Dominance Mean"]]
    for word, values in WORDS.items():
        v, a, d = rescaled(values, 1, 9)
        rows.append([word, "12", v, "1", a, "2", d])
    return rows


PLAIN = ["Word", "Valence", "Arousal", "Dominance"]
LAYOUTS = {
    "nrc v1": ([PLAIN, *table_rows(0, 1)], {"delimiter": "\t"}, "0..1"),
    "nrc v1 without header": (table_rows(0, 1), {"delimiter": "\t"}, "0..1"),
    "nrc v1 without header, with byte order mark": (
        table_rows(0, 1),
        {"delimiter": "\t", "bom": "\ufeff", "end": "\r\n"},
        "0..1",
    ),
    "nrc v1 with commas": ([PLAIN, *table_rows(0, 1)], {}, "0..1"),
    "nrc v1 with commas, without header": (table_rows(0, 1), {}, "0..1"),
    "nrc bipolar": (table_rows(-1, 1), {"delimiter": "\t"}, "-1..1"),
    "nrc v2.1": ([["term", "valence", "arousal", "dominance"], *table_rows(-1, 1)], {"delimiter": "\t"}, "-1..1"),
    "warriner": (warriner_rows(), {}, "1..9"),
    "warriner reduced": ([PLAIN, *table_rows(1, 9)], {"end": "\r\n"}, "1..9"),
    "warriner reduced, lower": ([[head.lower() for head in PLAIN], *table_rows(1, 9)], {}, "1..9"),
    "glasgow": (glasgow_rows(), {"end": "\r", "bom": "\ufeff"}, "1..9"),
    "anew": (anew_rows(), {"end": "\r\n"}, "1..9"),
    "five points, semicolons": ([PLAIN, *table_rows(1, 5)], {"delimiter": ";"}, "1..5"),
    "decimal commas": ([PLAIN, *with_decimal_commas(1, 9)], {"delimiter": ";"}, "1..9"),
    "decimal commas, without header": (with_decimal_commas(-1, 1), {"delimiter": ";"}, "-1..1"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts_give_equal_tables(tmp_path: Path, name: str) -> None:
    rows, how, scale = LAYOUTS[name]
    lexicon = read_lexicon(write(tmp_path / "lexicon.txt", rows, **how))
    assert lexicon.scale == scale
    assert set(lexicon.table) == set(WORDS) and not lexicon.notes
    for word, values in WORDS.items():
        assert lexicon.table[word] == pytest.approx(values, abs=1e-5)
        assert lexicon.lookup(word) == lexicon.table[word]


def test_quotes_are_literal_in_tsv_only(tmp_path: Path) -> None:
    rows = [PLAIN, ['"odd', "0.5", "0.5", "0.25"], ["even", "0.25", "0.75", "0.5"]]
    assert set(read_lexicon(write(tmp_path / "a.tsv", rows, delimiter="\t")).table) == {'"odd', "even"}
    rows = [['"Word"', *PLAIN[1:]], ['"odd, very"', "0.5", "0.5", "0.25"], ['"even"', "0.25", "0.75", "0.5"]]
    assert set(read_lexicon(write(tmp_path / "a.csv", rows)).table) == {"odd, very", "even"}


def test_senses_are_averaged_for_words_without_a_row(tmp_path: Path) -> None:
    rows = [PLAIN, ["bank (river)", "9", "9", "9"], ["bank", "3", "5", "7"]]
    rows += [["bow (ship)", "2", "4", "6"], ["bow (violin)", "4", "4", "8"]]
    lexicon = read_lexicon(write(tmp_path / "a.csv", rows))
    assert lexicon.table == {"bank": (-0.5, 0.0, 0.5), "bow": (-0.5, -0.25, 0.5)}


def test_lower_case_row_then_first_row_is_used(tmp_path: Path) -> None:
    rows = [
        PLAIN,
        ["Polish", "9", "9", "9"],
        ["polish", "1", "5", "5"],
        ["polish", "7", "7", "7"],
        ["TRUE", "9", "5", "1"],
    ]
    lexicon = read_lexicon(write(tmp_path / "a.csv", rows))
    assert lexicon.table == {"polish": (-1.0, 0.0, 0.0), "true": (1.0, 0.0, -1.0)}


def test_notes_report_rows_with_different_values(tmp_path: Path) -> None:
    rows = [PLAIN, ["calm", "3", "5", "7"], ["Calm", "1", "1", "1"], ["calm", "9", "9", "9"], ["sad", "1", "2", "3"]]
    lexicon = read_lexicon(write(tmp_path / "a.csv", rows))
    assert lexicon.table["calm"] == (-0.5, 0.0, 0.5)
    second, cased = lexicon.notes
    assert "1 words have a second row with other values, e.g. 'calm' in line 4; the first is used" in second
    assert "1 words have another row that differs in case and values, e.g. 'Calm' in line 3; the lower-case" in cased
    assert read_lexicon(write(tmp_path / "b.csv", [*rows[:2], rows[1]])).notes == ()


def test_rows_without_a_word_are_skipped_with_a_note(tmp_path: Path) -> None:
    rows = [PLAIN, ["calm", "3", "5", "7"], ["", "1", "2", "3"], ["", "4", "4", "4"]]
    lexicon = read_lexicon(write(tmp_path / "a.csv", rows))
    [note] = lexicon.notes
    assert [*lexicon.table] == ["calm"] and "2 rows without a word are skipped, the first in line 3" in note
    assert "null" in note


def test_scale_from_0_to_100(tmp_path: Path) -> None:
    rows = [PLAIN, ["calm", "90", "10", "50"], ["storm", "25", "75", "0"]]
    lexicon = read_lexicon(write(tmp_path / "a.csv", rows))
    assert lexicon.scale == "0..100" and lexicon.table["calm"] == pytest.approx((0.8, -0.8, 0.0))
    one_slip = [PLAIN, ["calm", "8", "1", "5"], ["storm", "2", "75", "4"], ["sea", "5", "3", "6"]]
    with pytest.raises(UserError, match=r"to 75 \('storm', line 3\).*fits none of the scales"):
        read_lexicon(write(tmp_path / "b.csv", one_slip))


def test_configured_scale_overrides_the_range(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [PLAIN, ["calm", "0", "0.5", "1"]])
    assert read_lexicon(path).table["calm"] == (-1.0, 0.0, 1.0)
    assert read_lexicon(path, scale="-1..1").table["calm"] == (0.0, 0.5, 1.0)
    with pytest.raises(UserError, match=r"a\.csv, line 2, valence: 0 of 'calm' is outside the scale 1\.\.9; correct"):
        read_lexicon(path, scale="1..9")
    with pytest.raises(UserError, match=r"unknown scale 'percent'.*auto, -1\.\.1"):
        read_lexicon(path, scale="percent")


def test_published_column_names_determine_the_scale(tmp_path: Path) -> None:
    """A part of Warriner's file without a value above 5 still has the scale 1..9."""
    path = write(tmp_path / "a.csv", [["Word", "V.Mean.Sum", "A.Mean.Sum", "D.Mean.Sum"], ["sad", "2", "3", "4"]])
    assert read_lexicon(path).table["sad"] == (-0.75, -0.5, -0.25)
    assert read_lexicon(path, scale="1..5").table["sad"] == (-0.5, 0.0, 0.5)


COLUMNS = {
    "numbers": [1, 3, 2, 5],
    "texts of numbers": ["1", "3", "2", "5"],
    "heads": ["Token", "pleasure", "ACTIVITY", "power"],
    "both": ["token", 3, 2, "Power"],
}


@pytest.mark.parametrize("name", COLUMNS)
def test_configured_columns(tmp_path: Path, name: str) -> None:
    heads = ["Token", "Activity", "Pleasure", "Length", "Power"]
    path = write(tmp_path / "a.csv", [heads, ["calm", "0.25", "0.5", "4", "1"]])
    lexicon = read_lexicon(path, columns=COLUMNS[name])
    assert lexicon.table == {"calm": (0.0, -0.5, 1.0)}
    assert "columns 1, 3, 2, 5" in lexicon.layout


HEADER = "Word,Valence,Arousal,Dominance"
HEADLESS = "a,.1,.2,.3,.4\n"
AMBIGUOUS = {
    "five columns without header": (HEADLESS, {}, r"no columns .*vad_columns.*--columns"),
    "two words": ("Word,Term,Valence,Arousal,Dominance\n", {}, r"more than one column.*word, term.*vad_columns"),
    "two sets": (f"{HEADER},V.Mean.Sum,A.Mean.Sum,D.Mean.Sum\n", {}, r"more than one.*valence.*v\.mean.*vad_columns"),
    "a head twice": ("Word,Valence,Arousal,Dominance,valence\n", {}, r"more than one column.*valence.*vad_columns"),
    "unknown heads": ("Token,V,A,D\na,.1,.2,.3\n", {}, r"begins with 'Token', 'V', 'A', 'D'.*vad_columns.*--columns"),
    "configured column twice": (
        "Word,Valence,Arousal,Dominance,valence\n",
        {"columns": ["word", "valence", 3, 4]},
        r"vad_columns.*'valence' matches 2 of the columns.*f\.csv",
    ),
    "configured column missing": (
        HEADLESS,
        {"columns": ["word", 2, 3, 4]},
        r"'word' matches none of the columns.*'a', '\.1'",
    ),
    "number too high": (HEADLESS, {"columns": [1, 2, 3, 6]}, r"'6' matches none"),
    "number too low": (HEADLESS, {"columns": [0, 2, 3, 4]}, r"'0' matches none"),
    "one column twice": (HEADLESS, {"columns": [1, 2, 3, 3]}, r"1, 2, 3, 3 are not four different columns"),
    "too few columns": (HEADLESS, {"columns": [1, 2, 3]}, r"not four different columns"),
    "all ones": ("a,1,1,1\nb,1,1,1\n", {}, r"all values .*f\.csv are 1.*vad_scale.*--scale.*-1\.\.1, 0\.\.1"),
    "rescaled": (
        "Word,V.Mean.Sum,A.Mean.Sum,D.Mean.Sum\na,.1,.2,.3\n",
        {},
        r"are from 0\.1 \('a', line 2\).*Warriner.*scale 1\.\.9.*vad_scale",
    ),
    "below -1": (
        "a,-.1,.2,.3\nb,.1,-1.2,.3\n",
        {},
        r"from -1\.2 \('b', line 2\) to 0\.3.*fits none of the scales.*vad_scale",
    ),
    "above 1": ("a,-.1,.2,.3\nb,.1,.2,5\n", {}, r"from -0\.1 \('a', line 1\) to 5 \('b', line 2\).*vad_scale"),
    "above 9": ("a,1,2,3\nb,4,5,11\n", {}, r"to 11 \('b', line 2\).*fits none of the scales"),
    "mixed": (
        "a,.1,.2,.3\nb,4,5,3\n",
        {},
        r"from 0\.1 \('a', line 1\) to 5 \('b', line 2\).*fits none of the scales.*vad_scale",
    ),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_files_are_refused_with_the_option_to_set(tmp_path: Path, name: str) -> None:
    content, options, message = AMBIGUOUS[name]
    path = tmp_path / "f.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        read_lexicon(path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "options", "values"),
    [
        ("a,1,1,1\n", {"scale": "1..9"}, (-1.0, -1.0, -1.0)),
        ("Word,V.Mean.Sum,A.Mean.Sum,D.Mean.Sum\na,0,.5,1\n", {"scale": "0..1"}, (-1.0, 0.0, 1.0)),
        ("Word,Valence,Arousal,Dominance,valence\na,.1,.5,1,0\n", {"columns": ["word", 5, 3, 4]}, (-1.0, 0.0, 1.0)),
        ("a,7,0,.5,1\n", {"columns": [1, 3, 4, 5]}, (-1.0, 0.0, 1.0)),
    ],
)
def test_options_resolve_ambiguous_files(tmp_path: Path, content: str, options: dict, values: tuple) -> None:
    path = tmp_path / "f.csv"
    path.write_text(content, encoding="utf-8")
    assert read_lexicon(path, **options).table == {"a": values}


FAULTS = {
    "word": (
        "Word,Valence,Arousal,Dominance\na,.1,.2,.3\nb,.1,good,.3\n",
        r"f\.csv, line 3, column 3 \(arousal\): 'good'",
    ),
    "not finite": ("Word,Valence,Arousal,Dominance\na,.1,.2,nan\n", r"line 2, column 4 \(dominance\): 'nan' of 'a'"),
    "line ends": ("Word,Valence,Arousal,Dominance\r\ra,.1,.2,.3\rb,.1,.2,\r", r"line 4, column 4 \(dominance\): ''"),
    "short": ("Word,Valence,Arousal,Dominance\na,.1,.2\n", r"line 2: 3 columns instead of at least 4"),
    "long": ("Word,Valence,Arousal,Dominance\n7,up,.1,.2,.3\n", r"line 2: 5 columns, but the first line has 4; quote"),
    "no word": ("Word,Valence,Arousal,Dominance\n,.1,.2,.3\n", r"f\.csv has no words"),
    "columns": (
        "Word,Valence,Arousal,Power\na,.1,.2,.3\n",
        r"f\.csv, which begins with 'Word', 'Valence', 'Arousal', 'Power'",
    ),
    "no column of words": ("x,Valence,Arousal,Dominance\na,.1,.2,.3\n", r"no columns .*f\.csv"),
    "empty": ("", r"f\.csv has no words"),
    "header only": ("Word,Valence,Arousal,Dominance\n", r"has no words"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_errors_name_the_place(tmp_path: Path, name: str) -> None:
    content, message = FAULTS[name]
    path = tmp_path / "f.csv"
    path.write_bytes(content.encode())
    with pytest.raises(UserError, match=message) as caught:
        read_lexicon(path)
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv: there is no such VAD lexicon; check dataset\.vad_lexicon"):
        read_lexicon(tmp_path / "none.csv")
    with pytest.raises(UserError, match="the VAD lexicon cannot be read"):
        read_lexicon(tmp_path)
    (tmp_path / "table.xlsx").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(UserError, match=r"table\.xlsx: the VAD lexicon is not UTF-8 text"):
        read_lexicon(tmp_path / "table.xlsx")


def test_real_glasgow_norms(shared_data: Path) -> None:
    """Compare all 5,553 rows with csv.DictReader: the row of a word, or the mean of its senses."""
    path = shared_data / "vad" / "GlasgowNorms.csv"
    lexicon = read_lexicon(path)
    assert lexicon.layout == "Glasgow norms, from columns 1, 6, 3, 9" and lexicon.scale == "1..9" and not lexicon.notes
    assert lexicon.lookup("abattoir") == pytest.approx(((2.7619 - 5) / 4, (4.3333 - 5) / 4, (4.3333 - 5) / 4))
    text = path.read_bytes().decode("utf-8-sig").replace("\r", "\n")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 5553
    own, senses = {}, defaultdict(list)
    for row in rows:
        values = [(float(row[head]) - 5) / 4 for head in ("VAL_M", "AROU_M", "DOM_M")]
        if "(" in row["word"]:
            senses[row["word"].split(" (")[0].lower()].append(values)
        else:
            own[row["word"].lower()] = values
    means = {word: [sum(column) / len(column) for column in zip(*rows, strict=True)] for word, rows in senses.items()}
    expected = means | own
    assert {"true", "false", "bank", "apple", "yo-yo"} <= set(expected) and len(expected) == 4682
    assert set(lexicon.table) == set(expected)
    for word, values in expected.items():
        assert lexicon.table[word] == pytest.approx(values), word


def test_the_configuration_names_columns_and_scale(tmp_path: Path):
    path = tmp_path / "lexicon.csv"
    path.write_text("a,term,d,v\n0.25,storm,0.75,0.5\n", encoding="utf-8")
    keys = {"vad_lexicon": str(path), "vad_columns": ["term", "v", "a", "d"], "vad_scale": "0..1"}
    lexicon = configured_lexicon(keys)
    assert (lexicon.table["storm"], lexicon.scale) == ((0.0, -0.5, 0.5), "0..1")
    assert configured_lexicon({**keys, "vad_lexicon": None}) is None
