"""python -m data.prepare artemis: from CSV files to the JSON files of the readers."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import shlex
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from common.config.check import check_overrides
from data.emotions import EMOTIONS
from data.prepare.__main__ import main
from data.readers.artemis import image_id, read_artemis
from tests.helpers.tiny import ROOT

HEAD = ("art_style", "painting", "emotion", "utterance", "repetition")
ANCHORED = (*HEAD, "anchor_art_style", "anchor_painting")
SENTENCE = "the little boat is lost under a sky of {}"

Cells = Sequence[object]


def write_csv(path: Path, rows: Iterable[Cells], *, head: Cells = HEAD, bom: bytes = b"", end: str = "\n") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator=end)
        writer.writerows([head, *rows])
    path.write_bytes(bom + path.read_bytes())
    return path


def painting(name: str, emotions: str = "awe awe fear sadness contentment", *, repetition: object = 5) -> list[Cells]:
    """Return its rows, one for each emotion."""
    return [
        ("Realism", name, emotion, SENTENCE.format(f"{name} {i}"), repetition)
        for i, emotion in enumerate(emotions.split())
    ]


def paintings(count: int) -> list[Cells]:
    return [row for i in range(count) for row in painting(f"boat-{i:02d}")]


def contrastive(count: int) -> list[Cells]:
    """Return rows of v2 with v1's paintings boat-10, boat-11, … as anchors."""
    rows = [row for i in range(count) for row in painting(f"new-{i:02d}")]
    return [(*row, "Realism", f"boat-{10 + i // 20:02d}") for i, row in enumerate(rows)]


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    """CSV files of v1 with 80 paintings and one with many annotations, and of v2 with 40."""
    old = paintings(80) + painting("famous", "awe " * 6, repetition=45)
    new = write_csv(tmp_path / "Contrastive.csv", contrastive(40), head=ANCHORED)
    return write_csv(tmp_path / "v1.csv", old), new


class Prepared:
    """The output folder of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        with (folder / "left_out.csv").open(encoding="utf-8", newline="") as file:
            self.left_out = list(csv.DictReader(file))

    def json(self, part: str) -> dict:
        return json.loads((self.folder / f"artEmisX_{part}.json").read_text(encoding="utf-8"))

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.glob("artEmisX_*.json")}

    def entries(self) -> dict[str, dict]:
        """Return the entries of all splits by image name."""
        parts = [part for part in ("train", "val", "test", "rest") if part in self.manifest["splits"]]
        return {entry["image_name"]: entry for part in parts for entry in self.json(part).values()}


@pytest.fixture
def prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs the command on rows or a file, without spelling correction (a second)."""

    def run(source: Path | list[Cells], *options: object, out: str = "out") -> Prepared:
        path = source if isinstance(source, Path) else write_csv(tmp_path / "artemis.csv", source)
        status = main(["artemis", str(path), "--out", str(tmp_path / out), "--spelling", "off", *map(str, options)])
        assert status == 0, capsys.readouterr().err
        return Prepared(tmp_path / out)

    return run


# --- real data -------------------------------------------------------------------------------------------------------


