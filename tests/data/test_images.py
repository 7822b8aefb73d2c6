"""Opening and finding images, and open_clip's transform."""

from __future__ import annotations

import importlib.util
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from common.errors import UserError
from data.image_files import find_images, images_in, unread
from data.images import ImageError, build_transform, open_image

PREPROCESS = {"size": 32, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "interpolation": "bicubic"}


def noise(width: int = 24, height: int = 16) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def pixels_of(path: Path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


# --- open_image


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_lossless_formats_keep_their_pixels(tmp_path: Path, suffix: str) -> None:
    path = save(noise(), tmp_path / f"a.{suffix}")
    assert (pixels_of(path) == np.asarray(noise())).all()


def test_format_is_decided_by_content(tmp_path: Path) -> None:
    path = save(noise(), tmp_path / "really_a_png.jpg", format="PNG")
    assert (pixels_of(path) == np.asarray(noise())).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(tmp_path: Path, orientation: int) -> None:
    quarters = Image.new("RGB", (32, 16))
    for box, color in (((0, 0, 16, 8), "red"), ((16, 0, 32, 8), "lime"), ((0, 8, 16, 16), "blue")):
        quarters.paste(color, box)
    # A camera in this orientation stores the scene rotated the other way.
    stored = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }.get(orientation, [])
    turned = quarters
    for step in stored:
        turned = turned.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(turned, tmp_path / "a.png", exif=exif)
    opened = open_image(path)
    assert opened.size == (32, 16)
    assert (np.asarray(opened) == np.asarray(quarters)).all()
    assert not opened.info and opened.getexif().get(0x0112, 1) == 1


