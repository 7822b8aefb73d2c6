"""Read pictures with mean ratings of valence, arousal and, if there are any, dominance: OASIS, NAPS, IAPS, EmoArt."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from common.errors import UserError
from common.reading import expand_user
from data.emotions import EMOTIONS
from data.images import suffixes
from data.readers.annotations import id_of, image_path
from data.readers.rating_table import DIMENSIONS, NAME_SCALE, Rows, Scale, rating, rating_rows, scale_of
from data.samples import Samples
from data.schema import Ratings, Sample, Skipped
from data.split_names import SECTIONS, TRAIN, split_by_hash, split_name

JPEG = ".jpg"  # suffix of the pictures of OASIS, NAPS and IAPS, whose tables name them without it


class _Row(NamedTuple):
    where: str
    name: str  # of the image, as in the table
    path: Path
    values: tuple[float, float, float]  # in the unit of the file
    split: str  # "" without the column


def rating_files(dataset: Mapping, split: str) -> tuple[Path, Path]:
    """Return file and folder of a split: those of train_ds where it has none of its own.

    Raises:
        UserError: neither has.
    """
    found = []
    for key, what in (("json_path", "FILE: the table of ratings"), ("visual_dir", "FOLDER: the pictures")):
        value = dataset[split][key] or dataset["train_ds"][key]
        if value is None:
            raise UserError(f"dataset.name=ratings needs dataset.{split}.{key}={what}")
        found.append(expand_user(value).absolute())
    return found[0], found[1]


def read_ratings(
    path: Path,
    visual_dir: Path,
    *,
    split: str = TRAIN,
    sharing: Sequence[str] = tuple(SECTIONS.values()),
    scale: Sequence[float] | None = None,
    labels: Sequence[str] = EMOTIONS,
    faults: list[str] | None = None,
) -> tuple[Samples, list[Skipped]]:
    """Return a sample per rated picture of a split, without texts, and the rows that cannot be used.

    An image's id is its name in the table. A column split divides the pictures; without one, those of a file that is
    train_ds's and another split's are divided by a hash of each name (data.split_names.split_by_hash).

    Args:
        visual_dir: the folder that image names are relative to; the images need not exist.
        sharing: the splits that read this file.
        scale: lowest and highest rating; None: that of a published set with these columns, else by the range.
        labels: emotions of the network, to which the samples are given.
        faults: collects the faults of single rows, in place of the second result.

    Raises:
        UserError: an unreadable file, a missing column, a scale that cannot be told or does not fit most rows, or no
            picture of this split.
    """
    found: list[str] = []
    records, published = rating_rows(path, found)
    skipped: list[Skipped] = []
    rows = [*_rows(records, visual_dir, skipped)]
    if not rows:
        reason = next((row.reason for row in skipped), found[0] if found else "it has no rows")
        raise UserError(f"{path}: no picture has a rating of valence and arousal ({reason})")
    scale = _scale(rows, scale or published, path)
    kept = [row for row in _once(rows, skipped) if _on_scale(row, scale, skipped)]
    shared = TRAIN in sharing and len(sharing) > 1 and not any(row.split for row in kept)

    def is_of_split(name: str, named: str = "") -> bool:
        return (split_by_hash(name, sharing) if shared else named or split) == split

    chosen = [row for row in kept if is_of_split(row.name, row.split)]
    if not chosen:
        raise UserError(f"{path}: none of its {len(kept):,} rated pictures is of the split {split}")
    skipped += [Skipped(fault.partition(": ")[0], path, fault) for fault in found]
    skipped = [row for row in skipped if is_of_split(row.id)]
    if faults is not None:
        faults += [row.reason for row in skipped]
    samples = (Sample(row.name, row.path, (), ratings=Ratings(*row.values, *scale)) for row in chosen)
    return Samples.pack(samples, labels), [] if faults is not None else skipped


def _rows(records: Rows, visual_dir: Path, skipped: list[Skipped]) -> Iterator[_Row]:
    """Yield the rows with valence and arousal; the others are added to `skipped`."""
    for where, record in records:
        name, path = where, visual_dir
        try:
            name = _name(record, where)
            path = image_path(visual_dir, _file_name(name, visual_dir), where=where)
            values = [rating(record.get(key), where=f"{where}: the {key} of {name!r}") for key in DIMENSIONS]
            if lacking := [key for key, value in zip(DIMENSIONS[:2], values, strict=False) if math.isnan(value)]:
                raise UserError(f"{where}: {name!r} has no {lacking[0]}; complete or delete the row")
            split = split_name(record.get("split"), where=where)
            if "split" in record and not split:
                raise UserError(f"{where}: the split of {name!r} is empty; fill it, or delete the column")
            yield _Row(where, name, path, tuple(values), split)
        except UserError as error:
            skipped.append(Skipped(name, path, str(error)))


def _name(record: Mapping[str, object], where: str) -> str:
    """Return the image as the table names it; IAPS' numbers may be numbers in JSON."""
    value = record.get("image")
    name = f"{value:g}" if isinstance(value, float) else id_of({"image": value}, "image", where=where)
    return re.sub(r"^(\d+)\.0+$", r"\1", name.strip())