def in_another_process(commands: Sequence[Sequence[object]], *, hash_seed: int) -> None:
    code = "import json, sys; from data.prepare.__main__ import main; sys.exit(max(map(main, json.loads(sys.argv[1]))))"
    ran = subprocess.run(
        [sys.executable, "-c", code, json.dumps([["artemis", *map(str, command)] for command in commands])],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "LC_ALL": "C", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_order_of_rows_does_not_change_the_output(shared_data: Path, tmp_path: Path, both: tuple[Path, Path]) -> None:
    """Nor does the hash seed: real annotations of v1, and v2."""
    real, images = shared_data / "paintings/artemis_dataset_release_v0.csv", shared_data / "paintings/wikiart"
    files = [real, *both]
    results = []
    for seed in (1, 2):
        out = tmp_path / f"v1-{seed}", tmp_path / f"v2-{seed}"
        v1, old, new = files
        v2 = [old, "--contrastive", new, "--distribution", "histogram", "--out", out[1]]
        in_another_process([[v1, "--images", images, "--out", out[0]], v2], hash_seed=seed)
        results.append([Prepared(folder) for folder in out])
        files = [shuffled(path, tmp_path / f"shuffled-{path.name}") for path in files]
    for first, second in zip(*results, strict=True):
        assert first.files() == second.files() and len(first.files()) > 8
        assert [*first.manifest["corrections"].items()] == [*second.manifest["corrections"].items()]
    assert_complete(results[0][0], images, rows=539)


def shuffled(path: Path, to: Path) -> Path:
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    return write_csv(to, random.Random(0).sample(rows, len(rows)), head=head)


def assert_complete(result: Prepared, images: Path, *, rows: int) -> None:
    splits = result.manifest["splits"]
    assert {part: counts["images"] for part, counts in splits.items()} == (
        {"train": 74, "val": 5, "test": 9, "rest": 2, "cl_train": 71}
    )
    for part, counts in splits.items():
        samples = read_artemis(result.folder / f"artEmisX_{part}.json", images)
        assert len(samples) == counts["images"] and all(sample.path.is_file() for sample in samples)
    kept = sum(splits[part]["annotations"] for part in ("train", "val", "test", "rest"))
    assert kept + len(result.left_out) == rows


# --- output -----------------------------------------------------------------------------------------------------------


def test_entry_of_an_image(prepare) -> None:
    rows = [
        ("Realism", "boat", "fear", "A very big storm is coming!", 5),
        ("Realism", "boat", "awe", "It's larger than the sky.", 5),
        ("Realism", "boat", "awe", "It's larger than the sky.", 5),
        ("Realism", "boat", "awe", "An island, far away from us", 5),
    ]
    (id, entry), *others = prepare(rows, "--split", 0, 0, 1).json("test").items()
    assert not others and id == str(image_id("Realism/boat"))
    assert entry == {
        "image_name": "Realism/boat.jpg",
        "emotions": ["awe", "awe", "awe", "fear"],
        "explanations": [
            "an island far away from us",
            "it is larger than the sky",
            "it is larger than the sky",
            "a very big storm is coming",
        ],
        "origin_emotion_distribution": [0, 0.75, 0, 0, 0, 0, 0.25, 0, 0],
        "image_emotion_distribution": [0, 0.75, 0, 0, 0, 0, 0.25, 0, 0],
    }


def test_splits_are_disjoint_and_complete(prepare) -> None:
    result = prepare(paintings(40))
    names = [entry["image_name"] for part in ("train", "val", "test") for entry in result.json(part).values()]
    assert sorted(names) == [f"Realism/boat-{i:02d}.jpg" for i in range(40)]
    assert names != sorted(names) and [len(result.json(part)) for part in ("train", "val", "test")] == [33, 3, 4]
    assert all(len(entry["explanations"]) == 5 for entry in result.entries().values())
    assert not result.left_out and not (result.folder / "artEmisX_rest.json").exists()


def test_coco_annotations_have_the_ids_and_texts_of_the_json(prepare) -> None:
    result = prepare(paintings(40))
    for part in ("val", "test"):
        entries = result.json(part)
        for form in ("exp", "full"):
            coco = result.json(f"{part}_annot_{form}")
            assert coco["type"] == "captions" and {"info", "licenses"} < coco.keys()
            assert [image["id"] for image in coco["images"]] == [int(id) for id in entries]
            assert [a["id"] for a in coco["annotations"]] == list(range(1, 5 * len(entries) + 1))
            captions: dict[str, list[str]] = {}
            for annotation in coco["annotations"]:
                captions.setdefault(str(annotation["image_id"]), []).append(annotation["caption"])
            for id, entry in entries.items():
                pairs = zip(entry["emotions"], entry["explanations"], strict=True)
                wanted = [f"{e} because {x}" for e, x in pairs] if form == "full" else entry["explanations"]
                assert captions[id] == wanted
    assert not (result.folder / "artEmisX_train_annot_exp.json").exists()


def test_cl_train_contains_images_with_two_emotions(prepare) -> None:
    rows = painting("boat", "awe awe awe") + painting("sky", "awe fear fear") + painting("sea", "anger")
    result = prepare(rows, "--split", 1, 0, 0)
    assert [entry["image_name"] for entry in result.json("cl_train").values()] == ["Realism/sky.jpg"]
    assert result.json("cl_train").items() < result.json("train").items()


def test_manifest_counts_and_digests(prepare, tmp_path: Path) -> None:
    result = prepare([*paintings(20), ("Realism", "boat-03", "joy", SENTENCE, 5)])
    manifest = result.manifest
    assert manifest["settings"]["seed"] == 2021 and manifest["settings"]["distribution"] == "listed"
    source = (tmp_path / "artemis.csv").read_bytes()
    assert manifest["inputs"]["csv"]["sha256"] == hashlib.sha256(source).hexdigest()
    assert manifest["inputs"]["csv"]["bytes"] == len(source)
    written = {path.name for path in result.folder.iterdir()} - {"manifest.json"}
    assert manifest["outputs"].keys() == written
    for name, noted in manifest["outputs"].items():
        assert noted["sha256"] == hashlib.sha256((result.folder / name).read_bytes()).hexdigest()
    train = manifest["splits"]["train"]
    labels = Counter(label for entry in result.json("train").values() for label in entry["emotions"])
    assert train["images"] == len(result.json("train")) and train["annotations"] == labels.total()
    assert train["emotions"] == {emotion: labels[emotion] for emotion in EMOTIONS}
    assert manifest["left_out"] == {"unknown emotion": 1} and manifest["tokens"]["rows"] == 100


def test_printed_commands(prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = prepare(paintings(30), out="a folder (1)")
    printed = capsys.readouterr().out
    images, train = map(shlex.split, printed.splitlines()[-2:])  # as a shell does
    assert images == ["python", "-m", "data.prepare", "images", "WIKIART", "--out", str(result.folder / "images")]
    assert train[:2] == ["python", "run.py"] and len(check_overrides(train[2:])) == 4
    assert train[-1] == f"dataset.root={result.folder}"
    assert "train" in printed and "25" in printed and "125" in printed  # images and annotations
    assert "cl_train: the paintings of train" in printed


def test_printed_commands_are_those_of_the_readme(tmp_path: Path, monkeypatch, capsys) -> None:
    write_csv(tmp_path / "artemis.csv", paintings(30))
    monkeypatch.chdir(tmp_path)
    assert main(["artemis", "artemis.csv", "--out", "datasets/artemis_v1", "--spelling", "off"]) == 0
    images, train = capsys.readouterr().out.splitlines()[-2:]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert images.replace("WIKIART", "wikiart") in readme and train in readme


# --- settings ---------------------------------------------------------------------------------------------------------


def test_token_limits(prepare) -> None:
    rows = [("Realism", f"p{n}", "awe", " ".join(["boat"] * n), 1) for n in (4, 5, 30, 31)]
    assert prepare(rows).entries().keys() == {"Realism/p5.jpg", "Realism/p30.jpg"}
    result = prepare(rows, "--min-tokens", 4, "--max-tokens", 29, out="other")
    assert result.entries().keys() == {"Realism/p4.jpg", "Realism/p5.jpg"}
    assert result.manifest["left_out"] == {"more than 29 tokens": 2}


@pytest.mark.parametrize("repetition", [41, "41.0", None])
def test_paintings_with_many_annotations_are_the_rest(prepare, tmp_path: Path, repetition: object) -> None:
    rows = paintings(20) + painting("famous", "awe " * 41, repetition=repetition)
    head = HEAD if repetition else HEAD[:4]
    path = write_csv(tmp_path / "rows.csv", [row[: len(head)] for row in rows], head=head)
    result = prepare(path)
    assert [entry["image_name"] for entry in result.json("rest").values()] == ["Realism/famous.jpg"]
    assert len(result.entries()) == 21
    assert "rest" not in prepare(path, "--max-repetition", 41, out="other").manifest["splits"]


def test_distribution_of_the_listed_annotations_or_of_all(prepare) -> None:
    rows = [*painting("boat", "awe awe fear"), ("Realism", "boat", "sadness", "sad", 4)]
    listed = prepare(rows).entries()["Realism/boat.jpg"]
    voted = prepare(rows, "--distribution", "histogram", out="other").entries()["Realism/boat.jpg"]
    assert listed["emotions"] == voted["emotions"] == ["awe", "awe", "fear"]
    assert listed["origin_emotion_distribution"] == [0, 2 / 3, 0, 0, 0, 0, 1 / 3, 0, 0]
    assert voted["origin_emotion_distribution"] == [0, 0.5, 0, 0, 0, 0, 0.25, 0.25, 0]


def test_shares_sum_to_one_up_to_rounding(prepare) -> None:
    assert 0.7 + 0.2 + 0.1 != 1
    splits = prepare(paintings(30), "--split", 0.7, 0.2, 0.1).manifest["splits"]
    assert [splits[part]["images"] for part in ("train", "val", "test")] == [20, 7, 3]


def test_seed_changes_the_split(prepare) -> None:
    first, second = (prepare(paintings(30), "--seed", seed, out=str(seed)).json("test").keys() for seed in (1, 2))
    assert first != second and len(first) == len(second)


# --- CSV files --------------------------------------------------------------------------------------------------------


def test_variants_of_csv_files(prepare, tmp_path: Path) -> None:
    """Byte order mark, CRLF, other columns, line breaks in an utterance, words such as null."""
    plain = prepare(paintings(20)).files()
    rows = [
        (i, *row[:3], row[3].replace(" is ", "\nis "), row[4], "x" * 200_000) for i, row in enumerate(paintings(20))
    ]
    path = write_csv(tmp_path / "other.csv", rows, head=("", *HEAD, "thumbnail"), bom=b"\xef\xbb\xbf", end="\r\n")
    assert prepare(path, out="other").files() == plain
    words = [("Realism", word, "Awe ", f"{word} None NULL nan and NaN", 1) for word in ("null", "nan", "None")]
    entries = prepare(words, out="words").entries()
    assert entries.keys() == {"Realism/null.jpg", "Realism/nan.jpg", "Realism/None.jpg"}
    assert entries["Realism/nan.jpg"]["explanations"] == ["nan none null nan and nan"]


def test_names_in_nfd_and_nfc_are_the_same_painting(prepare) -> None:
    composed = "joaqu\u00e3\u00adn-sorolla_boats"
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed
    rows = painting(composed, "awe fear") + painting(decomposed, "sadness anger")
    (entry,) = prepare(rows).entries().values()
    assert entry["image_name"] == f"Realism/{composed}.jpg" and len(entry["emotions"]) == 4
    (id,) = prepare(rows, "--split", 0, 0, 1, out="other").json("test")
    assert id == str(image_id(f"Realism/{decomposed}")) == str(image_id(f"Realism/{composed}"))


FAULTY = {
    "unknown emotion: 'joy'": "Realism,boat,joy,a b c d e,5",
    "unknown emotion: ''": "Realism,boat,,a b c d e,5",
    "empty utterance": 'Realism,boat,awe," \n",5',
    "fewer than 5 tokens": "Realism,boat,awe,!? a - b c d.,5",
    "more than 30 tokens": f"Realism,boat,awe,{'a ' * 31},5",
    "number of cells: 3 where the first line has 5": "Realism,boat,awe",
    "number of cells: 6 where the first line has 5": "Realism,boat,awe,a b c d e, f,5",
    "bytes that are not UTF-8": "Realism,boat,awe,a b c d caf\udce9,5",
    "no art_style or painting": "Realism, ,awe,a b c d e,5",
    "art_style or painting is not the name of a folder or file": "..,boat,awe,a b c d e,5",
    "art_style or painting is not the name of a folder or file ": "Realism,../../boat,awe,a b c d e,5",
    "art_style or painting is not the name of a folder or file  ": "Realism,a\\b,awe,a b c d e,5",
    "not readable as CSV": 'Realism,boat,awe,"a b c d e" f,5',
}


@pytest.mark.parametrize(("reason", "line"), FAULTY.items())
def test_unusable_rows_are_left_out_and_listed(prepare, tmp_path: Path, reason: str, line: str) -> None:
    path = write_csv(tmp_path / "rows.csv", painting("first", "awe"))
    rest = "\n" + line + "\nRealism,last,fear,after it comes a boat,5\n"
    path.write_bytes(path.read_bytes() + rest.encode(errors="surrogateescape"))
    result = prepare(path)
    assert result.entries().keys() == {"Realism/first.jpg", "Realism/last.jpg"}
    (left,) = result.left_out
    assert (left["file"], left["line"], left["reason"]) == ("rows.csv", "4", reason.strip())  # line 3 is empty
    assert result.manifest["left_out"] == {reason.partition(":")[0].strip(): 1}


def test_extra_quotation_mark_loses_rows_up_to_the_next(prepare, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", painting("first", "awe"))
    lines = [
        'Realism,boat,awe,"never closed,5',
        'Realism,boat,awe,"a storm, and big waves",5',
        "Realism,boat,awe,a b c d e,5",
    ]
    path.write_text(path.read_text(encoding="utf-8") + "\n".join(lines), encoding="utf-8")
    result = prepare(path)
    assert [(left["line"], left["reason"]) for left in result.left_out] == [("3", "not readable as CSV: lines 3 to 4")]
    assert result.entries()["Realism/boat.jpg"]["explanations"] == ["a b c d e"]


# --- images -----------------------------------------------------------------------------------------------------------


def test_paintings_without_an_image_are_left_out_after_the_split(prepare, tmp_path: Path) -> None:
    folder = tmp_path / "wikiart" / "Realism"
    folder.mkdir(parents=True)
    rows = paintings(30) + painting("jos\u00e9") + painting("zo\u00eb")
    for i in range(1, 30):
        (folder / f"boat-{i:02d}.jpg").touch()
    (folder / "jos#U00e9.jpg").touch()  # as unzip writes it
    (folder / "zo?.jpg").touch()
    (folder / "zo#.jpg").touch()
    (folder / "zo_.jpg").touch()
    without = prepare(rows).entries()
    result = prepare(rows, "--images", tmp_path / "wikiart", out="other")
    assert without.keys() - result.entries().keys() == {"Realism/boat-00.jpg", "Realism/zo\u00eb.jpg"}
    assert Counter(left["reason"].partition(":")[0] for left in result.left_out) == {
        "image missing": 1,
        "image ambiguous": 1,
    }
    splits = {name: part for part in ("train", "val", "test") for name in prepare(rows).json(part)}
    assert all(splits[id] == part for part in ("train", "val", "test") for id in result.json(part))


# --- v2 ---------------------------------------------------------------------------------------------------------------


def test_test_sets_of_v2(prepare, both: tuple[Path, Path]) -> None:
    result = prepare(both[0], "--contrastive", both[1])
    assert result.manifest["dataset"] == "ArtEmis v2" and result.manifest["settings"]["subset"] == "combined"
    names = {part: {e["image_name"] for e in result.json(part).values()} for part in result.manifest["splits"]}
    assert names["test_40"] == {"Realism/famous.jpg"} and "rest" not in names
    assert names["test_new"] and all("new-" in name for name in names["test_new"])
    assert names["test_old"] < names["test_ref"] and names["test"] == names["test_new"] | names["test_old"]
    held_out = names["val"] | names["test"] | names["test_ref"]
    assert not names["train"] & held_out and not names["val"] & names["test"]
    assert not {f"Realism/boat-{i}.jpg" for i in range(10, 20)} & held_out  # the anchors


def test_subsets_of_v2(prepare, both: tuple[Path, Path]) -> None:
    trained_on = {}
    for subset in ("new", "combined", "full"):
        result = prepare(both[0], "--contrastive", both[1], "--subset", subset, out=subset)
        texts = [text for entry in result.json("train").values() for text in entry["explanations"]]
        trained_on[subset] = Counter("boat" in text.partition(" of ")[2] for text in texts)  # v1's
        assert (result.json("test") == result.json("test_new")) == (subset == "new")
    assert trained_on["new"] == {False: 170}
    assert trained_on["full"] == {False: 170, True: 335}
    assert trained_on["combined"][False] == 170 and 100 < trained_on["combined"][True] < 200


def test_combined_file_of_v2_gives_the_same_output(prepare, both: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = paintings(30), contrastive(20)
    old = [(row[0], row[1].replace("boat", "b\u00f6t"), *row[2:]) for row in old]
    new = [(*row[:6], row[6].replace("boat", "b\u00f6t")) for row in new]
    v1 = write_csv(tmp_path / "old.csv", old)
    apart = prepare(v1, "--contrastive", write_csv(tmp_path / "new.csv", new, head=ANCHORED))
    rows = [(*row, "new") for row in new] + [(*row, "nan", "nan", "old") for row in old]
    rows = [tuple(unicodedata.normalize("NFD", str(cell)) for cell in row) for row in rows]
    random.Random(5).shuffle(rows)
    combined = write_csv(tmp_path / "combined.csv", rows, head=(*ANCHORED, "version"))
    assert prepare(combined, out="other").files() == apart.files()


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def error_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs the command, which must fail, and returns the line that it prints."""

    def run(*arguments: object) -> str:
        if "--out" not in arguments:
            arguments = (*arguments, "--out", tmp_path / "out")
        assert main(["artemis", *map(str, arguments)]) == 2
        printed = capsys.readouterr().err
        lines = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and printed.rstrip().endswith(lines[0]) and "Traceback" not in printed
        assert not (tmp_path / "out").exists()
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--split", 0.8, 0.1, 0.2], "--split 0.8 0.1 0.2: give three shares"),
        (["--split", 1.5, -0.5, 0], "--split 1.5 -0.5 0: give three shares"),
        (["--split", "nan", 0, 1], "--split nan 0 1: give three shares"),
        (["--seed", -1], "--seed -1: give a whole number"),
        (["--min-tokens", 9, "--max-tokens", 8], "--min-tokens 9 --max-tokens 8"),
        (["--max-repetition", 0], "--max-repetition 0"),
        (["--subset", "new"], "--subset new is for ArtEmis v2"),
        (["--contrastive", "nowhere.csv"], "nowhere.csv cannot be read"),
        (["--images", "nowhere"], "--images: there is no folder nowhere"),
        (["--spelling", "on", "--vocabulary", "nowhere.txt"], "vocabulary nowhere.txt cannot be read"),
        (["--vocabulary", "nowhere.txt"], "--vocabulary nowhere.txt is for --spelling on"),
        (["--min-tokens", 1000, "--max-tokens", 1000], "the settings leave out all of its 5 annotations"),
    ],
)
def test_unusable_settings(error_of, tmp_path: Path, options: list, words: str) -> None:
    assert words in error_of(write_csv(tmp_path / "rows.csv", painting("boat")), *options)


def test_images_one_folder_too_high(error_of, tmp_path: Path) -> None:
    (tmp_path / "data/wikiart/Realism").mkdir(parents=True)
    found = error_of(write_csv(tmp_path / "rows.csv", painting("boat")), "--images", tmp_path / "data")
    assert (
        f"--images: {tmp_path / 'data'} has none of the 1 paintings, e.g. no Realism/boat.jpg; name the folder" in found
    )


def test_unusable_files(error_of, tmp_path: Path) -> None:
    rows = painting("boat")
    (tmp_path / "empty.csv").touch()
    assert "empty.csv lacks the column art_style and painting and emotion and utterance" in error_of(
        tmp_path / "empty.csv"
    )
    path = write_csv(tmp_path / "a.csv", [row[1:4] for row in rows], head=("painting", "emotion", "words"))
    assert "a.csv lacks the column art_style and utterance: its first line contains 'painting', 'emotion'" in error_of(
        path
    )
    path.write_bytes("\ufeffart_style,painting\n".encode("utf-16-le"))
    assert "a.csv lacks the column" in error_of(path)
    path.write_text(",".join(HEAD) + '\nRealism,boat,awe,"a b c,5\n', encoding="utf-8")
    assert "a.csv, line 2: a quotation mark is never closed" in error_of(path)
    path.write_text('"art_style"x,painting\n', encoding="utf-8")
    assert "a.csv, line 1: the header is not valid CSV" in error_of(path)
    assert "a.csv has no usable row; it has only a header" in error_of(write_csv(path, []))
    assert "a.csv has no usable row; line 2: unknown emotion: 'joy'" in error_of(
        write_csv(path, painting("boat", "joy"))
    )
    assert "cannot be read" in error_of(tmp_path / "nowhere.csv")
    assert "cannot be read" in error_of(tmp_path)


def test_file_joined_to_itself(error_of, tmp_path: Path) -> None:
    rows = paintings(4)
    for joined, words in (
        ([*rows, HEAD, *rows], "line 22: the names of the columns again"),
        (rows * 2, "more than once"),
    ):
        assert words in error_of(write_csv(tmp_path / "doubled.csv", joined))


def test_wrong_files_of_v2(error_of, tmp_path: Path) -> None:
    new = write_csv(tmp_path / "new.csv", contrastive(3), head=ANCHORED)
    old = write_csv(tmp_path / "old.csv", painting("boat"))
    rows = [(*row, "new") for row in contrastive(3)]
    combined = write_csv(tmp_path / "combined.csv", rows, head=(*ANCHORED, "version"))
    assert "give v1's file first and this one with --contrastive" in error_of(new)
    assert "old.csv lacks the column anchor_art_style and anchor_painting" in error_of(old, "--contrastive", old)
    assert "combined.csv contains v2 already" in error_of(combined, "--contrastive", new)


# --- the folder -------------------------------------------------------------------------------------------------------


def test_other_files_in_the_output_folder_are_kept_without_overwrite(prepare, error_of, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / "artEmisX_train.json").write_text("another's", encoding="utf-8")
    path = write_csv(tmp_path / "rows.csv", paintings(20))
    assert "mine is not empty and was not made by this command" in error_of(path, "--out", folder)
    assert (folder / "artEmisX_train.json").read_text(encoding="utf-8") == "another's"
    result = prepare(path, "--overwrite", out="mine")
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine" and len(result.json("train")) == 16
    assert "--out" in error_of(path, "--out", folder / "notes.txt")


def test_second_run_replaces_the_first(prepare, tmp_path: Path) -> None:
    first = prepare(paintings(20) + painting("famous", "awe", repetition=41))
    (first.folder / "notes.txt").write_text("mine", encoding="utf-8")
    before = first.files()
    again = prepare(paintings(20))
    assert before.keys() - again.files().keys() == {"artEmisX_rest.json"}
    assert (first.folder / "notes.txt").exists()
    assert {path.name for path in first.folder.iterdir()} == {*again.manifest["outputs"], "manifest.json", "notes.txt"}


def test_manifest_cannot_cause_removal_of_other_files(prepare, tmp_path: Path) -> None:
    result = prepare(paintings(20))
    precious = tmp_path / "artEmisX_x.json"
    precious.write_text("mine", encoding="utf-8")
    result.manifest["outputs"] = {"../artEmisX_x.json": {}, str(precious): {}, "notes.txt": {}}
    (result.folder / "notes.txt").touch()
    (result.folder / "manifest.json").write_text(json.dumps(result.manifest), encoding="utf-8")
    prepare(paintings(20))
    assert precious.exists() and (result.folder / "notes.txt").exists()


def test_failed_run_keeps_the_earlier_output(prepare, error_of, tmp_path: Path) -> None:
    result = prepare(paintings(20), out="kept")
    before = {path.name: path.read_bytes() for path in result.folder.iterdir()}
    error_of(write_csv(tmp_path / "rows.csv", painting("boat", "joy")), "--out", result.folder)
    assert {path.name: path.read_bytes() for path in result.folder.iterdir()} == before


def test_help_imports_no_slow_module() -> None:
    code = "import sys; from data.prepare import artemis; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "nltk", "symspellpy", "lemminflect", "numpy"} & set(ran.stdout.split())
