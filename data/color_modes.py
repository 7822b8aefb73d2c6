"""Convert an image of any mode and depth to 8-bit RGB, a strip at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin
from PIL.ExifTags import Base

STRIP = 1 << 20  # pixels that are converted at a time


class ImageError(Exception):
    """An image or clip cannot be used: a short reason without the path; the caller may skip it."""


def add_tiff_modes() -> None:
    """Add gray TIFFs of more than 8 bits, or with alpha, in which white is zero; 12 bits in either byte order."""
    modes = TiffImagePlugin.OPEN_INFO
    for order in (b"II", b"MM"):  # 12-bit pixels are packed alike in both
        modes.setdefault((order, 1, (1,), 1, (12,), ()), ("I;16", "I;12"))
    for (order, photometric, *others), (mode, rawmode) in [*modes.items()]:
        if photometric == 1 and mode not in ("1", "L"):
            modes.setdefault((order, 0, *others), (mode, rawmode))


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image as RGB, by no more memory than that of the result: 4 bytes a pixel in Pillow."""
    if image.mode == "F" or image.mode.startswith("I"):
        rgb = _in_strips(image, _deep_grey(image))
    elif image.has_transparency_data:
        inverted = image.mode == "LA" and _white_is_zero(image)
        rgb = _in_strips(image, lambda strip: _on_white(_invert(strip) if inverted else strip))
    else:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    rgb.info.clear()
    return rgb


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    rgb = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        rgb.paste(convert(strip), (0, top))
    return rgb


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield the first row and the pixels of strips of about a megapixel."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _invert(image: Image.Image) -> Image.Image:
    return Image.merge("LA", (ImageOps.invert(image.getchannel("L")), image.getchannel("A")))


def _deep_grey(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return what scales strips of 16-bit, 32-bit or float grayscale to 8 bits; Pillow's own conversion clips at 255.

    Raises:
        ImageError: NaN or infinite pixels.
    """
    bits = _tiff_tag(image, Base.BitsPerSample)
    # Pillow reads unsigned values as signed.
    unsigned = bits == (32,) and image.mode == "I" and _tiff_tag(image, Base.SampleFormat) != (2,)

    def values_of(strip: Image.Image) -> np.ndarray:
        values = np.asarray(strip).astype(np.float64)
        return values % 2**32 if unsigned else values

    ranges = np.array([(values.min(), values.max()) for values in (values_of(strip) for _, strip in _strips(image))])
    if not np.isfinite(ranges).all():
        raise ImageError("it has NaN or infinite pixels")
    largest = float(ranges.max())
    usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (4095.0,) if bits == (12,) else (65535.0,)
    white = next((level for level in usual if largest <= level), largest)
    inverted, transparent = _white_is_zero(image), image.info.get("transparency")

    def scale(strip: Image.Image) -> Image.Image:
        values = values_of(strip)
        grey = np.clip(np.rint(values * (255.0 / white)), 0, 255).astype(np.uint8)
        grey = 255 - grey if inverted else grey
        if isinstance(transparent, int):
            grey[values == transparent] = 255
        return Image.fromarray(grey).convert("RGB")

    return scale


def _white_is_zero(image: Image.Image) -> bool:
    return image.format == "TIFF" and _tiff_tag(image, Base.PhotometricInterpretation) in (None, 0)  # 0 by default


def _tiff_tag(image: Image.Image, tag: Base) -> object:
    return image.tag_v2.get(tag) if image.format == "TIFF" else None
