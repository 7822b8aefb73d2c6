"""Thumbnails: small, upright, on white."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from data.images import open_image
from trainer.report.thumbnails import thumbnail


def picture(path: Path, size: tuple[int, int]) -> str:
    Image.new("RGB", size, "teal").save(path)
    return str(path)


def decoded(found: dict) -> Image.Image:
    head, data = found["uri"].split(",", 1)
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_size_transparency_and_modes(tmp_path):
    large = thumbnail(Path(picture(tmp_path / "large.jpg", (1000, 500))))
    assert decoded(large).size == (320, 160) == (large["width"], large["height"]) and not large["small"]
    tiny = thumbnail(Path(picture(tmp_path / "tiny.png", (64, 64))))
    assert decoded(tiny).size == (64, 64) and tiny["small"]
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(decoded(thumbnail(tmp_path / "clear.png"))).min() > 250, "transparent parts are white"
    for mode in ("L", "P", "1", "LA", "I;16", "CMYK"):
        path = tmp_path / f"{mode.replace(';', '')}.tif"
        Image.new(mode, (30, 20)).save(path)
        assert thumbnail(path) is not None, mode


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    Image.new("RGB", (40, 20)).save(tmp_path / "x.jpg", exif=exif)
    assert decoded(thumbnail(tmp_path / "x.jpg")).size == (20, 40)


def test_large_jpeg_is_decoded_at_reduced_size(tmp_path):
    colours = Image.linear_gradient("L").resize((3000, 2000)).convert("RGB")
    colours.save(tmp_path / "x.jpg", quality=95)
    assert min(open_image(tmp_path / "x.jpg", about=640).size) >= 640 > 2000 / 4
    found = np.asarray(decoded(thumbnail(tmp_path / "x.jpg"))).astype(int)
    assert abs(found - np.asarray(colours.resize((320, 213)))).mean() < 3
