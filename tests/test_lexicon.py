"""Every published layout gives the same table; faults name file, line and column."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest

from data.lexicon import Lexicon, main, read_lexicon
from errors import UserError

# Bipolar values that are exact on every scale used below.
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


def write(path: Path, rows: list[list[str]], *, mark: str = ",", end: str = "\n", bom: str = "") -> Path:
    path.write_bytes((bom + "".join(mark.join(row) + end for row in rows)).encode())
    return path


def table_rows(low: float, high: float) -> list[list[str]]:
    return [[word, *rescaled(values, low, high)] for word, values in WORDS.items()]


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
    "nrc v1": ([PLAIN, *table_rows(0, 1)], {"mark": "\t"}, "0..1"),
    "nrc v1 without header": (table_rows(0, 1), {"mark": "\t"}, "0..1"),
    "nrc v1 with commas": ([PLAIN, *table_rows(0, 1)], {}, "0..1"),
    "nrc bipolar": (table_rows(-1, 1), {"mark": "\t"}, "-1..1"),
    "nrc v2.1": ([["term", "valence", "arousal", "dominance"], *table_rows(-1, 1)], {"mark": "\t"}, "-1..1"),
    "warriner": (warriner_rows(), {}, "1..9"),
    "warriner reduced": ([PLAIN, *table_rows(1, 9)], {"end": "\r\n"}, "1..9"),
    "warriner reduced, lower": ([[head.lower() for head in PLAIN], *table_rows(1, 9)], {}, "1..9"),
    "glasgow": (glasgow_rows(), {"end": "\r", "bom": "\ufeff"}, "1..9"),
    "anew": (anew_rows(), {"end": "\r\n"}, "1..9"),
    "five points, semicolons": ([PLAIN, *table_rows(1, 5)], {"mark": ";"}, "1..5"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_table(tmp_path: Path, name: str) -> None:
    rows, how, scale = LAYOUTS[name]
    lexicon = read_lexicon(write(tmp_path / "lexicon.txt", rows, **how))
    assert lexicon.scale == scale
    assert set(lexicon.table) == set(WORDS)
    for word, values in WORDS.items():
        assert lexicon.table[word] == pytest.approx(values, abs=1e-5)
        assert lexicon.lookup(word) == lexicon.table[word]


def test_quotes_are_literal_in_tsv_and_not_in_csv(tmp_path: Path) -> None:
    rows = [PLAIN, ['"odd', "0.5", "0.5", "0.25"], ["even", "0.25", "0.75", "0.5"]]
    assert set(read_lexicon(write(tmp_path / "a.tsv", rows, mark="\t")).table) == {'"odd', "even"}
    rows = [['"Word"', *PLAIN[1:]], ['"odd, very"', "0.5", "0.5", "0.25"], ['"even"', "0.25", "0.75", "0.5"]]
    assert set(read_lexicon(write(tmp_path / "a.csv", rows)).table) == {"odd, very", "even"}


def test_senses_are_averaged_only_where_the_plain_word_is_missing(tmp_path: Path) -> None:
    rows = [PLAIN, ["bank (river)", "9", "9", "9"], ["bank", "3", "5", "7"]]
    rows += [["bow (ship)", "2", "4", "6"], ["bow (violin)", "4", "4", "8"]]
    lexicon = read_lexicon(write(tmp_path / "a.csv", rows))
    assert lexicon.table == {"bank": (-0.5, 0.0, 0.5), "bow": (-0.5, -0.25, 0.5)}


def test_lower_case_row_wins_then_the_first(tmp_path: Path) -> None:
    rows = [
        PLAIN,
        ["Polish", "9", "9", "9"],
        ["polish", "1", "5", "5"],
        ["polish", "7", "7", "7"],
        ["TRUE", "9", "5", "1"],
    ]
    lexicon = read_lexicon(write(tmp_path / "a.csv", rows))
    assert lexicon.table == {"polish": (-1.0, 0.0, 0.0), "true": (1.0, 0.0, -1.0)}


def test_a_scale_that_is_named_overrides_the_range(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [PLAIN, ["calm", "0", "0.5", "1"]])
    assert read_lexicon(path).table["calm"] == (-1.0, 0.0, 1.0)
    assert read_lexicon(path, scale="-1..1").table["calm"] == (0.0, 0.5, 1.0)
    with pytest.raises(
        UserError, match=r"a\.csv, line 2, valence: 0 of 'calm' is outside 1\.\.9, the scale that was ask"
    ):
        read_lexicon(path, scale="1..9")
    with pytest.raises(UserError, match=r"unknown scale 'percent'.*auto, -1\.\.1"):
        read_lexicon(path, scale="percent")


FAULTS = {
    "word": (
        "Word,Valence,Arousal,Dominance\na,.1,.2,.3\nb,.1,good,.3\n",
        r"f\.csv, line 3, column 3 \(arousal\): 'good'",
    ),
    "not finite": ("Word,Valence,Arousal,Dominance\na,.1,.2,nan\n", r"line 2, column 4 \(dominance\): 'nan' of 'a'"),
    "line ends": ("Word,Valence,Arousal,Dominance\r\ra,.1,.2,.3\rb,.1,.2,\r", r"line 4, column 4 \(dominance\): ''"),
    "short": ("Word,Valence,Arousal,Dominance\na,.1,.2\n", r"line 2: 3 columns where at least 4"),
    "no word": ("Word,Valence,Arousal,Dominance\n,.1,.2,.3\n", r"line 2: the word is empty"),
    "columns": (
        "Word,Valence,Arousal,Power\na,.1,.2,.3\n",
        r"f\.csv: it begins with 'Word', 'Valence', 'Arousal', 'Power'",
    ),
    "no head of words": ("x,Valence,Arousal,Dominance\na,.1,.2,.3\n", r"no columns .* recognised .*f\.csv"),
    "five columns, no head": ("a,.1,.2,.3,.4\n", r"no columns .* recognised"),
    "empty": ("", r"f\.csv holds no words"),
    "header only": ("Word,Valence,Arousal,Dominance\n", r"holds no words"),
    "below -1": (
        "a,-.1,.2,.3\nb,.1,-1.2,.3\n",
        r"line 2, arousal: -1\.2 of 'b' is outside -1\.\.1.*negative values.*line 2",
    ),
    "above 1": ("a,-.1,.2,.3\nb,.1,.2,5\n", r"line 2, dominance: 5 of 'b' is outside -1\.\.1.*as -0\.1 in line 1"),
    "above 9": ("a,1,2,3\nb,4,5,11\n", r"line 2, dominance: 11 of 'b' is outside 1\.\.9"),
    "mixed": (
        "a,.1,.2,.3\nb,4,5,3\n",
        r"line 1, valence: 0\.1 of 'a' is outside 1\.\.5.*largest value is 5, as in line 2",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(tmp_path: Path, name: str) -> None:
    content, message = FAULTS[name]
    path = tmp_path / "f.csv"
    path.write_bytes(content.encode())
    with pytest.raises(UserError, match=message) as caught:
        read_lexicon(path)
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no VAD lexicon at .*none\.csv.*dataset\.vad_lexicon"):
        read_lexicon(tmp_path / "none.csv")
    with pytest.raises(UserError, match="cannot read the VAD lexicon"):
        read_lexicon(tmp_path)
    (tmp_path / "table.xlsx").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(UserError, match=r"table\.xlsx is not UTF-8 text"):
        read_lexicon(tmp_path / "table.xlsx")


@pytest.fixture(scope="module")
def small() -> Lexicon:
    words = ("yellow", "paint", "see", "saw", "good", "leaf", "leave", "feel", "don't", "naïve", "sky")
    return Lexicon({word: (i / 16, 0.0, 0.0) for i, word in enumerate(words)} | {"meh": (0.0, 0.0, 0.0)})


@pytest.mark.parametrize(
    ("word", "entry"),
    [
        ("yellow", "yellow"),
        ("Yellows", "yellow"),
        ("PAINTED", "paint"),
        ("skies", "sky"),
        ("better", "good"),
        ("felt", "feel"),
        ("saw", "saw"),  # the surface form comes before the verb's lemma
        ("leaves", "leaf"),  # and the noun before the verb
        ("leaving", "leave"),
        ("don’t", "don't"),
        ("nai\u0308ve", "naïve"),
    ],
)
def test_lookup_takes_surface_form_then_lemma(small: Lexicon, word: str, entry: str) -> None:
    assert small.lookup(word) == small.table[entry]
    assert small.lookup(word) == small.lookup(word)


def test_unknown_differs_from_neutral(small: Lexicon) -> None:
    assert small.lookup("meh") == (0.0, 0.0, 0.0)
    for word in ("pastel", "", " ", "yell", "paintish", "7"):
        assert small.lookup(word) is None


def test_lexicon_can_be_sent_to_another_process(small: Lexicon) -> None:
    small.lookup("yellows")
    copy = ForkingPickler.loads(ForkingPickler.dumps(small))
    assert copy.table == small.table
    assert copy.lookup("yellows") == small.lookup("yellows")


def test_command_says_what_it_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write(tmp_path / "a.csv", glasgow_rows()))]) == 0
    shown = capsys.readouterr().out
    assert "Glasgow norms" in shown and "1..9" in shown and "6, and 1 terms of several words" in shown
    assert "happy: valence +0.750  arousal +0.500  dominance -0.250" in shown
    assert main([str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err


def test_real_glasgow_norms(shared_data: Path) -> None:
    lexicon = read_lexicon(shared_data / "vad" / "GlasgowNorms.csv")
    assert lexicon.layout == "Glasgow norms" and lexicon.scale == "1..9"
    assert lexicon.lookup("abattoir") == pytest.approx(((2.7619 - 5) / 4, (4.3333 - 5) / 4, (4.3333 - 5) / 4))
    assert {"true", "false", "bank", "apple", "yo-yo"} <= set(lexicon.table)
    assert not any("(" in term for term in lexicon.table)
    assert len(lexicon) == 4682
