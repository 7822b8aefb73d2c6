"""Pictures in tar archives, parquet and Arrow files: where they are, what is beside them, and what is wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from common.errors import UserError
from data.cache.digests import equal_files, signature_of
from data.images import ImageError, open_image
from data.readers import table_shards
from data.readers.groups import group_of_path
from data.readers.shard_lists import Shard, find_shards
from data.readers.shards import pictures_in, read_shards
from data.readers.split import read_samples
from data.readers.table import read_table
from data.shards import address, file_of, name_in, place_of, read_picture
from tests.helpers.shards import write_parquet, write_tar

COLORS = ("red", "green", "blue", "white", "black", "yellow")


def png(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(file, "PNG")
    return file.getvalue()


PICTURES = [png(color) for color in COLORS]


def dataset(json_path: object, **changes) -> dict:
    split = {"json_path": str(json_path), "visual_dir": None}
    return {"name": "shards", "train_ds": split, "test_ds": split, "strict": False, **changes}


def read(json_path: object, split: str = "train_ds", **options):
    return read_shards(dataset(json_path), split, labels=options.pop("labels", ("awe", "fear", "joy")), **options)


def tar_of(path: Path, count: int = 3, first: int = 0) -> Path:
    return write_tar(path, {f"k{i}.png": PICTURES[i] for i in range(first, first + count)})


def reasons(shard: Path) -> tuple[list[str], list[str]]:
    """Return the names of the pictures that can be used, and why others, or the shard, cannot."""
    samples, skipped = pictures_in(Shard(shard.name, shard))
    return [sample.id.partition("/")[2] for sample in samples], [one.reason for one in skipped]


@pytest.mark.parametrize("name", ["a.jpg", "Style/a b.-1873.jpg", "../../a.jpg", "/etc/a.jpg", "..", "a\0b.jpg"])
def test_an_address_stays_below_its_shard(name):
    path = address(Path("/data/0.tar"), 512, 99, name)
    assert place_of(path)[:3] == (Path("/data/0.tar"), 512, 99)
    assert ".." not in path.parts and file_of(path) == Path("/data/0.tar") and path.is_relative_to("/data/0.tar")
    assert place_of(Path("/data/0.tar/a.jpg")) is None and file_of(Path("/data/a.jpg")) == Path("/data/a.jpg")


def test_pictures_of_a_tar_open_like_files_and_nothing_is_extracted(tmp_path):
    names = ("a.png", "../x.png", "/tmp/y.png", "Style/z.png", "._a.png", "notes.md")
    shard = write_tar(tmp_path / "in" / "0.tar", zip(names, PICTURES, strict=True))
    samples, skipped = pictures_in(Shard("0.tar", shard))
    assert [sample.id for sample in samples] == [f"0.tar/{name}" for name in names[:4]] and not skipped
    for sample, content in zip(samples, PICTURES, strict=False):
        assert read_picture(sample.path) == content
        assert open_image(sample.path).tobytes() == open_image(content).tobytes()
    assert sorted(tmp_path.rglob("*")) == [shard.parent, shard]
    assert group_of_path(samples[3].path, "folder") == "Style" and group_of_path(samples[0].path, "folder") == "0.tar"


def test_a_picture_that_is_broken_or_gone_has_a_reason(tmp_path):
    shard = write_tar(tmp_path / "0.tar", {"a.png": b"no picture", "b.png": b"", "c.png": PICTURES[0]})
    for sample, text in zip(pictures_in(Shard("0.tar", shard))[0], ("not a readable image", "is empty"), strict=False):
        with pytest.raises(ImageError, match=text):
            open_image(sample.path)
    last = pictures_in(Shard("0.tar", shard))[0][-1].path
    last_byte = place_of(last).first + place_of(last).second - 1
    os.truncate(shard, last_byte)
    with pytest.raises(ImageError, match="cannot be read from its shard"):
        open_image(last)
    shard.unlink()
    with pytest.raises(ImageError, match="cannot be read from its shard"):
        open_image(last)


def damaged(path: Path, kind: str) -> Path:
    """Write three pictures, each with 512 bytes of header and of content, and damage the archive."""
    content = bytearray(tar_of(path).read_bytes())
    edits = {
        "torn in a picture": lambda: content[: 2 * 1024 + 540],
        "torn in a header": lambda: content[: 2 * 1024 + 100],
        "torn between": lambda: content[: 2 * 1024],
        "bad header": lambda: content[: 2 * 1024] + b"x" * 512 + content[2 * 1024 + 512 :],
        "no archive": lambda: b"PK\3\4" * 500,
        "nothing": lambda: b"",
        "no member": lambda: bytes(10240),
    }
    path.write_bytes(edits[kind]())
    return path


@pytest.mark.parametrize(
    ("kind", "count", "text"),
    [
        (
            "torn in a picture",
            2,
            "torn, or ends without its end mark, at byte 2,048; only the pictures before are used (2)",
        ),
        ("torn in a header", 2, "at byte 2,048"),
        ("torn between", 2, "at byte 2,048"),
        ("bad header", 2, "at byte 2,048"),
        ("no archive", 0, "the shard is damaged at byte 0"),
        ("nothing", 0, "the shard is an empty file"),
        ("no member", 0, "the shard holds no picture"),
    ],
)
def test_of_a_torn_tar_the_pictures_before_are_used(tmp_path, kind, count, text):
    names, found = reasons(damaged(tmp_path / "0.tar", kind))
    assert names == ["k0.png", "k1.png", "k2.png"][:count]
    assert len(found) == 1 and text in found[0]


def test_links_and_second_pictures_of_a_name_are_left_out(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, kind in (("a.png", tarfile.SYMTYPE), ("b.png", tarfile.LNKTYPE), ("c.png", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        for name in ("d.png", "d.png", "d.jpg", "e.png"):
            member = tarfile.TarInfo(name)
            member.size = len(PICTURES[0])
            archive.addfile(member, io.BytesIO(PICTURES[0]))
    names, found = reasons(tmp_path / "0.tar")
    assert names == ["d.png", "e.png"]
    assert [text.split()[2] for text in found[:3]] == ["a"] * 3 and "link" in found[0]
    assert all("an earlier member" in text for text in found[3:]) and len(found) == 5


def test_lists_of_shards(tmp_path):
    for number in (0, 1, 3):
        tar_of(tmp_path / "s" / f"{number:02}.tar")
    found = find_shards(f"{tmp_path}/s/{{00..03}}.tar", where="image")
    assert [shard.name for shard in found.found] == ["00.tar", "01.tar", "03.tar"]
    assert [(one.id, one.reason) for one in found.skipped] == [("02.tar", "there is no such shard")]
    assert [shard.name for shard in find_shards(f"{tmp_path}/*/0[01].tar", where="image").found] == [
        "s/00.tar",
        "s/01.tar",
    ]
    twice = find_shards(f"{tmp_path}/s/{{00,01,00}}.tar", where="image")
    assert len(twice.found) == 2 and "twice" in twice.skipped[0].reason
    (tmp_path / "s" / "04.tar").symlink_to(tmp_path / "s" / "00.tar")
    assert "twice" in find_shards(f"{tmp_path}/s/{{00,04}}.tar", where="image").skipped[0].reason
    assert len(find_shards(str(tmp_path / "s"), where="image").found) == 4  # a link inside the folder
    assert [shard.name for shard in find_shards(str(tmp_path / "s" / "00.tar"), where="image").found] == ["00.tar"]
    other = tar_of(tmp_path / "other.tar")
    (tmp_path / "s" / "05.tar").symlink_to(other)
    assert len(find_shards(str(tmp_path / "s"), where="image").found) == 4
    assert len(find_shards(str(tmp_path / "s"), where="image", follow_links=True).found) == 5


def test_folders_of_pictures_and_other_files_are_no_shards(tmp_path):
    (tmp_path / "a.png").write_bytes(PICTURES[0])
    tar_of(tmp_path / "0.tar")
    assert find_shards(str(tmp_path), where="image") is None
    assert find_shards(str(tmp_path / "a.png"), where="image") is None
    assert find_shards(str(tmp_path / "missing{1}.png"), where="image") is None


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("{00..01}.tar", "none of its 2 shards can be read: .*00.tar .there is no such shard"),
        ("{00..01.tar", "a brace is not closed"),
        ("x.tar.gz", "unpack it to a plain .tar"),
        ("{a.tar,a.parquet}", "differ in their suffix alone"),
        ("{.,..}/a.tar", "without '..'"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(tmp_path, pattern, text):
    tar_of(tmp_path / "s" / "a.tar")
    tar_of(tmp_path / "a.tar")
    write_parquet(tmp_path / "s" / "a.parquet", {"image": [PICTURES[0]]})
    with pytest.raises(UserError, match=text):
        find_shards(f"{tmp_path}/s/{pattern}", where="image")


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    tar_of(tmp_path / "0.tar")
    write_parquet(tmp_path / "0.parquet", {"image": PICTURES[:1]})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert find_shards(f"{tmp_path}/0.tar", where="image").found  # needs none
    with pytest.raises(UserError, match=r"shards need braceexpand: pip install -e .\[shards\]"):
        find_shards(f"{tmp_path}/{{0..1}}.tar", where="image")
    with pytest.raises(UserError, match="shards need pyarrow"):
        find_shards(f"{tmp_path}/0.parquet", where="image")


def annotated(path: Path, *beside: dict[str, object]) -> Path:
    members = {}
    for number, files in enumerate(beside):
        members[f"k{number}.png"] = PICTURES[number]
        for suffix, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            members[f"k{number}.{suffix}"] = text.encode()
    return write_tar(path, members)


def test_annotations_of_a_tar(tmp_path):
    artemis = {"emotions": ["joy", "fear"], "explanations": ["a", "b"], "id": 7}
    samples, skipped, _ = read(annotated(tmp_path / "json.tar", {"json": artemis}, {"txt": ""}))
    [sample] = samples
    assert (sample.id, sample.texts, sample.emotions, sample.histogram) == ("7", ("a", "b"), (2, 1), (0.0, 0.5, 0.5))
    assert [one.id for one in skipped] == ["json.tar/k1.png"] and "no annotation" in skipped[0].reason
    classes = read(annotated(tmp_path / "cls.tar", {"cls": "1\n"}, {"cls": "Joy"})).samples
    assert [(one.id, one.texts, one.emotions) for one in classes] == [("k0.png", ("",), (1,)), ("k1.png", ("",), (2,))]
    both = read(annotated(tmp_path / "both.tar", {"cls": "0", "txt": " calm ", "json": {"width": 8}})).samples
    assert (both[0].texts, both[0].emotions) == (("calm",), (0,))
    captions = read(annotated(tmp_path / "txt.tar", {"txt": "a boat"})).samples
    assert captions[0].texts == ("a boat",) and not captions.has_emotions
    twice = [("a.png", PICTURES[0]), ("a.cls", b"1"), ("a.cls", b"2")]
    samples, skipped, _ = read(write_tar(tmp_path / "twice.tar", twice))
    assert samples[0].emotions == (1,) and [one.id for one in skipped] == ["twice.tar/a.cls"]
    for number in range(2):
        annotated(tmp_path / "s" / f"{number}.tar", {"cls": "1"})
    assert [one.id for one in read(f"{tmp_path}/s/{{0,1}}.tar").samples] == ["k0.png", "1.tar/k0.png"]


@pytest.mark.parametrize(
    ("beside", "text"),
    [
        ([{"json": "{"}], "k0.png: not JSON"),
        ([{"json": {"emotions": ["rage"], "explanations": ["a"]}}], "'rage' is not one of"),
        ([{"cls": "3"}], "'3' is not one of the three"),
        ([{"cls": "1"}, {"txt": "a"}], "k1.png: it has .txt beside it, while the first picture has .cls"),
    ],
)
def test_annotations_that_cannot_be_used_are_refused(tmp_path, beside, text):
    shard = annotated(tmp_path / "0.tar", *beside)
    with pytest.raises(UserError, match=text):
        read(shard)
    faults: list[str] = []
    read(shard, faults=faults)
    assert len(faults) == 1


def test_missing_and_torn_shards_are_listed_and_refused_if_strict(tmp_path):
    annotated(tmp_path / "0.tar", {"cls": "1"}, {"cls": "0"})
    found = read_samples(dataset(f"{tmp_path}/{{0..1}}.tar"), "train_ds")
    assert len(found.samples) == 2 and [one.id for one in found.skipped] == ["1.tar"]
    with pytest.raises(UserError, match="1 of 3 images cannot be used"):
        read_samples(dataset(f"{tmp_path}/{{0..1}}.tar", strict=True), "train_ds")
    with pytest.raises(UserError, match="names no shards"):
        read_samples(dataset(tmp_path), "train_ds") if (tmp_path / "0.tar").rename(tmp_path / "0.zip") else None


def rows_of(count: int = 5) -> dict[str, list]:
    return {
        "image": [{"bytes": PICTURES[i // 2], "path": f"{i // 2}.png"} for i in range(count)],
        "text": [f"text {i}" for i in range(count)],
        "emotion": ["awe", "joy", "fear", "awe", "awe"][:count],
    }


@pytest.mark.parametrize("group", [1, 2, 100])
def test_a_parquet_file_is_read_like_a_table(tmp_path, group):
    columns = rows_of()
    shard = write_parquet(tmp_path / "t.parquet", columns, group=group)
    table = tmp_path / "t.jsonl"
    cells = zip(columns["image"], columns["text"], columns["emotion"], strict=True)
    rows = ({"image": image["path"], "text": text, "emotion": emotion} for image, text, emotion in cells)
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected, found = read_table(table, tmp_path, labels=("awe", "fear", "joy")), read(shard).samples
    for one, other in zip(found, expected, strict=True):
        for key in ("id", "texts", "emotions", "histogram"):
            assert getattr(one, key) == getattr(other, key)
        assert read_picture(one.path) == PICTURES[int(other.path.stem)] and one.path.name == other.path.name


def test_rows_with_one_name_and_other_bytes_are_other_pictures(tmp_path):
    columns = rows_of(3)
    columns["image"][1] = {"bytes": PICTURES[5], "path": "0.png"}
    assert [one.id for one in read(write_parquet(tmp_path / "t.parquet", columns)).samples] == [
        "0.png",
        "0.png (2)",
        "1.png",
    ]


def test_parquet_of_bytes_alone_of_names_and_of_a_split(tmp_path):
    shard = write_parquet(tmp_path / "b.parquet", {"img": PICTURES[:2], "label": ["awe", "joy"]})
    assert [one.id for one in read(shard).samples] == ["b.parquet/1", "b.parquet/2"]
    (tmp_path / "a.png").write_bytes(PICTURES[0])
    names = {"image": ["a.png", "b.png"], "text": ["a", "b"], "split": ["train", "test"]}
    there = dataset(write_parquet(tmp_path / "n" / "n.parquet", names))
    there["train_ds"] = {**there["train_ds"], "visual_dir": str(tmp_path)}
    assert [one.path for one in read_samples(there, "train_ds").samples] == [tmp_path / "a.png"]
    with pytest.raises(UserError, match=r"b.png \(image b.png\): there is no such file"):
        read_samples(there, "test_ds")


def test_shards_of_the_library_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["joy", "awe"])})
    rows = {"image": [{"bytes": content, "path": None} for content in PICTURES[:4]], "label": [0, 1, 1, 0]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": whole.select([0, 1, 2]), "test": whole.select([3])}).save_to_disk(tmp_path / "d")
    whole.to_parquet(tmp_path / "p.parquet")
    for path, split, names in (
        ("d", "train_ds", [2, 0, 0]),
        ("d", "test_ds", [2]),
        ("p.parquet", "test_ds", [2, 0, 0, 2]),
    ):
        samples = read(tmp_path / path, split).samples
        assert [one.emotions[0] for one in samples] == names
        first = 3 if (path, split) == ("d", "test_ds") else 0
        assert [read_picture(one.path) for one in samples] == PICTURES[first : first + len(names)]
    found = find_shards(str(tmp_path / "d"), where="image").found
    assert [shard.name.split("/")[0] for shard in found] == ["test", "train"]
    pictures, skipped = pictures_in(found[1])
    assert [one.id for one in pictures] == [f"{found[1].name}/{number}" for number in (1, 2, 3)] and not skipped
    assert [read_picture(one.path) for one in pictures] == PICTURES[:3]


def test_shards_of_the_library_webdataset(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(f"{tmp_path}/%04d.tar", maxcount=2, verbose=0) as writer:
        for number in range(3):
            writer.write({"__key__": f"k{number}", "png": PICTURES[number], "cls": number})
    samples = read(f"{tmp_path}/{{0000..0001}}.tar").samples
    assert [(one.id, one.emotions, read_picture(one.path)) for one in samples] == [
        (f"k{i}.png", (i,), PICTURES[i]) for i in range(3)
    ]


def test_parquet_files_that_cannot_be_used_are_listed(tmp_path, monkeypatch):
    assert "no column of pictures" in reasons(write_parquet(tmp_path / "n.parquet", {"text": ["a"]}))[1][0]
    (tmp_path / "d.parquet").write_bytes(b"PAR1" * 9)
    assert "cannot be read" in reasons(tmp_path / "d.parquet")[1][0]
    (tmp_path / "d.arrow").write_bytes(b"ARROW" * 9)
    assert "cannot be read" in reasons(tmp_path / "d.arrow")[1][0]
    none = pa.array([None, {"bytes": PICTURES[0], "path": None}])
    path = write_parquet(tmp_path / "z.parquet", {"image": none})
    samples, _ = pictures_in(Shard("z.parquet", path))
    with pytest.raises(ImageError, match="holds no bytes"):
        open_image(samples[0].path)
    assert open_image(samples[1].path).size == (8, 6)
    monkeypatch.setattr(table_shards, "LARGEST_GROUP", 10)
    assert "write it with row_group_size=100" in reasons(path)[1][0]


@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
def test_any_damage_of_a_shard_is_a_reason(tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".tar":
        tar_of(whole)
    else:
        write_parquet(whole, {"image": [{"bytes": content, "path": None} for content in PICTURES]}, group=2)
    content, rng, found = whole.read_bytes(), random.Random(0), 0
    for number in range(400):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 5)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(damaged[: rng.randrange(len(damaged))] if rng.random() < 0.2 else damaged)
        samples, skipped = pictures_in(Shard(path.name, path))
        found += bool(skipped)
        for sample in samples:
            with contextlib.suppress(ImageError):
                open_image(sample.path)
    assert found > 100


def test_errors_of_pyarrow_are_reasons(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise pa.ArrowNotImplementedError("not implemented")

    path = write_parquet(tmp_path / "a.parquet", {"image": PICTURES[:1]})
    monkeypatch.setattr(table_shards, "picture_column", fail)
    assert "not implemented" in reasons(path)[1][0]


def test_digests_of_pictures_in_shards(tmp_path):
    shard = tar_of(tmp_path / "0.tar", 2)
    (tmp_path / "a.png").write_bytes(PICTURES[1])
    rows = write_parquet(tmp_path / "p.parquet", {"image": PICTURES[1:3]})
    tars, tables = ([one.path for one in pictures_in(Shard(path.name, path))[0]] for path in (shard, rows))
    assert equal_files([tmp_path / "a.png"], tars, None) == [(tmp_path / "a.png", tars[1])]
    assert equal_files(tables, tables[:1], None) == [(tables[0], tables[0])]
    before = signature_of(tars[0])
    assert before.size == len(PICTURES[0]) and signature_of(tables[0]).size == -1
    os.utime(shard, ns=(1, 1))
    assert signature_of(tars[0]) != before and name_in(tars[0]) == shard / "k0.png"
