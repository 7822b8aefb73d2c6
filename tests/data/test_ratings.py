"""Ratings of valence and arousal: published layouts, scales, splits and faulty rows."""

from __future__ import annotations

import json
import math
from hashlib import blake2b
from pathlib import Path

import pytest

from common.errors import UserError
from data.prepare.check.dataset import check_dataset
from data.readers.ratings import read_ratings
from data.readers.split import read_samples, read_split
from data.samples import Samples
from data.schema import Ratings, Sample
from tests.helpers.tiny import composed, write_pictures

OASIS = ",Theme,Category,Source,Valence_mean,Valence_SD,Valence_N,Arousal_mean,Arousal_SD,Arousal_N\n"
IAPS = "The International Affective Picture System\n\nAll Subjects\n"
IAPS += "desc\tIAPS\tvalmn\tvalsd\taromn\tarosd\tdom1mn\tdom1sd\tdom2mn\tdom2sd\tset\n"


def read(path: Path, text: str, **options) -> tuple[list[Sample], list[str]]:
    """Return the samples and the reasons of the rows that cannot be used."""
    path.write_text(text, encoding="utf-8")
    samples, skipped = read_ratings(path, path.parent, sharing=("train",), **options)
    return [*samples], [row.reason for row in skipped]


def values(samples: list[Sample]) -> dict[str, tuple[float, ...]]:
    return {sample.id: tuple(None if math.isnan(v) else v for v in sample.ratings) for sample in samples}


# --- layouts ---------------------------------------------------------------------------------------------------------


def test_oasis_is_on_its_scale_of_seven_and_names_pictures_without_suffix(tmp_path):
    text = OASIS + "I1,Acorns 1,Object,Pixabay,4.68,0.94,103,2.34,1.73,101\nI2,Zebra 1,Animal,P,5,1,9,3.5,1,9\n"
    (tmp_path / "Zebra 1.png").touch()
    found, faults = read(tmp_path / "OASIS.csv", text)
    assert values(found) == {"Acorns 1": (4.68, 2.34, None, 1, 7), "Zebra 1": (5, 3.5, None, 1, 7)} and not faults
    assert [sample.path.name for sample in found] == ["Acorns 1.jpg", "Zebra 1.png"]
    assert found[1].ratings.vad[:2] == pytest.approx((1 / 3, -1 / 6))


@pytest.mark.parametrize("spaced", [False, True])
def test_iaps_has_titles_dots_and_slides_with_a_point(tmp_path, spaced):
    text = (
        IAPS + "Snake\t1050\t3.46\t2.15\t6.87\t1.68\t3.08\t2.12\t.\t.\t2\nPup\t2055.1\t7.2\t1\t4\t2\t.\t.\t6.1\t2\t9\n"
    )
    text += "Cow\t1670.0\t.\t1.5\t3.05\t1.91\t5.9\t2\t.\t.\t3\n"
    found, faults = read(tmp_path / "AllSubjects.txt", text.replace("\t", "   ") if spaced else text)
    assert values(found) == {"1050": (3.46, 6.87, 3.08, 1, 9), "2055.1": (7.2, 4, None, 1, 9)}
    assert [sample.path.name for sample in found] == ["1050.jpg", "2055.1.jpg"]
    assert len(faults) == 1 and "line 7" in faults[0] and "'1670' has no valence" in faults[0]


@pytest.mark.parametrize("delimiter", [";", ","])
def test_naps_may_have_two_lines_of_names_and_decimal_commas(tmp_path, delimiter):
    head = "NAPS,,,,,Valence,,Arousal,,Approach,\nID,Category,Nr,V/H,Description,Mean,SD,Mean,SD,Mean,SD\n"
    row = ["Animals_001_h", "Animals", "1", "H", "dead, cow", "2,10", "1,31", "6.33", "1,9", "3", "1"]
    quoted = delimiter.join(f'"{cell}"' if delimiter in cell else cell for cell in row)
    found, faults = read(tmp_path / "naps.csv", head.replace(",", delimiter) + quoted + "\n")
    assert values(found) == {"Animals_001_h": (2.1, 6.33, None, 1, 9)} and not faults


