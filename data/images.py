"""Pictures: opened safely as upright RGB, and made ready for CLIP."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from common.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# What pictures come in. Pillow knows more, among them formats that start another program (EPS) or only name a file
# without decoding it (HDF5); whether a file's content is one of these is decided by its bytes, never by its name.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "PSD"),
    *("QOI", "TIFF", "WEBP"),
)
MAX_PIXELS = 178_956_970  # Pillow's own limit of a decompression bomb; dataset.max_pixels sets another
MAX_ASPECT = 200  # a transform that makes the short side 224 pixels would make a longer strip gigantic


class ImageError(Exception):
    """Why one picture (or clip) cannot be used: a short reason without the path; the caller may skip it."""


def open_image(path: Path, *, max_pixels: int = MAX_PIXELS, about: int | None = None) -> Image.Image:
    """The picture as 8-bit RGB: turned as its EXIF data say, transparency on white, deep greyscale scaled to 8 bits.

    Of several frames the first is taken. Colour profiles are not applied, as in CLIP's own training.

    Args:
        max_pixels: of the largest picture that is decoded.
        about: pixels of each side that are enough; a JPEG is then decoded smaller, in a fraction of the time.

    Raises:
        ImageError: no such file, empty, no picture, damaged or cut off, or of a size that cannot be used.
    """
    require_file(path)
    with _pillows_limit(max_pixels), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a file's oddities and its size, which is checked here
        try:
            with path.open("rb") as file, Image.open(file, formats=_formats()) as image:
                _check_size(*image.size, max_pixels)
                if about is not None:
                    image.draft(None, (about, about))
                image.load()
                return _to_rgb(_upright(image))
        except ImageError:
            raise
        except UnidentifiedImageError:
            raise ImageError("its content is not a picture that can be read") from None
        except Image.DecompressionBombError:
            raise ImageError(f"it has too many pixels (the limit is {max_pixels:,})") from None
        except PermissionError:
            raise ImageError("there is no permission to read it") from None
        except MemoryError:
            raise ImageError("there is not enough memory for it") from None
        except Exception as error:  # decoders answer damaged data with exceptions of every kind
            raise ImageError(f"it is damaged ({_first_line(error)})") from error


@contextmanager
def _pillows_limit(pixels: int) -> Iterator[None]:
    """Pillow refuses by itself what has twice its limit, which here follows ours."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def require_file(path: Path) -> None:
    """Raises ImageError unless `path` is an ordinary file that is not empty."""
    try:
        info = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("there is no such file") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"it cannot be reached ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(info.st_mode):
        raise ImageError("it is not a file")
    if info.st_size == 0:
        raise ImageError("the file is empty")


def build_transform(preprocess: Mapping[str, object]) -> Callable[[Image.Image], Tensor]:
    """open_clip's own inference transform, from RGB picture to (3, H, W) float32, for these settings of a model.

    `preprocess` holds size, mean, std, interpolation, resize_mode and fill_color; what is absent or None is OpenAI's.

    Raises:
        UserError: a setting that open_clip does not know.
    """
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    def plain(value: object) -> object:
        return value if isinstance(value, str | int | float | None) else tuple(value)

    try:
        settings = {key: plain(value) for key, value in preprocess.items()}
        config = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), settings))
        return image_transform_v2(config, is_train=False)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(
            f"the vision model's preprocessing {dict(preprocess)} is not understood: "
            "interpolation is bicubic or bilinear, resize_mode shortest, longest or squash, mode RGB"
        ) from error


def find_pictures(path: Path, *, outside: list[Path] | None = None) -> list[Path]:
    """The file itself, or the pictures in a folder and all its subfolders, sorted; hidden ones are left out.

    Args:
        outside: gets the symbolic links to files out of the folder, which are left out too: who made the folder could
            have any picture of this machine shown.

    Raises:
        UserError: nothing is there, or the folder holds no picture.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"image={path}: there is no such file or folder")
    found, leading_out = pictures_in(path)
    if outside is not None:
        outside += leading_out
    if not found:
        raise UserError(f"image={path}: the folder holds no picture ({', '.join(sorted(_suffixes()))})")
    return found


def pictures_in(folder: Path, *, root: Path | None = None) -> tuple[list[Path], list[Path]]:
    """The pictures in a folder and all its subfolders, by the endings of their names, without hidden ones; sorted.

    Returns:
        the pictures, and apart from them the symbolic links to files out of `root` (default: the folder).
    """
    found = [*_below(folder)]
    inside = os.path.realpath(root or folder)
    outside = {file for file in found if file.is_symlink() and not Path(os.path.realpath(file)).is_relative_to(inside)}
    return sorted(file for file in found if file not in outside), sorted(outside)


def has_pictures(folder: Path) -> bool:
    """Whether there is one in it, links included."""
    return next(_below(folder), None) is not None


def _below(folder: Path) -> Iterator[Path]:
    for place, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        candidates = (Path(place, name) for name in names if not name.startswith("."))
        yield from (file for file in candidates if file.suffix.lower() in _suffixes() and file.is_file())


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF, for one, is not in every Pillow


@cache
def _suffixes() -> frozenset[str]:
    formats = _formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError("it has no pixels")
    if width * height > max_pixels:
        raise ImageError(f"it has too many pixels ({width} x {height}; the limit is {max_pixels:,})")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"it is too narrow a strip ({width} x {height} pixels)")


def _upright(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # unreadable EXIF data say nothing against the pixels
        return image
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        rgb = _deep_grey(image).convert("RGB")
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        rgb = Image.alpha_composite(white, rgba).convert("RGB")
    else:
        rgb = image.convert("RGB")
    rgb.info.clear()
    return rgb


def _deep_grey(image: Image.Image) -> Image.Image:
    """Greyscale of 16 bits, 32 bits or floats as 8 bits; Pillow's own conversion would clip everything above 255."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError("it has pixels that are not finite numbers")
    usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    largest = float(values.max())
    white = next((level for level in usual if largest <= level), largest)
    grey = np.clip(np.rint(values * (255.0 / white)), 0, 255).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:120]
