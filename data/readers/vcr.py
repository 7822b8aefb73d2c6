"""Read annotations of visual commonsense reasoning (VCR, visualcommonsense.com): one question per line of JSON."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, shorten
from common.reading import require_file
from data.readers.annotations import image_path, load_json, object_of, text_of
from data.readers.resolver import ImageFolder
from data.readers.split import locate
from data.samples import Samples
from data.schema import Sample

KEYS = ("img_fn", "metadata_fn", "objects", "question", "answer_choices", "rationale_choices")
CHOICES = 4
LARGEST = 1 << 36  # bytes


class VcrRows(Sequence[dict[str, Any]]):
    """The questions of a file, each read when it is accessed; pictures and boxes are in `folder` (vcr1images).

    Attributes:
        samples: ids and image paths, without texts.
        skipped: questions whose picture is missing.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        """Raises UserError: no such file or folder, a fault in a line, or no usable picture."""
        self.file, images = Path(path), ImageFolder(folder)
        self.root = images.root
        places = array("q")
        found = locate(Samples.pack(self._scan(places)), images)
        if not found.samples:
            raise UserError(f"{path}: no question, or none whose picture is in {folder}")
        self.samples, self.skipped = found.samples, found.skipped
        missing = {skipped.id for skipped in found.skipped}
        kept = [row for row in range(len(places)) if str(row) not in missing]
        self.offsets = np.array(places, dtype=np.int64)[kept]

    def _scan(self, places: array) -> Iterator[Sample]:
        try:
            require_file(self.file, largest=LARGEST)
            with self.file.open("rb") as file:
                while True:
                    start = file.tell()
                    if not (line := file.readline()):
                        return
                    if line.strip():
                        where = f"{self.file}, question {len(places) + 1}"
                        row = _parsed(line, where)
                        places.append(start)
                        path = image_path(self.root, text_of(row, "img_fn", where=where), where=where)
                        yield Sample(str(len(places) - 1), path, texts=())
        except OSError as error:
            raise UserError(f"{self.file} cannot be read ({error.strerror or error})") from None

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with self.file.open("rb") as file:
            file.seek(int(self.offsets[index]))
            return _parsed(file.readline(), f"{self.file}, question {index + 1}")

    def boxes(self, row: dict[str, Any]) -> tuple[list[list[float]], tuple[float, float]]:
        """Return the objects' boxes (left, top, right, bottom), and width and height of the picture, in pixels.

        Raises:
            UserError: the picture's JSON file is missing or damaged.
        """
        path = image_path(self.root, text_of(row, "metadata_fn", where=str(self.file)), where=str(self.file))
        found = object_of(load_json(path), where=str(path))
        try:
            boxes = [[float(box[side]) for side in range(4)] for box in found["boxes"]]
            width, height = float(found["width"]), float(found["height"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"{path}: it needs boxes of 4 numbers, width and height ({shorten(error)})") from None
        if not (0 < width < math.inf and 0 < height < math.inf):
            raise UserError(f"{path}: width and height must be above 0, not {width:g} and {height:g}")
        return boxes, (width, height)


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = object_of(json.loads(line), where=where)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({shorten(error)})") from None
    if missing := [key for key in KEYS if key not in row]:
        raise UserError(f"{where}: {missing[0]} is missing; give VCR's own train.jsonl, val.jsonl or test.jsonl")
    for key in ("answer_choices", "rationale_choices"):
        if not isinstance(row[key], list) or len(row[key]) != CHOICES:
            raise UserError(f"{where}: {key} must have {CHOICES} entries")
    for key in ("answer_label", "rationale_label"):
        if row.setdefault(key, None) not in (None, *range(CHOICES)):
            raise UserError(f"{where}: {key} must be a number from 0 to {CHOICES - 1}, not {row[key]!r}")
    return row
