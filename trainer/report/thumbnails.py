"""Pictures small enough to stand in a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from data.images import MAX_PIXELS, ImageError, open_image

THUMBNAIL = 320  # longest side, pixels
LARGEST = 2 * MAX_PIXELS  # of a picture that is only made small here; dataset.max_pixels may be any number
SMALL = 160  # up to this side a picture is enlarged in whole pixels instead of being smoothed


def thumbnail(path: Path) -> dict[str, Any] | None:
    """JPEG data URI, size, and whether it is small enough to be enlarged in whole pixels; None if unreadable."""
    try:
        picture = open_image(path, max_pixels=LARGEST, about=2 * THUMBNAIL)
    except ImageError:
        return None
    small = max(picture.size) <= SMALL
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95 if small else 82, subsampling=0 if small else 2)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"uri": uri, "width": picture.width, "height": picture.height, "small": small}


def flatten(picture: Image.Image) -> Image.Image:
    """RGB, transparent parts on white."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
