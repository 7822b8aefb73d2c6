"""Hundreds of damaged images and annotation files: each is reported with its reason; nothing fails or hangs."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from common.errors import UserError
from data.emotions import EMOTIONS
from data.images import ImageError, open_image
from data.prepare import images
from data.prepare.check import command as check
from data.prepare.check.dataset import check_dataset
from data.readers.split import read_split
from tests.helpers.damage import flipped, one_change, shuffled, truncated, zeroed
from tests.helpers.data_files import MAX_PIXELS, artemis, coco, dataset, encoded

LIMIT = 90  # seconds for the longest step
KINDS = {
    "baseline.jpg": {"format": "JPEG", "quality": 90},
    "progressive.jpg": {"format": "JPEG", "progressive": True},
    "plain.png": {"format": "PNG"},
    "palette.gif": {"format": "GIF"},
    "raw.tif": {"format": "TIFF"},
    "lzw.tif": {"format": "TIFF", "compression": "tiff_lzw"},
    "lossy.webp": {"format": "WEBP"},
    "lossless.webp": {"format": "WEBP", "lossless": True},
    "raw.bmp": {"format": "BMP"},
}


# --- images


def other_head(data: bytes, rng: random.Random) -> bytes:
    head = encoded(0, **rng.choice(list(KINDS.values())))[:24]
    return head + data[24:]


MUTATIONS = {truncated: 8, flipped: 8, zeroed: 3, shuffled: 3, other_head: 3}


def png_of(width: int, height: int) -> bytes:
    """Return a PNG with this size in its header and hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(encoded(1, format="JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


def gif_of(width: int, height: int) -> bytes:
    data = bytearray(encoded(1, format="GIF"))
    data[6:10] = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return bytes(data)


def bmp_of(width: int, height: int) -> bytes:
    data = bytearray(encoded(1, format="BMP"))
    data[18:26] = width.to_bytes(4, "little", signed=True) + height.to_bytes(4, "little", signed=True)
    return bytes(data)


UNUSABLE = {
    "empty.jpg": b"",
    "one byte.png": b"\x89",
    "zeros.jpg": bytes(5000),
    "text.jpg": b"the dog ate it\n" * 50,
    "page.png": b"<!doctype html><title>404 Not Found</title>",
    "json.gif": b'{"error": "rate limit"}',
    "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "vector.svg.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "archive.jpg": b"PK\x03\x04" + bytes(200),
    "only a head.png": b"\x89PNG\r\n\x1a\n",
    "bomb.png": png_of(60_000, 60_000),
    "wide bomb.png": png_of(2**31 - 1, 1),
    "no size.png": png_of(0, 9),
    "narrow.png": png_of(1, 5000),
    "promises.png": png_of(900, 900),
    "bomb.jpg": jpeg_of(65_500, 65_500),
    "no size.jpg": jpeg_of(0, 0),
    "bomb.gif": gif_of(65_535, 65_535),
    "bomb.bmp": bmp_of(2**30, 2**30),
    "negative.bmp": bmp_of(-64, 48),
}


def broken_exif(rng: random.Random) -> bytes:
    """Return a valid image with invalid EXIF data, which remains usable."""
    rubbish = b"Exif\0\0" + rng.choice((b"II*\0", b"MM\0*", b"")) + rng.randbytes(40)
    data = encoded(2, format="JPEG")
    return data[:2] + b"\xff\xe1" + (len(rubbish) + 2).to_bytes(2, "big") + rubbish + data[2:]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> tuple[Path, Path, set[str]]:
    """An annotation file, its folder of damaged images, and the names of those that are always unusable."""
    root = tmp_path_factory.mktemp("damaged")
    folder = root / "pictures"
    folder.mkdir()
    never: set[str] = set()
    for kind, options in KINDS.items():
        for mutation, count in MUTATIONS.items():
            for i in range(count):
                rng = random.Random(f"{kind}/{mutation.__name__}/{i}")
                name = f"{mutation.__name__} {i} {kind}"
                (folder / name).write_bytes(mutation(encoded(i, **options), rng))
                never |= {name} if mutation is truncated else set()
    for name, content in UNUSABLE.items():
        (folder / name).write_bytes(content)
    for i in range(6):
        (folder / f"exif {i}.jpg").write_bytes(broken_exif(random.Random(i)))
    (folder / "a folder.jpg").mkdir()
    (folder / "leads nowhere.jpg").symlink_to(folder / "gone.jpg")
    (folder / "leads to itself.jpg").symlink_to(folder / "leads to itself.jpg")
    (folder / "leads out.jpg").symlink_to("/etc/passwd")
    os.mkfifo(folder / "waits for ever.jpg")
    never |= {*UNUSABLE, "a folder.jpg", "leads nowhere.jpg", "leads to itself.jpg", "leads out.jpg"}
    never |= {"waits for ever.jpg", "was never there.jpg"}
    names = sorted({path.name for path in folder.iterdir()} | never)
    entry = {"emotions": ["awe"], "explanations": ["so much light"]}
    json_path = root / "annotations.json"
    json_path.write_text(json.dumps({f"id of {name}": entry | {"image_name": name} for name in names}))
    return json_path, folder, never


def usable(path: Path) -> bool:
    try:
        return open_image(path, max_pixels=MAX_PIXELS).mode == "RGB"
    except ImageError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 300
        return False


def test_check_reports_every_damaged_image(gallery, tmp_path, capfd):
    json_path, folder, never = gallery
    begin = time.monotonic()
    report = check_dataset(dataset("artemis", json_path, folder), decode=True, workers=2)
    check.write_report(report, tmp_path)
    assert time.monotonic() - begin < LIMIT
    with (tmp_path / "problems.csv").open(encoding="utf-8", newline="") as file:
        reported = {row["image id"].removeprefix("id of "): row for row in csv.DictReader(file)}
    names = {name.removeprefix("id of ") for name in json.loads(json_path.read_text())}
    refused = {name for name in names if name in reported and reported[name]["kind"] in ("corrupt", "missing")}
    assert len(names) > 240 and never <= refused
    for name in names - {"leads out.jpg"}:
        assert usable(folder / name) == (name not in refused), name
    assert all(reported[name]["reason"] for name in refused)
    assert report.splits["train_ds"].usable == len(names) - len(refused)
    assert {f"exif {i}.jpg" for i in range(6)} <= names - refused
    assert "Traceback" not in "".join(capfd.readouterr())
    assert "bomb.png" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_usable_images_are_copied(gallery, tmp_path, capfd):
    _, folder, never = gallery
    parser = argparse.ArgumentParser()
    images.add_parser(parser.add_subparsers())
    options = ["--out", str(tmp_path / "out"), "--workers", "2", "--max-pixels", str(MAX_PIXELS)]
    arguments = parser.parse_args(["images", str(folder), *options])
    begin = time.monotonic()
    assert arguments.run(arguments) == 0
    assert time.monotonic() - begin < LIMIT
    with (tmp_path / "out" / "left_out.csv").open(encoding="utf-8", newline="") as file:
        left_out = {row["image"]: row["reason"] for row in csv.DictReader(file)}
    pictures = {path.name for path in folder.iterdir() if path.is_file()}
    copies = {path.name for path in (tmp_path / "out").iterdir()} & pictures
    assert copies == {name for name in pictures if usable(folder / name)} == pictures - set(left_out)
    assert never & copies == set() and len(copies) > 20 and all(left_out.values())
    assert all(usable(tmp_path / "out" / name) for name in copies)
    assert "Traceback" not in "".join(capfd.readouterr())


# --- annotations


def karpathy() -> dict:
    sentences = [{"raw": "a boat"}, {"raw": "a storm"}]
    common = {"filepath": "", "split": "train", "sentences": sentences}
    return {"images": [common | {"cocoid": 9000 + i, "filename": f"{i:04}.png"} for i in range(8)]}


def mlslt() -> list:
    texts = [{"lang": "de", "text": "ein Boot"}, {"lang": "en", "text": "a boat"}]
    return [{"id": str(9000 + i), "sign_list": texts} for i in range(8)]


FORMS: dict[str, Callable[[], object]] = {"artemis": artemis, "coco": coco, "karpathy": karpathy, "mlslt": mlslt}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("annotated")
    for i in range(8):
        Image.new("RGB", (8, 8), (30 * i, 0, 0)).save(root / f"{i:04}.png")
        (root / str(9000 + i)).mkdir()
        for language in ("en", "de"):
            (root / str(9000 + i) / f"{language}.mp4").touch()
    return root


def read(form: str, path: Path, folder: Path) -> tuple[set[str], list[str], str]:
    """Read annotations; return the files in use, the errors of entries, and the error of the whole file."""
    settings = dataset(form if form != "karpathy" else "coco", path, folder)
    faults: list[str] = []
    try:
        split = read_split(settings, "train_ds", faults=faults)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error), error
        with pytest.raises(UserError):
            read_split(settings, "train_ds")
        return set(), faults, str(error)
    for fault in faults:
        assert fault.startswith(str(path)) and "\n" not in fault, fault
    if faults:
        with pytest.raises(UserError):
            read_split(settings, "train_ds")
    else:
        assert len(read_split(settings, "train_ds").samples) == len(split.samples)
    for sample in split.samples:
        assert sample.texts and all(sample.texts) and sample.path.is_relative_to(folder.resolve())
        assert len(sample.emotions) in (0, len(sample.texts)) and all(0 <= e < len(EMOTIONS) for e in sample.emotions)
        assert sample.histogram is None or abs(sum(sample.histogram) - 1) < 0.01
    faults += [f"{image.id} {image.path}: {image.reason}" for image in split.skipped]
    faults += [f"{image.id} {image.name!r} is {image.path}" for image in split.renamed]
    return {str(sample.path.relative_to(folder.resolve())) for sample in split.samples}, faults, ""


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_entry_is_reported_and_the_others_are_used(form, folder, tmp_path):
    data, path = FORMS[form](), tmp_path / "a.json"
    path.write_text(json.dumps(data))
    whole, faults, error = read(form, path, folder)
    assert len(whole) == (16 if form == "mlslt" else 8) and not faults and not error
    named = 0
    for seed in range(150):
        change = one_change(data, random.Random(f"{form}/{seed}"))
        path.write_text(json.dumps(change.data))
        used, faults, error = read(form, path, folder)
        named += bool(faults or error)
        lost = {file.split("/")[0] for file in whole - used}
        assert error or len(lost) <= 1, f"{change.words} costs {lost}"
        assert error or faults or change.by_intent or not lost, f"{change.words} loses {lost} without a word"
    assert named > 40


@pytest.mark.parametrize("form", FORMS)
def test_annotations_with_damaged_bytes(form, folder, tmp_path):
    path = tmp_path / "a.json"
    whole = json.dumps(FORMS[form]()).encode()
    for seed in range(60):
        rng = random.Random(f"{form}/text/{seed}")
        path.write_bytes((truncated, flipped, zeroed, shuffled)[seed % 4](whole, rng))
        used, _, error = read(form, path, folder)
        if seed % 4 == 0:
            assert error and not used, "a file that was cut off is never used as if it were whole"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" \n",
        b"null",
        b"0",
        b'"text"',
        b"[]",
        b"{}",
        b"[[]]",
        b"{}{}",
        b"<html>",
        b"image,text\na.png,a boat\n",
        "é".encode("latin-1"),
        json.dumps(artemis()).encode("utf-16"),
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"[" * 90_000 + b"]" * 90_000,
        b"9" * 10_000,
        b'{"1": ' + b"9" * 5_000 + b"}",
        b'{"1": {}, "1": {}}',
        b'{"images": [], "annotations": []}',
        b'{"images": [{"id": 1, "id": 2}], "annotations": []}',
        b'{"images": {}, "annotations": {}}',
        b"NaN",
        b"-Infinity",
        bytes(1000),
        b"\x80\x04\x95.",
    ],
    ids=lambda content: ascii(content[:12]),
)
def test_other_content_is_refused(form, content, folder, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    begin = time.monotonic()
    used, faults, error = read(form, path, folder)
    assert not used and (error or faults) and len(error) < 1000
    assert time.monotonic() - begin < LIMIT


def test_a_byte_order_mark_is_accepted(folder, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps(artemis()).encode("utf-8-sig"))
    assert len(read("artemis", path, folder)[0]) == 8


def test_damaged_tables(folder, tmp_path):
    rows = [("image", "text", "emotion"), *((f"{i:04}.png", f"a boat, {i}", "awe") for i in range(8))]
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    for seed in range(120):
        rng = random.Random(f"table/{seed}")
        path = tmp_path / ("a.csv", "a.tsv", "a.jsonl")[seed % 3]
        lines = (json.dumps(dict(zip(rows[0], row, strict=True))) for row in rows[1:])
        whole = "\n".join(lines) if seed % 3 == 2 else buffer.getvalue().replace(",", "\t" if seed % 3 else ",")
        damaged = rng.choice((truncated, flipped, zeroed, shuffled))(whole.encode(), rng)
        path.write_bytes(damaged)
        read("table", path, folder)


def test_a_report_of_damaged_annotations_is_written(folder, tmp_path):
    """From file to page, for some of the files above."""
    for seed in range(12):
        form = list(FORMS)[seed % 4]
        damaged = one_change(FORMS[form](), random.Random(f"{form}/{seed}")).data
        path = tmp_path / f"{seed} <b>.json"
        path.write_text(json.dumps(damaged))
        name = "coco" if form == "karpathy" else form
        report = check_dataset(dataset(name, path, folder), decode=False, workers=1)
        check.write_report(report, tmp_path / "out")
        reported = json.loads((tmp_path / "out" / "check.json").read_text())["problems"]
        assert {"file", "entry", "missing"} & reported.keys() or report.splits["train_ds"].listed
        assert "<b>.json" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8"), "names are escaped"