def test_unreadable_exif_is_ignored(tmp_path: Path) -> None:
    path = save(noise(), tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert (pixels_of(path) == np.asarray(noise())).all()


def test_transparency_becomes_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    image.putpixel((2, 0), (200, 0, 0, 51))  # a fifth
    assert pixels_of(save(image, tmp_path / "a.png"))[0].tolist() == [[200, 0, 0], [255, 255, 255], [244, 204, 204]]


def test_transparent_gray_and_palette_become_white(tmp_path: Path) -> None:
    grey_alpha = Image.new("LA", (2, 1), (10, 255))
    grey_alpha.putpixel((1, 0), (10, 0))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    grey = Image.new("L", (2, 1), 10)
    grey.putpixel((1, 0), 11)
    assert pixels_of(save(grey_alpha, tmp_path / "la.png"))[0].tolist() == [[10] * 3, [255] * 3]
    assert pixels_of(save(palette, tmp_path / "p.png", transparency=1))[0].tolist() == [[10, 20, 30], [255] * 3]
    assert pixels_of(save(palette, tmp_path / "p.gif", transparency=1))[0].tolist() == [[10, 20, 30], [255] * 3]
    assert pixels_of(save(grey, tmp_path / "l.png", transparency=11))[0].tolist() == [[10] * 3, [255] * 3]


def test_grayscale_bilevel_and_palette(tmp_path: Path) -> None:
    grey = noise().convert("L")
    assert (pixels_of(save(grey, tmp_path / "l.png")) == np.asarray(grey)[..., None]).all()
    bilevel = grey.convert("1")
    assert (pixels_of(save(bilevel, tmp_path / "1.png")) == np.asarray(bilevel)[..., None] * 255).all()
    palette = noise().quantize(16)
    assert (pixels_of(save(palette, tmp_path / "p.png")) == np.asarray(palette.convert("RGB"))).all()


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_16_bit_grayscale_is_scaled(tmp_path: Path, suffix: str) -> None:
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    path = save(Image.fromarray(ramp), tmp_path / f"a.{suffix}")
    assert pixels_of(path)[..., 0].ravel().tolist() == list(range(256))


def write_tiff(path: Path, pixels: bytes, *, bits: int, white_is_zero: bool, order: str = "<", form: int = 1) -> Path:
    """Write 4 x 1 gray pixels; order: "<" or ">"; form: 1 unsigned, 2 signed, 3 float."""
    tags = {256: 4, 257: 1, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 273: 122, 277: 1, 279: 99, 339: form}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags))
    path.write_bytes((head + entries).ljust(122, b"\0") + pixels.ljust(99, b"\0"))
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_tiff_of_every_depth(tmp_path: Path, bits: int, white_is_zero: bool, order: str) -> None:
    white = 2**bits - 1
    values = [0, white, white // 4, white]
    packed = int("".join(f"{value:0{bits}b}" for value in values).ljust(8, "0"), 2)
    pixels = packed.to_bytes(max(1, 4 * bits // 8), "big")
    if bits == 16 and order == "<":
        pixels = np.array(values, "<u2").tobytes()
    path = write_tiff(tmp_path / "a.tif", pixels, bits=bits, white_is_zero=white_is_zero, order=order)
    shares = [value / white for value in values]
    expected = [round(255 * (1 - share if white_is_zero else share)) for share in shares]
    assert pixels_of(path)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("kind", ["float", "unsigned 32 bits", "alpha", "fax"])
def test_white_is_zero_in_other_tiffs(tmp_path: Path, kind: str) -> None:
    path, expected = tmp_path / "a.tif", [255, 0, 191, 0]
    if kind == "float":
        pixels = np.array([0, 1, 0.25, 1], "<f4").tobytes()
        write_tiff(path, pixels, bits=32, white_is_zero=True, form=3)
    elif kind == "unsigned 32 bits":
        pixels = np.array([0, 2**32 - 1, 2**30, 2**32 - 1], "<u4").tobytes()
        write_tiff(path, pixels, bits=32, white_is_zero=True)
    elif kind == "alpha":
        pixels = np.array([[[0, 255], [255, 255], [64, 255], [255, 255]]], np.uint8)
        save(Image.fromarray(pixels, "LA"), path, tiffinfo={262: 0})
    else:
        expected = [255, 0, 255, 0]
        save(Image.fromarray(np.array([expected], np.uint8)).convert("1"), path, compression="group4")
    assert pixels_of(path)[0, :, 0].tolist() == expected


def test_unsigned_32_bits(tmp_path: Path) -> None:
    values = np.array([0, 2**32 - 1, 2**30, 2**31], "<u4").tobytes()
    path = write_tiff(tmp_path / "a.tif", values, bits=32, white_is_zero=False)
    assert pixels_of(path)[0, :, 0].tolist() == [0, 255, 64, 128]


def test_transparent_value_of_16_bit_grayscale(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.array([[257, 512]], np.uint16)), tmp_path / "a.png")
    chunk = b"tRNS" + (512).to_bytes(2, "big")
    data = path.read_bytes()
    at = data.index(b"IDAT") - 4
    path.write_bytes(data[:at] + (2).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[at:])
    assert pixels_of(path)[0].tolist() == [[1] * 3, [255] * 3]


@pytest.mark.parametrize(
    ("values", "expected"), [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 100.0, 255.0], [0, 100, 255])]
)
def test_float_grayscale(tmp_path: Path, values: list[float], expected: list[int]) -> None:
    path = save(Image.fromarray(np.array([values], np.float32)), tmp_path / "a.tiff")
    assert pixels_of(path)[0, :, 0].tolist() == expected


def test_nan_and_infinite_pixels(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.array([[0.0, np.nan]], np.float32)), tmp_path / "a.tiff")
    with pytest.raises(ImageError, match="NaN or infinite"):
        open_image(path)


def test_cmyk_keeps_its_colors(tmp_path: Path) -> None:
    orange = Image.new("CMYK", (32, 32), (0, 128, 255, 0))
    for path in (save(orange, tmp_path / "a.jpg", quality=98), save(orange, tmp_path / "a.tiff")):
        assert np.abs(pixels_of(path) - [255, 127, 0]).max() <= 4


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    path = save(red, tmp_path / "a.gif", save_all=True, append_images=[blue])
    assert (pixels_of(path) == [255, 0, 0]).all()