def test_naps_in_one_line_of_names(tmp_path):
    text = 'sep=;\nID;V/H;"Valence (mean)";"Arousal (mean)"\nFaces_2_v;V;8,1;4,0\n'
    assert values(read(tmp_path / "naps.csv", text)[0]) == {"Faces_2_v": (8.1, 4, None, 1, 9)}


def test_words_of_a_prepared_emoart_are_the_ends_of_the_scale(tmp_path):
    entries = {
        "a": {"image_name": "Gongbi/a.jpg", "emotions": ["calm"], "valence": "Positive", "arousal": "Low"},
        "b": {"image_name": "Gongbi/b.jpg", "emotions": ["sad"], "valence": "Negative", "arousal": "High"},
        "c": {"image_name": "Gongbi/c.jpg", "emotions": ["sad"], "valence": "mixed", "arousal": "High"},
        "d": {"image_name": "Gongbi/d.jpg", "emotions": ["sad"]},
    }
    found, faults = read(tmp_path / "artEmisX_train.json", json.dumps(entries))
    assert values(found) == {"Gongbi/a.jpg": (1, -1, None, -1, 1), "Gongbi/b.jpg": (-1, 1, None, -1, 1)}
    assert "image 'c': the valence of 'Gongbi/c.jpg': 'mixed' is not a number" in faults[0]
    assert "image 'd': 'Gongbi/d.jpg' has no valence" in faults[1] and len(faults) == 2


@pytest.mark.parametrize("name", ["own.tsv", "own.jsonl", "own.json", "line.jsonl"])
def test_tables_of_ones_own(tmp_path, name):
    rows = [{"file": "x/a.png", "valence": -0.5, "Arousal": 0.25, "dominance": 1}]
    rows += [{"file": "b.png", "valence": 0, "Arousal": None, "dominance": 0}] * (name != "line.jsonl")
    if name == "own.tsv":
        text = "\n".join(["\t".join(rows[0]), *("\t".join(str(v or 0) for v in row.values()) for row in rows)])
    else:
        text = json.dumps(rows) if name == "own.json" else "\n".join(map(json.dumps, rows))
    found, faults = read(tmp_path / name, text)
    assert values(found)["x/a.png"] == (-0.5, 0.25, 1, -1, 1)
    assert len(found) + len(faults) == len(rows) and all("'b.png' has no arousal" in fault for fault in faults)


# --- scales ----------------------------------------------------------------------------------------------------------


def table(*rows: tuple[object, ...], head: str = "image,valence,arousal") -> str:
    return "\n".join([head, *(",".join(map(str, row)) for row in rows)])


@pytest.mark.parametrize(
    ("ratings", "scale"),
    [
        ([-0.2, 0.9, 0.4, 1], (-1, 1)),
        ([0.1, 0.9, 0, 1], (0, 1)),
        ([1.2, 8.1, 3, 4], (1, 9)),
        ([12, 80, 0, 99], (0, 100)),
    ],
)
def test_scale_is_recognized_by_the_range(tmp_path, ratings, scale):
    found, _ = read(tmp_path / "r.csv", table(("a", *ratings[:2]), ("b", *ratings[2:])))
    assert found[0].ratings[3:] == scale and found[0].ratings.vad[0] == pytest.approx(
        2 * (ratings[0] - scale[0]) / (scale[1] - scale[0]) - 1
    )


@pytest.mark.parametrize(
    "ratings", [[1.2, 6.4, 3, 4], [1, 5, 2, 3], [1, 1, 1, 1], [0.5, 9, 3, 4], [-3, 2, 0, 1], [2, 70, 3, 4]]
)
def test_ambiguous_scale_is_refused_with_the_key(tmp_path, ratings):
    with pytest.raises(UserError, match=r"r\.csv: its ratings are from .* set dataset\.rating_scale="):
        read(tmp_path / "r.csv", table(("a", *ratings[:2]), ("b", *ratings[2:])))
    assert read(tmp_path / "r.csv", table(("a", 2, 3)), scale=[1, 7])[0][0].ratings == pytest.approx(
        (2, 3, math.nan, 1, 7), nan_ok=True
    )


