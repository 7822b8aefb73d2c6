"""data/prepare/images.py: small copies of a folder of pictures."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from data.images import MAX_PIXELS, open_image
from data.prepare import images
from data.prepare.images import HOW, Settings, copy_picture
from tests.helpers.fake_java import interruptible

ROOT = Path(__file__).resolve().parents[2]
ODD_NAMES = [
    "café.jpg",
    "cafe\u0301 2.jpg",
    "sã\xadmbolo (1).jpg",
    "絵.jpg",
    "two\nlines.jpg",
    "bytes\udcff.jpg",
    "a'\"&<b>.jpg",
]


def painting(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Return smooth colors with some noise, which compress like paintings."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 100 * np.sin(x / (17 + 9 * c + seed) + y / (31 - 7 * c)) for c in range(3)]
    noise = np.random.default_rng(seed).normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(np.stack(waves, axis=2) + noise, 0, 255).astype(np.uint8))


def save(image: Image.Image, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    images.add_parser(parser.add_subparsers())
    options = parser.parse_args(["images", *map(str, arguments)])
    return options.run(options)


def copy(path: Path, out: Path, settings: Settings, max_pixels: int) -> str:
    return copy_picture(path.name, source=path.parent, out=out, settings=settings, max_pixels=max_pixels)


def copied(path: Path, *, max_side: int = 60, quality: int = 95) -> Image.Image | bytes | str:
    """Return the opened copy of a picture, the bytes of an unchanged copy, or the reason why there is none."""
    out = path.parent / "out"
    out.mkdir(exist_ok=True)
    result = copy(path, out, Settings(max_side, quality), MAX_PIXELS)
    if result not in HOW:
        return result
    data = (out / path.name).read_bytes()
    return data if result == "copied" else Image.open(io.BytesIO(data))


def left_out(out: Path) -> dict[str, str]:
    with (out / "left_out.csv").open(encoding="utf-8", newline="") as file:
        return {row["image"]: row["reason"] for row in csv.DictReader(file)}


# --- one picture


@pytest.mark.parametrize(
    ("size", "wanted"), [((300, 200), (60, 40)), ((200, 301), (40, 60)), ((600, 4), (60, 1)), ((61, 61), (60, 60))]
)
def test_longest_side_is_limited_and_the_ratio_kept(tmp_path, size, wanted):
    copy = copied(save(painting(*size), tmp_path / "a.jpg"))
    assert copy.size == wanted and copy.mode == "RGB"


def test_copies_are_reduced_by_lanczos(tmp_path):
    path = save(painting(300, 200), tmp_path / "a.png")
    wanted = open_image(path).resize((60, 40), Image.Resampling.LANCZOS)
    assert (np.asarray(copied(path)) == np.asarray(wanted)).all()
    jpeg = copied(save(painting(300, 200), tmp_path / "a.jpg", quality=100, subsampling=0))
    assert np.abs(np.asarray(jpeg).astype(int) - np.asarray(wanted)).mean() < 2


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_small_upright_jpegs_are_copied_byte_for_byte(tmp_path):
    for name, image, options in (
        (
            "rgb.jpg",
            painting(60, 40),
            {"quality": 30, "icc_profile": b"profile", "exif": b"Exif\0\0II*\0\xff\xff\xff\xff"},
        ),
        ("grey.jpg", painting(60, 40).convert("L"), {"progressive": True}),
        ("in truth a jpeg.png", painting(60, 40), {"format": "JPEG"}),
    ):
        path = save(image, tmp_path / name, **options)
        copy = copied(path)
        assert copy == path.read_bytes(), name


@pytest.mark.parametrize("orientation", range(2, 9))
def test_small_jpegs_are_rotated_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = orientation
    path = save(painting(60, 40), tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    copy = copied(path)
    assert copy.size == ((40, 60) if orientation >= 5 else (60, 40)) and not copy.getexif()
    assert np.abs(np.asarray(copy).astype(int) - np.asarray(open_image(path))).mean() < 5


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "1", "LA", "RGBA", "I;16", "F"])
@pytest.mark.parametrize("side", [40, 90])
def test_copies_of_all_modes_have_the_pixels_of_open_image(tmp_path, mode, side):
    grey = painting(side, side).convert("L")
    image = (
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        if mode == "I;16"
        else painting(side, side).convert(mode)
    )
    path = save(image, tmp_path / "a.tif")
    copy = copied(path)
    wanted = open_image(path)
    if side > 60:
        wanted = wanted.resize((60, 60), Image.Resampling.LANCZOS)
    assert copy.format == "PNG" and copy.mode == "RGB"
    assert (np.asarray(copy) == np.asarray(wanted)).all()


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "webp", "bmp", "gif", "tif", "psd.jpg"])
def test_format_follows_the_name(tmp_path, suffix):
    path = save(painting(90, 60), tmp_path / f"a.{suffix}", format="PNG")
    assert copied(path).format == ("JPEG" if suffix.lower() in ("jpg", "jpeg", "psd.jpg") else "PNG")


def test_jpeg_colors_have_full_resolution(tmp_path):
    stripes = np.zeros((40, 40, 3), np.uint8)
    stripes[:, ::2], stripes[:, 1::2] = (200, 40, 40), (40, 40, 200)
    copy = copied(save(Image.fromarray(stripes), tmp_path / "stripes.jpg", format="PNG"))
    assert np.abs(np.asarray(copy).astype(int) - stripes).max() < 40, "with subsampling the stripes would be violet"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"<html>not found", "not a readable image"), (b"\xff\xd8\xff\xe0 cut off", "image|damaged")],
)
def test_unusable_files_have_a_reason(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    assert any(word in copied(tmp_path / "a.jpg") for word in reason.split("|"))
    assert not (tmp_path / "out" / "a.jpg").exists()


def test_pictures_with_too_many_pixels(tmp_path):
    path = save(Image.new("1", (3000, 3000)), tmp_path / "bomb.png")
    assert path.stat().st_size < 5000
    result = copy(path, tmp_path / "out", Settings(600, 95), 1_000_000)
    assert "too many pixels" in result and "1,000,000" in result


def test_longest_possible_name(tmp_path):
    path = save(painting(90, 60), tmp_path / ("n" * 251 + ".jpg"))
    assert copied(path).size == (60, 40)


# --- a folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Pictures with unusual names in nested folders, three unusable ones, and other files."""
    root = tmp_path / "source"
    for i, name in enumerate(ODD_NAMES):
        save(painting(90 if i % 2 else 50, 60, seed=i), root / f"style {i % 3}" / "é" / name)
    save(painting(90, 60), root / "top.png")
    save(painting(90, 60), root / "cut.jpg")
    (root / "cut.jpg").write_bytes((root / "cut.jpg").read_bytes()[:600])
    (root / "empty.jpg").touch()
    (root / "text.png").write_text("no picture")
    (root / "notes.txt").write_text("not to be copied")
    (root / ".hidden.jpg").write_text("hidden")
    (root / "elsewhere").symlink_to(tmp_path)
    return root


