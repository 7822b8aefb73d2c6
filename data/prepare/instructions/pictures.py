"""Pictures as they are sent: a data: URL of the true media type, no larger than need be, and nothing but pixels."""

from __future__ import annotations

import base64
import io
import threading
from pathlib import Path

from PIL import Image

from data.images import open_image

QUALITY = 92  # of JPEG
ONE_AT_A_TIME = threading.Lock()  # Pillow's limit of pixels and Python's warnings are the whole process's


def data_url(path: Path, *, max_side: int, max_pixels: int) -> str:
    """A picture as a data: URL.

    A JPEG or PNG that is small enough and holds nothing but pixels goes as it is. Every other one is encoded anew, as
    JPEG, so that places, names and cameras in its metadata stay here.

    Args:
        max_side: the longest side of what is sent, in pixels.
        max_pixels: of the largest picture that is decoded.

    Raises:
        ImageError: it cannot be opened.
        OSError: it cannot be read.
    """
    with ONE_AT_A_TIME:
        picture = open_image(path, max_pixels=max_pixels)
        kind = _plain(path) if max(picture.size) <= max_side else None
    content = path.read_bytes() if kind else _jpeg(picture, max_side)
    return f"data:{kind or 'image/jpeg'};base64,{base64.b64encode(content).decode('ascii')}"


def _jpeg(picture: Image.Image, max_side: int) -> bytes:
    scale = min(max_side / max(picture.size), 1.0)
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, subsampling="4:4:4")
    return buffer.getvalue()


def _plain(path: Path) -> str | None:
    """The media type of a JPEG or PNG in RGB or grey without metadata; None of all others."""
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            image.load()  # what a PNG says of itself may stand behind its pixels
            if image.mode not in ("RGB", "L") or len(image.getexif()) or getattr(image, "is_animated", False):
                return None
            if image.format == "JPEG" and {name for name, _ in image.applist} <= {"APP0", "APP14"}:
                return "image/jpeg"
            if image.format == "PNG" and image.info.keys() <= {"dpi", "gamma", "srgb"}:
                return "image/png"
    except Exception:  # it can be opened, and whatever else is odd about it shall not be sent
        return None
    return None