def test_scale_that_most_ratings_are_outside_of_or_that_is_reversed(tmp_path):
    text = table(("a", 2, 6), ("b", 5.5, 3), ("c", 1, 2))
    with pytest.raises(
        UserError, match=r"2 of 3 pictures have ratings outside the scale 1 to 5, the first 2, 6 .*line 2"
    ):
        read(tmp_path / "r.csv", text, scale=[1, 5])
    with pytest.raises(UserError, match=r"dataset\.rating_scale=\[7,1\]"):
        read(tmp_path / "r.csv", text, scale=[7, 1])


# --- faulty rows -----------------------------------------------------------------------------------------------------


def test_each_faulty_row_gets_a_sentence_and_the_others_are_read(tmp_path):
    text = table(
        *[("good", 2, 8.5), ("dot", ".", 3), ("nan", 2, "NaN"), ("wordy", "bad", 3), ("outside", 9.5, 3)],
        *[("good", 2, 8.5), ("twice", 2, 3), ("twice", 2, 4), ("../up", 2, 3), ("", 2, 3), ("short", 2), ("b", 5, 5)],
    )
    found, faults = read(tmp_path / "r.csv", text, scale=[1, 9])
    assert [sample.id for sample in found] == ["good", "twice", "b"]
    for words in (
        "line 3: 'dot' has no valence",
        "line 4: 'nan' has no arousal",
        "line 5: the valence of 'wordy': 'bad' is not a number",
        "line 6: the valence of 'outside' is 9.5, outside the scale 1 to 9",
        "line 9: 'twice' was already rated 2, 3 (",
        "line 10: image name '../up",
        "line 11: 'image' must be",
        "line 12: fewer cells",
    ):
        assert [fault for fault in faults if words in fault], (words, faults)
    assert len(faults) == 8 and all("\n" not in fault for fault in faults)
    noted: list[str] = []
    samples, skipped = read_ratings(tmp_path / "r.csv", tmp_path, sharing=("train",), scale=[1, 9], faults=noted)
    assert (len(samples), skipped, noted) == (3, [], faults)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (table(("a", 1), head="image,valence"), ["no column of arousal", "'image', 'valence'", "aromn"]),
        (table(("a", 1, 2), head="who,valence,arousal"), ["no column of image", "theme"]),
        (
            table(("a", 1, 2, 3), head="image,valence,val_mean,arousal"),
            ["'valence' and 'val_mean'", "rename or delete"],
        ),
        (table(("a", ".", 3), ("b", "", 3)), ["no picture has a rating", "'a' has no valence"]),
        (table(), ["no picture has a rating", "no rows"]),
        ("", ["no column of image or valence or arousal"]),
        ("[]", ["holds no picture"]),
        ('[{"image": "a"}]', ["no column of valence or arousal"]),
    ],
)
def test_file_without_ratings_is_refused(tmp_path, text, words):
    with pytest.raises(UserError) as error:
        read(tmp_path / "r.csv", text)
    assert all(word in str(error.value) for word in [str(tmp_path / "r.csv"), *words]), str(error.value)


# --- splits ----------------------------------------------------------------------------------------------------------


def dataset(root: Path, **changes) -> dict:
    files = {"json_path": None, "visual_dir": None}
    train = {"json_path": str(root / "r.csv"), "visual_dir": str(root)}
    splits = {"train_ds": train, "validation_ds": files, "test_ds": files}
    return {"name": "ratings", "labels": None, "rating_scale": [1, 9], "strict": False, **splits, **changes}


