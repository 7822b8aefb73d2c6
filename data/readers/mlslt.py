"""Read MLSLT, sign-language clips in ten languages with their English translation, and the frames of a clip."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from common.errors import UserError
from data.images import MAX_PIXELS, ImageError, require_file
from data.readers.annotations import (
    collect_faults,
    id_of,
    image_path,
    list_of,
    load_json,
    object_of,
    text_of,
    wrong_format,
)
from data.samples import Samples
from data.schema import Sample

SIGN_LANGUAGES = ("zh", "uk", "ru", "bg", "is", "de", "it", "sv", "lt", "en")
TEXT_LANGUAGE = "en"
# A playlist named like a video could make FFmpeg open other files and addresses, so only containers are allowed.
LIMITS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg", "protocol_whitelist": "none"}
VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov"}
LONGEST = 100_000  # frames, more than an hour; a small file can hold any number of equal frames


def read_mlslt(
    json_path: Path, visual_dir: Path, *, sign_languages: Sequence[str], faults: list[str] | None = None
) -> Samples:
    """Return one sample per item and chosen sign language: the clip `<id>/<lang>.mp4` and the English text.

    Items are in the order of the file, the languages of an item in the order of `sign_languages`.

    Args:
        visual_dir: the folder with the clips, which need not exist.
        faults: collects the faults of single items, which are then skipped; without it the first is raised.

    Raises:
        UserError: an unknown language, or a fault in the file; names the file, the item id and the key.
    """
    languages = _check_languages(sign_languages)
    data = load_json(json_path)
    if not isinstance(data, list) or not data:
        raise wrong_format(json_path, data, wanted="mlslt")
    seen: set[str] = set()

    def samples() -> Iterator[Sample]:
        for i, entry in enumerate(data):
            where = f"{json_path}: [{i}]"
            with collect_faults(faults):
                item = object_of(entry, where=where)
                id = id_of(item, "id", where=where)
                if id in seen:
                    raise UserError(f"{where}: the id {id!r} appears twice; keep one of them")
                seen.add(id)
                yield from _clips(item, id, visual_dir, languages, where=f"{json_path}: item {id!r}")

    found = Samples.pack(samples())
    if not found and not faults:
        raise UserError(f"{json_path}: none of its {len(data)} items is signed in {', '.join(languages)}")
    return found


def is_clip(path: Path) -> bool:
    """Return whether the file name has the suffix of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def read_frames(
    path: Path,
    *,
    max_frames: int,
    max_pixels: int = MAX_PIXELS,
    transform: Callable[[Image.Image], Any] | None = None,
) -> list[Image.Image] | list[Any]:
    """Return all frames of a clip as RGB images, or `max_frames` evenly spaced ones including the first and last.

    As a player shows them: turned as the file says, with square pixels, and not the cover of an album.

    Args:
        max_pixels: largest frame that is decoded.
        transform: applied to each frame at once, so that a long clip is never in memory at full size.

    Raises:
        ImageError: missing, empty, not a video, damaged, too large or too long.
    """
    if max_frames < 1:
        raise UserError(f"dataset.max_frames={max_frames}: must be at least 1")
    require_file(path)
    convert = transform or (lambda image: image)
    frames, count = [], 0
    for frame in _decode(path, max_pixels):
        count += 1
        if count > LONGEST:
            raise ImageError(f"the video has more than {LONGEST:,} frames")
        if count <= max_frames:
            frames.append(convert(frame()))
        else:
            frames.clear()  # too long to keep them all; the rest is only counted
    if not count:
        raise ImageError("the video has no frame")
    if count <= max_frames:
        return frames
    last = count - 1
    wanted = {count // 2} if max_frames == 1 else {round(i * last / (max_frames - 1)) for i in range(max_frames)}
    return [convert(frame()) for i, frame in enumerate(_decode(path, max_pixels)) if i in wanted]


def _check_languages(sign_languages: Sequence[str]) -> tuple[str, ...]:
    chosen = (sign_languages,) if isinstance(sign_languages, str) else tuple(dict.fromkeys(sign_languages))
    unknown = [language for language in chosen if language not in SIGN_LANGUAGES]
    if unknown or not chosen:
        problem = f"{unknown[0]!r} is not one of" if unknown else "give at least one of"
        raise UserError(f"dataset.sign_languages: {problem} {', '.join(SIGN_LANGUAGES)}")
    return chosen


def _clips(
    item: dict[str, object], id: str, visual_dir: Path, languages: tuple[str, ...], *, where: str
) -> list[Sample]:
    texts: dict[str, str] = {}
    for i, entry in enumerate(list_of(item, "sign_list", where=where)):
        place = f"{where}: 'sign_list[{i}]'"
        record = object_of(entry, where=place)
        language = text_of(record, "lang", where=place)
        if language in texts:
            raise UserError(f"{place}: the language {language!r} appears twice; keep one of them")
        texts[language] = text_of(record, "text", where=place).strip()
    if not texts.get(TEXT_LANGUAGE):
        raise UserError(f"{where}: 'sign_list' has no text for 'lang' {TEXT_LANGUAGE!r}, the target text")
    return [
        Sample(
            id=f"{id}/{language}",
            path=image_path(visual_dir, f"{id}/{language}.mp4", where=where),
            texts=(texts[TEXT_LANGUAGE],),
        )
        for language in languages
        if language in texts
    ]


def _decode(path: Path, max_pixels: int) -> Iterator[Callable[[], Image.Image]]:
    """Yield, for each frame of the film, the function that converts it."""
    import av

    try:
        # Pass an open file: FFmpeg treats a file name that looks like a URL as one.
        with path.open("rb") as file, av.open(file, options=LIMITS) as container:
            cover = av.stream.Disposition.attached_pic
            stream = next((stream for stream in container.streams.video if not stream.disposition & cover), None)
            if stream is None:
                raise ImageError("the file has no video stream")
            if stream.codec_context is None:
                raise ImageError("the video is damaged or in an unknown format")
            width, height = stream.codec_context.width, stream.codec_context.height
            aspect = stream.sample_aspect_ratio or 1
            if width * height * max(aspect, 1) > max_pixels:
                raise ImageError(f"its frames have too many pixels ({width} x {height}; the limit is {max_pixels:,})")
            # The frame size can change within a clip. FFmpeg's own limit must leave room for the codec's padding.
            stream.codec_context.options = {"max_pixels": str(4 * max_pixels + (1 << 20))}
            for frame in container.decode(stream):
                yield functools.partial(_shown, frame, aspect)
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(f"it cannot be read ({error.strerror})") from error
    except Exception as error:  # FFmpeg's errors, and those of PyAV for damaged data, e.g. a title that is not UTF-8
        reason = error.strerror if isinstance(error, av.FFmpegError) else type(error).__name__
        raise ImageError(f"the video is damaged or in an unknown format ({reason})") from error


def _shown(frame: Any, pixel_aspect: Fraction | int) -> Image.Image:
    image = frame.to_image()
    if pixel_aspect != 1:
        image = image.resize((max(round(image.width * pixel_aspect), 1), image.height))
    return image.rotate(frame.rotation, expand=True)
