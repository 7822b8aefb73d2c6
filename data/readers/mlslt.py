"""MLSLT: sign-language clips of ten languages, each to be told in English; and the frames of a clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from common.errors import UserError
from data.images import MAX_PIXELS, ImageError, require_file
from data.readers.annotations import (
    id_of,
    image_path,
    list_of,
    load_json,
    object_of,
    text_of,
    tolerated,
    wrong_format,
)
from data.samples import Samples
from data.schema import Sample

SIGN_LANGUAGES = ("zh", "uk", "ru", "bg", "is", "de", "it", "sv", "lt", "en")
TEXT_LANGUAGE = "en"
# A playlist in a video's clothes could make FFmpeg open other files and addresses; and no container may name any.
LIMITS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg", "protocol_whitelist": "none"}
VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov"}
LONGEST = 100_000  # frames, more than an hour; a small file may hold any number of equal ones


def read_mlslt(
    json_path: Path,
    visual_dir: Path,
    *,
    sign_languages: Sequence[str],
    faults: list[str] | None = None,
) -> Samples:
    """One sample per item and chosen language that it is signed in: the clip `<id>/<lang>.mp4` and the English text.

    Order: items as in the file, and within an item the languages as chosen.

    Args:
        visual_dir: the folder that the clips are in; nothing is looked for in it.
        faults: gets the faults of single items, which are then left out; without it the first one is raised.

    Raises:
        UserError: an unknown language, or a fault in the file, named by file, item id and key.
    """
    languages = _check_languages(sign_languages)
    data = load_json(json_path)
    if not isinstance(data, list) or not data:
        raise wrong_format(json_path, data, wanted="mlslt")
    samples = Samples.pack(_samples(data, json_path, visual_dir, languages, faults))
    if not samples and not faults:
        raise UserError(f"{json_path}: none of its {len(data)} items is signed in {', '.join(languages)}")
    return samples


def _samples(
    data: list, json_path: Path, visual_dir: Path, languages: tuple[str, ...], faults: list[str] | None
) -> Iterator[Sample]:
    seen: set[str] = set()
    for i, entry in enumerate(data):
        where = f"{json_path}: [{i}]"
        clips: list[Sample] = []
        with tolerated(faults):
            item = object_of(entry, where=where)
            id = id_of(item, "id", where=where)
            if id in seen:
                raise UserError(f"{where}: the id {id!r} stands twice; keep one of them")
            seen.add(id)
            clips = _clips(item, id, visual_dir, languages, where=f"{json_path}: item {id!r}")
        yield from clips


def is_clip(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def read_frames(
    path: Path,
    *,
    max_frames: int,
    max_pixels: int = MAX_PIXELS,
    transform: Callable[[Image.Image], Any] | None = None,
) -> list[Image.Image] | list[Any]:
    """All frames of a clip as RGB pictures, or `max_frames` of them from first to last at even distances.

    With `transform`, each frame is passed through it at once, so that a long clip never lies in memory at full size.

    Args:
        max_pixels: largest frame that is decoded.

    Raises:
        ImageError: no such file, empty, no video, damaged, or too large or too long.
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
            frames.append(convert(frame.to_image()))
        else:
            frames.clear()  # too long to keep all: from here on only counted
    if not count:
        raise ImageError("the video holds no frame")
    if count <= max_frames:
        return frames
    wanted = set(_spread(count, max_frames))
    return [convert(frame.to_image()) for i, frame in enumerate(_decode(path, max_pixels)) if i in wanted]


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
            raise UserError(f"{place}: the language {language!r} stands twice; keep one of them")
        texts[language] = text_of(record, "text", where=place).strip()
    if not texts.get(TEXT_LANGUAGE):
        raise UserError(f"{where}: 'sign_list' has no text for 'lang' {TEXT_LANGUAGE!r}, the text to be written")
    return [
        Sample(
            id=f"{id}/{language}",
            path=image_path(visual_dir, f"{id}/{language}.mp4", where=where),
            texts=(texts[TEXT_LANGUAGE],),
        )
        for language in languages
        if language in texts
    ]


def _decode(path: Path, max_pixels: int) -> Iterator[Any]:
    """The frames (av.VideoFrame) of the first video stream, one at a time."""
    import av

    try:
        # An open file instead of its name, which FFmpeg would take for an address if it looked like one.
        with path.open("rb") as file, av.open(file, options=LIMITS) as container:
            if not container.streams.video:
                raise ImageError("it holds no video")
            stream = container.streams.video[0]
            _check_stream(stream, max_pixels)
            # Frames may change their size on the way; FFmpeg counts with the edges that a codec adds.
            stream.codec_context.options = {"max_pixels": str(4 * max_pixels + (1 << 20))}
            yield from container.decode(stream)
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(f"it cannot be read ({error.strerror})") from error
    except Exception as error:  # FFmpeg's own, and what PyAV makes of damaged data, such as a title that is no UTF-8
        reason = error.strerror if isinstance(error, av.FFmpegError) else type(error).__name__
        raise ImageError(f"the video is damaged or of an unknown kind ({reason})") from error


def _check_stream(stream: Any, max_pixels: int) -> None:
    if stream.codec_context is None:
        raise ImageError("the video is damaged or of an unknown kind")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > max_pixels:
        raise ImageError(f"its frames have too many pixels ({width} x {height}; the limit is {max_pixels:,})")


def _spread(count: int, picks: int) -> list[int]:
    """`picks` different indices below `count`, from the first to the last; the middle one for a single pick."""
    if picks == 1:
        return [count // 2]
    return [round(i * (count - 1) / (picks - 1)) for i in range(picks)]
