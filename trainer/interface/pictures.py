"""Pictures as Python code has them: paths, PIL images and arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from common.errors import UserError
from data.image_files import id_of
from data.images import ImageError, open_image, rgb_picture

AnyPicture = str | Path | Image.Image | np.ndarray


class Picture(NamedTuple):
    id: str  # with the seed, determines what is drawn: a file's path, or the digest of the pixels
    rgb: Image.Image


def as_list(images: AnyPicture | Sequence[AnyPicture]) -> tuple[list[AnyPicture], bool]:
    """Return a list of pictures, and whether `images` was a single one."""
    if isinstance(images, AnyPicture):
        return [images], True
    if not isinstance(images, list | tuple):
        raise UserError(f"expected a path, a PIL image, an array, or a list of these, not {type(images).__name__}")
    return list(images), False


def read_picture(image: AnyPicture, *, max_pixels: int) -> Picture:
    """Return a picture as upright RGB; an array is (H, W), (H, W, 3) or (H, W, 4) of uint8.

    Raises:
        UserError: a URL, another type, or a picture that cannot be used.
    """
    if isinstance(image, str) and "://" in image:
        raise UserError(f"{image}: nothing is downloaded; save the picture and give its path")
    try:
        if isinstance(image, str | Path):
            return Picture(id_of(image), open_image(Path(image), max_pixels=max_pixels))
        if isinstance(image, np.ndarray):
            image = _from_array(image)
        if not isinstance(image, Image.Image):
            raise UserError(f"expected a path, a PIL image or an array, not {type(image).__name__}")
        rgb = rgb_picture(image, max_pixels=max_pixels)
    except ImageError as error:
        name = image if isinstance(image, str | Path) else "picture"
        raise UserError(f"{name}: {error}") from error
    return Picture(f"{rgb.width}x{rgb.height} {hashlib.sha256(rgb.tobytes()).hexdigest()}", rgb)


def _from_array(values: np.ndarray) -> Image.Image:
    if values.dtype != np.uint8 or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise UserError(
            f"an array must be uint8 of shape (H, W), (H, W, 3) or (H, W, 4), not {values.dtype} of shape "
            f"{values.shape}"
        )
    return Image.fromarray(values)