def test_one_table_is_divided_by_a_hash_of_each_name(tmp_path):
    paths = write_pictures(tmp_path, 120)
    (tmp_path / "r.csv").write_text(table(*((path.stem, 2, 3) for path in paths), ("bad", 2, 99)))
    recount: dict[str, set[str]] = {"train_ds": set(), "validation_ds": set(), "test_ds": set()}
    for name in [path.stem for path in paths]:
        place = int.from_bytes(blake2b(name.encode(), digest_size=8, person=b"split").digest()) / 2**64
        recount["test_ds" if place < 0.1 else "validation_ds" if place < 0.15 else "train_ds"].add(name)
    found = {split: read_samples(dataset(tmp_path), split) for split in recount}
    assert {split: {sample.id for sample in of.samples} for split, of in found.items()} == recount
    assert all(len(ids) >= 3 for ids in recount.values())
    assert sum(len(of.skipped) for of in found.values()) == 1  # the faulty row is in one split
    alone = read_samples(dataset(tmp_path, test_ds={"json_path": str(tmp_path / "r.csv"), "visual_dir": str(tmp_path)}
                                 , train_ds={"json_path": None, "visual_dir": None}), "test_ds")  # fmt: skip
    assert len(alone.samples) == 120  # of a captioner that was trained on other data


def test_column_split_is_obeyed(tmp_path):
    head = "image,valence,arousal,split"
    rows = [("a", 2, 3, "train"), ("b", 2, 3, "Validation"), ("c", 2, 3, "test"), ("d", 2, 3, ""), ("e", 2, 3, "rest")]
    (tmp_path / "r.csv").write_text(table(*rows, ("f", 2, 3, "fold 1"), head=head))
    for path in "abc":
        (tmp_path / f"{path}.jpg").touch()
    found = {split: read_split(dataset(tmp_path), split) for split in ("train_ds", "validation_ds", "test_ds")}
    assert [[sample.id for sample in of.samples] for of in found.values()] == [["a"], ["b"], ["c"]]
    reasons = [row.reason for row in found["train_ds"].skipped]
    assert "split of 'd' is empty" in reasons[0] and "'fold 1' is not the name of a split" in reasons[1]


def test_missing_pictures_are_listed_and_strict_stops(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "r.csv").write_text(table(("a", 2, 3), ("none", 2, 3)))
    one = {"validation_ds": {"json_path": str(tmp_path / "other.csv"), "visual_dir": None}}
    one["test_ds"] = one["validation_ds"]
    found = read_samples(dataset(tmp_path, **one), "train_ds")
    assert [s.id for s in found.samples] == ["a"] and found.skipped[0].reason == "there is no such file"
    with pytest.raises(UserError, match=r"1 of 2 images cannot be used.*none\.jpg"):
        read_samples(dataset(tmp_path, **one, strict=True), "train_ds")
    with pytest.raises(UserError, match=r"dataset\.name=ratings needs dataset\.train_ds\.json_path=FILE"):
        read_samples(dataset(tmp_path, train_ds={"json_path": None, "visual_dir": None}), "train_ds")
    with pytest.raises(UserError, match=r"r\.csv: none of its 2 rated pictures is of the split test"):
        (tmp_path / "r.csv").write_text(
            table(("a", 2, 3, "train"), ("none", 2, 3, "val"), head="image,valence,arousal,split")
        )
        read_samples(dataset(tmp_path), "test_ds")


def test_check_reports_faulty_rows_of_every_split(tmp_path):
    paths = write_pictures(tmp_path, 60)
    (tmp_path / "r.csv").write_text(table(*((path.stem, 2, 3) for path in paths), ("bad", ".", 3)))
    section = composed("train", {"preset": "none", "dataset.name": "ratings"}).dataset
    report = check_dataset({**section, **dataset(tmp_path)}, decode=False, workers=0)
    assert report.counts == {"entry": 1} and report.faults == 1  # no tokenizer is needed
    assert sum(split.listed for split in report.splits.values()) == 60 and len(report.splits) == 3


def test_ratings_survive_packing():
    rated = Sample("a", Path("/a"), (), ratings=Ratings(2.0, 3.0, 4.0, 1.0, 9.0))
    samples = Samples.pack([rated, Sample("b", Path("/b"), ("text",))])
    assert samples[0] == rated and samples[1].ratings is None
    assert samples.pick([1]).ratings.size == 0 and samples.with_images_of([1, 0])[0].ratings == rated.ratings