def _file_name(name: str, folder: Path) -> str:
    """Return the name with the suffix of the picture, which tables leave out; 2055.1 has none."""
    if not name or PurePath(name).suffix.lower() in suffixes():
        return name
    names = (f"{name}{suffix}" for suffix in ("", JPEG, *sorted(suffixes())))
    return next((other for other in names if (folder / other).is_file()), f"{name}{JPEG}")


def _scale(rows: Sequence[_Row], scale: Sequence[float] | None, path: Path) -> Scale:
    if scale is None:
        return scale_of([value for row in rows for value in row.values], path=path)
    low, high = map(float, scale)
    if not low < high:
        raise UserError(f"dataset.rating_scale=[{low:g},{high:g}]: the lowest rating must be below the highest")
    outside = [row for row in rows if not all(_inside(value, (low, high)) for value in row.values)]
    if 2 * len(outside) > len(rows):
        first = outside[0]
        raise UserError(
            f"{path}: {len(outside):,} of {len(rows):,} pictures have ratings outside the scale {low:g} to {high:g}, "
            f"the first {_shown(first)} ({first.where}); {NAME_SCALE}"
        )
    return low, high


def _on_scale(row: _Row, scale: Scale, skipped: list[Skipped]) -> bool:
    for name, value in zip(DIMENSIONS, row.values, strict=True):
        if not _inside(value, scale):
            reason = f"{row.where}: the {name} of {row.name!r} is {value:g}, outside the scale {scale[0]:g} to "
            skipped.append(Skipped(row.name, row.path, f"{reason}{scale[1]:g}; correct it, or {NAME_SCALE}"))
            return False
    return True


def _inside(value: float, scale: Scale) -> bool:
    return math.isnan(value) or scale[0] <= value <= scale[1]


def _once(rows: Sequence[_Row], skipped: list[Skipped]) -> Iterator[_Row]:
    """Yield the first row of each picture; others are added to `skipped`, unless they say the same."""
    first: dict[Path, _Row] = {}
    for row in rows:
        known = first.setdefault(row.path, row)
        if known is row:
            yield row
        elif repr((known.values, known.split)) != repr((row.values, row.split)):  # equal NaNs
            reason = f"{row.where}: {row.name!r} was already rated {_shown(known)} ({known.where}) and here "
            skipped.append(Skipped(row.name, row.path, f"{reason}{_shown(row)}; the first is used, keep one of them"))


def _shown(row: _Row) -> str:
    values = [f"{value:g}" for value in row.values if not math.isnan(value)]
    return f"{', '.join(values)}{f' ({row.split})' * bool(row.split)}"