def test_copies_reports_and_summary(source, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert run(source, "--out", out, "--max-side", 60, "--workers", 2) == 0
    good = {p.relative_to(source) for p in source.rglob("*") if p.suffix in (".jpg", ".png") and p.name[0] != "."}
    good -= {Path("cut.jpg"), Path("empty.jpg"), Path("text.png")}
    beside = {Path(name) for name in ("left_out.csv", "manifest.json")}
    assert {p.relative_to(out) for p in out.rglob("*") if p.is_file()} == good | beside
    assert all(max(Image.open(out / name).size) <= 60 for name in good)
    reasons = left_out(out)
    assert set(reasons) == {"cut.jpg", "empty.jpg", "text.png", "elsewhere"}
    assert "empty" in reasons["empty.jpg"] and "symbolic link" in reasons["elsewhere"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["pictures"] == len(good) == manifest["resized"] + manifest["converted"] + manifest["copied"]
    assert manifest["left_out"] == 4 and manifest["max_side"] == 60 and manifest["jpeg_subsampling"] == "4:4:4"
    printed = capsys.readouterr()
    assert "8 pictures" in printed.out and "4 left out" in printed.out and "8 of them" not in printed.out
    assert "picture" in printed.err, "progress"


def test_only_annotated_pictures_are_copied(tmp_path, capsys):
    source, out = tmp_path / "wikiart", tmp_path / "artemis" / "images"
    for name in ("a", "b", "café"):
        save(painting(9, 9), source / "Style" / f"{name}.jpg")
    (source / "Style" / "linked.jpg").symlink_to(save(painting(9, 9), tmp_path / "elsewhere.jpg"))
    entry = {"emotions": ["awe"], "explanations": ["x"]}
    (tmp_path / "artemis").mkdir()
    for part, names in (("train", ["a", "caf\u00c3\u00a9", "gone"]), ("test", ["a", "linked"])):
        entries = {str(i): entry | {"image_name": f"Style/{name}.jpg"} for i, name in enumerate(names)}
        (tmp_path / "artemis" / f"artEmisX_{part}.json").write_text(json.dumps(entries))
    (tmp_path / "artemis" / "artEmisX_test_annot_exp.json").write_text("for scorers, not read")
    run(source, "--out", out)
    assert {path.name for path in out.rglob("*.jpg")} == {"a.jpg", "café.jpg"}
    assert set(left_out(out)) == {"Style/gone.jpg", "Style/linked.jpg"}
    assert "1 without an annotation, not copied" in capsys.readouterr().out
    run(source, "--out", out, "--follow-links")
    assert {path.name for path in out.rglob("*.jpg")} == {"a.jpg", "café.jpg", "linked.jpg"}
    run(source, "--out", out, "--no-only-annotated")
    assert {path.name for path in out.rglob("*.jpg")} == {"a.jpg", "b.jpg", "café.jpg", "linked.jpg"}
    with pytest.raises(UserError, match=r"has none of the pictures that .*\.json names, such as Style/.*folders of"):
        run(source / "Style", "--out", out)


def test_second_run_makes_only_outdated_copies(source, tmp_path):
    out = tmp_path / "out"
    arguments = (source, "--out", out, "--max-side", 60, "--workers", 1)
    run(*arguments)
    before = {p: p.stat().st_ctime_ns for p in out.rglob("*") if p.suffix in (".jpg", ".png")}
    changed, gone, cut = source / "top.png", "style 0/é/café.jpg", out / "style 1/é/cafe\u0301 2.jpg"
    save(painting(90, 60, seed=9), changed)
    (out / gone).unlink()
    cut.write_bytes(cut.read_bytes()[:50])  # as after a power failure
    save(painting(90, 60), source / "cut.jpg")
    before |= {cut: cut.stat().st_ctime_ns}
    run(*arguments)
    after = {p: p.stat().st_ctime_ns for p in out.rglob("*") if p.suffix in (".jpg", ".png")}
    anew = {p for p in after if after[p] != before.get(p)}
    assert anew == {out / "top.png", out / gone, cut, out / "cut.jpg"}
    assert set(left_out(out)) == {"empty.jpg", "text.png", "elsewhere"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["pictures"] == len(after) == manifest["earlier"] + len(anew)


def test_other_settings_replace_all_copies(source, tmp_path):
    out = tmp_path / "out"
    run(source, "--out", out, "--max-side", 60, "--workers", 1)
    run(source, "--out", out, "--max-side", 30, "--workers", 1)
    assert all(max(Image.open(p).size) <= 30 for p in out.rglob("*") if p.suffix in (".jpg", ".png"))


def test_copy_of_a_broken_picture_is_removed(source, tmp_path):
    out = tmp_path / "out"
    run(source, "--out", out, "--workers", 1)
    (source / "top.png").write_text("gone")
    run(source, "--out", out, "--workers", 1)
    assert not (out / "top.png").exists() and "top.png" in left_out(out)


def test_number_of_workers_does_not_change_the_copies(source, tmp_path):
    for workers in (1, 3):
        run(source, "--out", tmp_path / str(workers), "--max-side", 60, "--workers", workers)
    one, three = ({p.relative_to(tmp_path / w): p.read_bytes() for p in (tmp_path / w).rglob("*.*g")} for w in "13")
    assert one == three and len(one) == 8
    assert left_out(tmp_path / "1") == left_out(tmp_path / "3")


def start(source: Path, out: Path, **options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "data.prepare", "images", source, "--out", out, "--workers", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_run_continues(tmp_path, stop):
    source, out = tmp_path / "source", tmp_path / "out"
    save(painting(1200, 900), source / "000.jpg")
    for i in range(1, 60):
        (source / f"{i:03}.jpg").write_bytes((source / "000.jpg").read_bytes())
    with start(source, out, start_new_session=True, preexec_fn=interruptible) as process:
        while process.poll() is None and not len(list(out.glob("*.jpg"))) > 3:
            time.sleep(0.02)
        os.killpg(process.pid, stop) if stop == signal.SIGINT else process.kill()
        errors = process.stderr.read()
    assert "Traceback" not in errors
    if stop == signal.SIGINT:
        assert process.returncode == 130 and "run the same command again" in errors
    kept = {path: path.stat().st_ctime_ns for path in out.glob("*.jpg")}
    assert 3 < len(kept) < 60
    assert all(open_image(path).size == (600, 450) for path in kept), "complete or absent"
    with start(source, out) as process:
        process.communicate()
    assert process.returncode == 0 and len(list(out.glob("*.jpg"))) == 60
    assert {p.name for p in out.iterdir() if p.suffix != ".jpg"} == {"left_out.csv", "manifest.json"}
    untouched = sum(path.stat().st_ctime_ns == changed for path, changed in kept.items())
    assert untouched >= len(kept) - 10, "all but those in progress"


def test_full_disk_is_one_sentence_and_finished_copies_stay(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    save(painting(50, 40), source / "a.jpg", quality=10)
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    save(Image.fromarray(noise), source / "b.jpg")

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # bytes of any file that is written

    program = (
        "import sys\nfrom pathlib import Path\nfrom data.prepare.images import Settings, copy_pictures\n"
        "from common.errors import UserError\n"
        "try: copy_pictures(Path(sys.argv[1]), Path(sys.argv[2]), Settings(600, 95), max_pixels=10**8, workers=1)\n"
        "except UserError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(source), str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, preexec_fn=limit, capture_output=True, text=True)
    assert "1 of 2 pictures are done and stay" in done.stdout and "File too large" in done.stdout
    assert "Traceback" not in done.stderr
    assert (out / "a.jpg").read_bytes() == (source / "a.jpg").read_bytes() and not (out / "b.jpg").exists()


def test_unsafe_output_folders_are_refused(source, tmp_path):
    (tmp_path / "mine").mkdir()
    save(painting(9, 9), tmp_path / "mine" / "top.png")
    (tmp_path / "file").write_text("")
    (tmp_path / "alias").symlink_to(source)
    for out in (source, source / "inside", tmp_path, tmp_path / "alias", source / "style 0" / ".." / "x"):
        with pytest.raises(UserError, match="contain one another"):
            run(source, "--out", out)
    with pytest.raises(UserError, match="contains other files"):
        run(source, "--out", tmp_path / "mine")
    (tmp_path / "mine" / "manifest.json").write_text('{"max_side": 60}')  # another command's
    with pytest.raises(UserError, match="contains other files"):
        run(source, "--out", tmp_path / "mine")
    with pytest.raises(UserError, match="not a folder"):
        run(source, "--out", tmp_path / "file")
    assert Image.open(tmp_path / "mine" / "top.png").size == (9, 9)


def test_wrong_usage(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no such folder"):
        run(tmp_path / "nowhere", "--out", tmp_path / "out")
    with pytest.raises(UserError, match="contains no picture"):
        run(tmp_path / "empty", "--out", tmp_path / "out")
    with pytest.raises(UserError, match="quality 101"):
        run(tmp_path, "--out", tmp_path / "out", "--quality", 101)
    for option in ("--max-side", "--workers", "--quality"):
        with pytest.raises(SystemExit) as stop:
            run(tmp_path, "--out", tmp_path / "out", option, 0)
        assert stop.value.code == 2 and "whole number" in capsys.readouterr().err
