"""Small images for pages and figures."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from data.images import MAX_PIXELS, ImageError, open_image

THUMBNAIL = 320  # longest side, pixels
LARGEST = 2 * MAX_PIXELS  # pixels of an image to shrink, whatever dataset.max_pixels is
SMALL = 160  # longest side of an image that is shown with sharp pixels instead of smoothed


def thumbnail(path: Path) -> dict[str, Any] | None:
    """Return JPEG data URI, size, and whether to show sharp pixels (see SMALL); None if unreadable."""
    try:
        return thumbnail_of(open_image(path, max_pixels=LARGEST, about=2 * THUMBNAIL))
    except ImageError:
        return None


def thumbnail_of(picture: Image.Image) -> dict[str, Any]:
    """Return the entries of `thumbnail` for an RGB picture, which is shrunk in place."""
    small = max(picture.size) <= SMALL
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    uri = data_uri(picture, "JPEG", quality=95 if small else 82, subsampling=0 if small else 2)
    return {"uri": uri, "width": picture.width, "height": picture.height, "small": small}


def data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    """Return the picture as a data URI.

    Args:
        kind: "JPEG" or "PNG".
        options: of Pillow's `save`.
    """
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
