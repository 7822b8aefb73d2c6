"""Pictures small enough to stand in a page."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

THUMBNAIL = 320  # longest side, pixels
SMALL = 160  # up to this side a picture is enlarged in whole pixels instead of being smoothed


def thumbnail(path: Path) -> dict[str, Any] | None:
    """JPEG data URI, size, and whether it is small enough to be enlarged in whole pixels; None if unreadable."""
    try:
        with warnings.catch_warnings(), Image.open(path) as opened:
            warnings.simplefilter("ignore")  # a huge picture is only shrunk here
            opened.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
            picture = flatten(ImageOps.exif_transpose(opened))
            small = max(picture.size) <= SMALL
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=95 if small else 82, subsampling=0 if small else 2)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"uri": uri, "width": picture.width, "height": picture.height, "small": small}


def flatten(picture: Image.Image) -> Image.Image:
    """RGB, transparent parts on white."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
