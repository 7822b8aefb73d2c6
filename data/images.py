"""Open images safely as upright RGB, and transform them for the vision encoder."""

from __future__ import annotations

import io
import re
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from common.errors import UserError, shorten
from data.color_modes import ImageError, add_tiff_modes, to_rgb
from data.shards import read_picture

if TYPE_CHECKING:
    from torch import Tensor

# Accepted formats, decided by the content of a file, never by its name. Pillow has more, among them some that start
# another program (EPS) or do not decode at all (HDF5).
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "PSD", "QOI", "TIFF"),
    "WEBP",
)
HEIC_SUFFIXES = (".heic", ".heif", ".hif")
MAX_PIXELS = 178_956_970  # Pillow's limit for decompression bombs; dataset.max_pixels overrides it
MAX_ASPECT = 200  # a narrower strip would become huge when its short side is scaled to 224 pixels


def open_image(path: Path | bytes, *, max_pixels: int = MAX_PIXELS, about: int | None = None) -> Image.Image:
    """Return the first frame as 8-bit RGB: EXIF orientation applied, transparency on white, deep grayscale scaled.

    Color profiles are ignored, as in CLIP's training.

    Args:
        path: of the file, an address in a shard (data/shards.py), or the content.
        max_pixels: a larger image is not decoded.
        about: sufficient length of a side in pixels; a JPEG is then decoded at reduced size, which is much faster.

    Raises:
        ImageError: no such file, empty, not an image, damaged or truncated, or of an unusable size.
    """
    path = path if isinstance(path, bytes) else _content(path)
    in_memory = isinstance(path, bytes)
    if not in_memory:
        require_file(path)
    elif not path:
        raise ImageError("the file is empty")
    with _pillow_limit(max_pixels), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, and about the size, which is checked here
        try:
            with io.BytesIO(path) if in_memory else path.open("rb") as file:
                try:
                    return _decode(file, max_pixels, about)
                except (OSError, ValueError) as error:
                    if "MAX_TEXT" in str(error):  # Pillow's limits of a PNG's metadata
                        return _decode(_png_pixels(file), max_pixels, about)
                    if "truncated" in str(error) and (whole := _unended_jpeg(file, max_pixels, about)):
                        return whole
                    raise
        except ImageError:
            raise
        except UnidentifiedImageError as error:
            heic = not in_memory and path.suffix.lower() in HEIC_SUFFIXES
            hint = "; HEIC needs `pip install pillow-heif`" if heic else ""
            raise ImageError(f"its content is not a readable image{'' if 'HEIF' in _formats() else hint}") from error
        except Exception as error:  # decoders raise many kinds for damaged data
            raise ImageError(_reason(error, max_pixels)) from error


def _content(path: Path) -> Path | bytes:
    """Return the bytes at an address in a shard, or `path` itself."""
    try:
        content = read_picture(path)
    except (OSError, ValueError, IndexError) as error:  # also pyarrow's
        raise ImageError(f"it cannot be read from its shard ({shorten(error, 120)})") from error
    return path if content is None else content


def _decode(file: BinaryIO, max_pixels: int, about: int | None) -> Image.Image:
    with Image.open(file, formats=_formats()) as image:
        _check_size(*image.size, max_pixels)
        if about is not None:
            image.draft(None, (about, about))
        image.load()
        with suppress(Exception):  # the pixels may be fine even if the EXIF data are not
            ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)