def test_truncated_images(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.webp", "a.tiff"):
        path = save(noise(200, 200), tmp_path / name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ImageError, match=r"damaged \(.+\)|not a readable image") as caught:
            open_image(path)
        assert str(tmp_path) not in str(caught.value)


def test_damaged_png(tmp_path: Path) -> None:
    path = save(noise(64, 64), tmp_path / "a.png")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ImageError, match="damaged"):
        open_image(path)


@pytest.mark.parametrize("chunk", ["profile", "compressed text", "international text", "many texts"])
def test_png_with_large_metadata(tmp_path: Path, chunk: str) -> None:
    """The pixels are whole; Pillow's limits are there for metadata that explode."""
    large, info = "x" * (4 << 20), PngInfo()
    if chunk == "many texts":
        for i in range(70):
            info.add_text(f"k{i}", large[: 1 << 20], zip=True)
    elif chunk != "profile":
        info.add_text("k", large, zip=True) if chunk == "compressed text" else info.add_itxt("k", large, zip=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # upright after a quarter turn
    profile = {"icc_profile": os.urandom(2 << 20)} if chunk == "profile" else {}
    Image.new("RGB", (6, 4), (10, 20, 30)).save(tmp_path / "a.png", pnginfo=info, exif=exif, **profile)
    with pytest.raises(ValueError, match="MAX_TEXT"), Image.open(tmp_path / "a.png") as plain:
        plain.load()
    picture = open_image(tmp_path / "a.png")
    assert picture.size == (4, 6) and picture.getpixel((0, 0)) == (10, 20, 30)


def test_jpeg_truncated_anywhere_is_read_or_rejected(tmp_path: Path) -> None:
    data = save(noise(), tmp_path / "whole.jpg").read_bytes()
    refused = 0
    for length in range(1, len(data), 7):
        path = tmp_path / "cut.jpg"
        path.write_bytes(data[:length])
        try:
            assert open_image(path).size == (24, 16)
        except ImageError:
            refused += 1
    assert refused > len(data) // 7 - 3  # only truncation within the end marker is harmless


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 5}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_without_end_marker(tmp_path: Path, mode: str, options: dict) -> None:
    whole = save(noise(100, 60).convert(mode), tmp_path / "whole.jpg", **options)
    expected, data = pixels_of(whole), whole.read_bytes()
    path = tmp_path / "cut.jpg"
    for cut in (1, 2):
        path.write_bytes(data[:-cut])
        assert (pixels_of(path) == expected).all()
    refused = 0
    for cut in range(3, 300):
        path.write_bytes(data[:-cut])
        try:
            assert (pixels_of(path) == expected).all(), "as a cut between two scans may be"
        except ImageError:
            refused += 1
    assert refused > 290


@pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="pillow-heif is not installed")
def test_heic_is_read(tmp_path: Path) -> None:
    open_image(save(noise(), tmp_path / "a.png"))  # registers pillow-heif
    path = save(Image.new("RGB", (64, 48), (200, 50, 30)), tmp_path / "a.heic")
    picture = open_image(path)
    assert picture.size == (64, 48)
    assert np.abs(np.asarray(picture).astype(int) - (200, 50, 30)).max() <= 4


@pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is not None, reason="pillow-heif is installed")
def test_heic_without_pillow_heif(tmp_path: Path) -> None:
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 100)
    with pytest.raises(ImageError, match="pip install pillow-heif"):
        open_image(tmp_path / "a.HEIC")


def test_files_that_are_not_images(tmp_path: Path) -> None:
    text, empty, folder, eps = (tmp_path / name for name in ("text.jpg", "empty.jpg", "folder.jpg", "a.eps"))
    text.write_text("hello, I am not a picture\n" * 100)
    empty.touch()
    folder.mkdir()
    save(noise(), eps)
    for path, reason in (
        (text, "not a readable image"),
        (empty, "the file is empty"),
        (folder, "not a file"),
        (tmp_path / "missing.jpg", "no such file"),
        (text / "below.jpg", "no such file"),
        (eps, "not a readable image"),  # opening one would start Ghostscript
    ):
        with pytest.raises(ImageError, match=reason) as caught:
            open_image(path)
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_no_permission(tmp_path: Path) -> None:
    path = save(noise(), tmp_path / "a.png")
    path.chmod(0)
    with pytest.raises(ImageError, match="permission"):
        open_image(path)