def rgb_picture(picture: Image.Image, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a copy of a picture in memory as `open_image` would return that of its file.

    Raises:
        ImageError: of an unusable size, or damaged.
    """
    _check_size(*picture.size, max_pixels)
    try:
        with suppress(Exception):
            picture = ImageOps.exif_transpose(picture)
        return to_rgb(picture.copy())
    except ImageError:
        raise
    except Exception as error:  # decoders raise many kinds for damaged data
        raise ImageError(_reason(error, max_pixels)) from error


def _png_pixels(file: BinaryIO) -> BinaryIO:
    """Return a PNG without its texts and color profile, which are not decompressed."""
    file.seek(0)
    kept = [file.read(8)]
    while len(head := file.read(8)) == 8:
        chunk = head + file.read(int.from_bytes(head[:4], "big") + 4)
        if head[4:] not in (b"iCCP", b"iTXt", b"tEXt", b"zTXt"):
            kept.append(chunk)
    return io.BytesIO(b"".join(kept))


def _unended_jpeg(file: BinaryIO, max_pixels: int, about: int | None) -> Image.Image | None:
    """Return a JPEG that lacks only its end marker; None if pixels are missing too.

    The decoder fills what is missing, without an error. So two different continuations are tried: they change the
    pixels unless all bits of a scan are there.
    """
    file.seek(0)
    data = file.read().rstrip(b"\xff")  # half a marker
    scan = data.rfind(b"\xff\xda")
    last = scan + 1 + int.from_bytes(data[scan + 2 : scan + 4])  # byte of its header: the bits left to later scans
    if not data.startswith(b"\xff\xd8") or last >= len(data) or data[last] % 16:
        return None
    restarts = re.findall(rb"\xff([\xd0-\xd7])", data)  # markers numbered in turn; the next may be missing
    restart = bytes([0xFF, 0xD0 | (restarts[-1][0] + 1) % 8 if restarts else 0xD0])
    end, ones = b"\xff\xd9", b"\xaa" * 64
    continued = (data + end, data + ones + restart + ones + end)  # the decoder continues the first with zeros
    first, second = (_decode(io.BytesIO(each), max_pixels, about) for each in continued)
    return first if first.tobytes() == second.tobytes() else None


def _reason(error: Exception, max_pixels: int) -> str:
    reasons = {
        Image.DecompressionBombError: f"it has too many pixels (the limit is {max_pixels:,})",
        PermissionError: "there is no permission to read it",
        MemoryError: "there is not enough memory for it",
    }
    detail = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    return next((text for kind, text in reasons.items() if isinstance(error, kind)), f"it is damaged ({detail})")


@contextmanager
def _pillow_limit(pixels: int) -> Iterator[None]:
    """Set Pillow's own limit; it raises an error above twice the limit."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def require_file(path: Path) -> None:
    """Raise ImageError unless `path` is an ordinary file that is not empty."""
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
    """Return open_clip's inference transform, from an RGB image to (3, H, W) float32.

    Args:
        preprocess: size, mean, std, interpolation, resize_mode, fill_color; OpenAI CLIP's where missing or None.
            resize_to: pixels to resize to before the center is cropped to `size`, if these differ. crop="floor": see
            `_crop`.

    Raises:
        UserError: open_clip rejects a setting.
    """
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
    from torchvision.transforms import CenterCrop

    try:
        scalar = str | int | float | None
        settings = {key: value if isinstance(value, scalar) else tuple(value) for key, value in preprocess.items()}
        config = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), settings))
        transform = image_transform_v2(config, is_train=False)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(
            f"the vision model's preprocessing {dict(preprocess)} is invalid: "
            "interpolation is bicubic or bilinear, resize_mode shortest, longest or squash, mode RGB"
        ) from error
    steps = transform.transforms
    if resize_to := preprocess.get("resize_to"):
        steps[0].size = resize_to
        if config.resize_mode == "squash":
            steps.insert(1, CenterCrop(config.size))
    if preprocess.get("crop") == "floor":
        transform.transforms = [partial(_crop, size=s.size) if isinstance(s, CenterCrop) else s for s in steps]
    return transform


def _crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Crop the center as transformers' processors do, which round an odd margin down; torchvision rounds to even."""
    height, width = size
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    add_tiff_modes()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener  # optional

        register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF is optional in Pillow


@cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of FORMATS in lower case, with their dot."""
    formats = _formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError("it has no pixels")
    if width * height > max_pixels:
        raise ImageError(f"it has too many pixels ({width} x {height}; the limit is {max_pixels:,})")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"it is too narrow ({width} x {height} pixels)")