def test_too_many_pixels(tmp_path: Path) -> None:
    path = save(noise(20, 10), tmp_path / "a.png")
    assert open_image(path, max_pixels=200).size == (20, 10)
    with pytest.raises(ImageError, match=r"too many pixels \(20 x 10; the limit is 199\)"):
        open_image(path, max_pixels=199)


def test_pixel_limit_overrides_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(noise(20, 10), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # another library may set it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(path, max_pixels=200).size == (20, 10)
        for limit in (199, 99):  # Pillow warns above its limit and raises above twice its limit
            with pytest.raises(ImageError, match=f"too many pixels .*{limit}"):
                open_image(path, max_pixels=limit)
    assert Image.MAX_IMAGE_PIXELS == 50, "restored"


def test_extreme_aspect_ratio(tmp_path: Path) -> None:
    assert open_image(save(Image.new("L", (200, 1)), tmp_path / "a.png")).size == (200, 1)
    with pytest.raises(ImageError, match=r"too narrow \(1 x 201 pixels\)"):
        open_image(save(Image.new("L", (1, 201)), tmp_path / "b.png"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_files_are_closed(tmp_path: Path) -> None:
    good, bad = save(noise(), tmp_path / "a.png"), save(noise(), tmp_path / "b.jpg")
    bad.write_bytes(bad.read_bytes()[:200])
    open_image(good)
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = []
    for _ in range(5):
        kept.append(open_image(good))
        try:
            open_image(bad)
        except ImageError as error:
            kept.append(error)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- build_transform


def test_transform_equals_open_clips(tmp_path: Path) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    image = open_image(save(noise(60, 40), tmp_path / "a.png"))
    ours = build_transform(PREPROCESS)(image)
    theirs = image_transform_v2(PreprocessCfg(**PREPROCESS), is_train=False)(image)
    assert ours.shape == (3, 32, 32) and ours.dtype == torch.float32
    assert torch.equal(ours, theirs)


def test_transform_accepts_lists_and_none() -> None:
    from omegaconf import OmegaConf

    settings = OmegaConf.create({**PREPROCESS, "size": [32, 32], "fill_color": None, "unknown_to_open_clip": 1})
    assert torch.equal(build_transform(settings)(noise()), build_transform(PREPROCESS)(noise()))


def test_transform_modes_differ() -> None:
    shortest, longest, squash = (
        build_transform({**PREPROCESS, "resize_mode": mode})(noise()) for mode in ("shortest", "longest", "squash")
    )
    assert shortest.shape == longest.shape == squash.shape == (3, 32, 32)
    assert not torch.equal(shortest, squash) and not torch.equal(longest, squash)


@pytest.mark.parametrize("size", [(60, 40), (17, 90), (32, 32), (5, 7)], ids=str)
def test_squashed_bilinear_equals_pillow_resize(size: tuple[int, int]) -> None:
    """NLX-GPT's and SEVLM's transform; Pillow's resize is antialiased, torch's bilinear interpolation is not."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    settings = {"size": 32, "mean": mean, "std": std, "interpolation": "bilinear", "resize_mode": "squash"}
    resized = np.asarray(noise(*size).resize((32, 32), Image.Resampling.BILINEAR), np.float32)
    expected = (resized / np.float32(255) - np.array(mean, np.float32)) / np.array(std, np.float32)
    found = build_transform(settings)(noise(*size))
    assert torch.equal(found, torch.from_numpy(expected).permute(2, 0, 1))
    bicubic = build_transform({**settings, "interpolation": "bicubic"})(noise(*size))
    assert torch.equal(found, bicubic) == (size == (32, 32))


@pytest.mark.parametrize(("size", "left"), [((260, 180), 49), ((100, 60), 74), ((180, 260), 0), ((300, 200), 56)])
def test_crop_of_transformers(size: tuple[int, int], left: int) -> None:
    """An odd margin is rounded down; torchvision rounds half of it to even, here to 50."""
    transform = build_transform({"size": 224, "mean": (0, 0, 0), "std": (1, 1, 1), "crop": "floor"})
    short, long = min(size), max(size)
    scaled = noise(*size).resize([224 * side // short for side in size], Image.Resampling.BICUBIC)
    top = 0 if left else (224 * long // short - 224) // 2
    expected = np.asarray(scaled.crop((left, top, left + 224, top + 224)), np.float32) / np.float32(255)
    assert torch.equal(transform(noise(*size)), torch.from_numpy(expected).permute(2, 0, 1))
    own = build_transform({"size": 224, "mean": (0, 0, 0), "std": (1, 1, 1)})(noise(*size))
    assert torch.equal(own, transform(noise(*size))) == ((224 * long // short - 224) % 4 != 3)


@pytest.mark.parametrize("wrong", [{"interpolation": "lanczos"}, {"resize_mode": "fit"}, {"mode": "L"}])
def test_unknown_transform_settings(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong.values()))}.*invalid: .*bicubic or bilinear"):
        build_transform({**PREPROCESS, **wrong})


# --- find_pictures


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_folder_is_searched_recursively(tmp_path: Path) -> None:
    wanted = [touch(tmp_path / name) for name in ("a/b/deep.JPEG", "a/z.webp", "b.PNG", "c.tif")]
    others = [touch(tmp_path / name) for name in ("a/b/scan.tga", "noend", "notes.txt", "paper.pdf")]
    for name in (".hidden.png", ".cache/x.png", "a/._b.jpg"):
        touch(tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    assert find_images(tmp_path) == (sorted(wanted), [], sorted(others))
    assert unread(sorted(others)).endswith("of an image: 4 (scan.tga, noend, notes.txt, paper.pdf)")
    assert unread(others * 3).endswith(" and 4 more)")


def test_links_are_followed_on_demand(tmp_path: Path) -> None:
    """A folder of links, as subsets are made: to files, to folders, and in circles."""
    outside = touch(tmp_path / "outside" / "deep" / "b.png")
    near, root = touch(tmp_path / "root" / "a.png"), tmp_path / "root"
    (root / "near.png").symlink_to(near)
    (root / "far.png").symlink_to(outside)
    (root / "gone.png").symlink_to(root / "nothing.png")
    (root / "folder").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "circle").symlink_to(root)
    names = [path.name for path in images_in(root).images]
    assert names == ["a.png", "gone.png", "near.png"] and images_in(root).links == [root / "far.png", root / "folder"]
    found = images_in(root, follow_links=True)
    assert [str(path.relative_to(root)) for path in found.images] == [
        "a.png", "far.png", "folder/deep/b.png", "gone.png", "near.png",
    ]  # fmt: skip
    assert not found.links
    (tmp_path / "only links").mkdir()
    (tmp_path / "only links" / "a.png").symlink_to(outside)
    with pytest.raises(UserError, match=r"links that need dataset\.follow_links=true: 1"):
        find_images(tmp_path / "only links")


def test_folder_below_a_hidden_folder(tmp_path: Path) -> None:
    file = touch(tmp_path / ".home" / "pictures" / "a.png")
    assert find_images(file.parent).images == [file]


def test_single_file_is_returned(tmp_path: Path) -> None:
    file = touch(tmp_path / "scan_without_suffix")
    assert find_images(file) == ([file], [], [])


def test_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"image={tmp_path}/none: there is no such file or folder"):
        find_images(tmp_path / "none")
    touch(tmp_path / "notes.txt")
    with pytest.raises(UserError, match=rf"image={tmp_path}: the folder holds no image \(.*\.jpg.*\.png"):
        find_images(tmp_path)


def test_real_paintings_open(shared_data: Path) -> None:
    folder = shared_data / "paintings" / "wikiart"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    pictures = find_images(folder).images
    assert len(pictures) == 90
    for path in pictures:
        image = open_image(path)
        assert image.mode == "RGB" and min(image.size) > 90
