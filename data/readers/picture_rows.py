"""Read picture rows: JSON Lines with one picture per line, its questions, texts and objects.

{"id": "9", "image": "train2014/COCO_train2014_000000000009.jpg",
 "questions": [{"id": 9000, "question": "how many cookies?", "type": "number", "answers": {"2": 1.0, "3": 0.3}}],
 "texts": [{"text": "a box of food", "boxes": [[0.0, 0.39, 0.96, 0.99]]}],
 "objects": [{"name": "bowl", "box": [0.0, 0.39, 0.96, 0.99]}]}

Only "id" and "image" are required. A box is left, top, right, bottom as shares of the picture. A text without "boxes"
was not annotated with regions; one with an empty list names none. The values of "answers" are soft scores from 0 to 1.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.errors import UserError, shorten
from common.progress import progress
from common.reading import require_file
from data.readers.annotations import id_of, image_path, kind, list_of, load_json, object_of, text_of, texts_of, value_of
from data.readers.resolver import ImageFolder
from data.readers.split import locate
from data.samples import Samples
from data.schema import Sample

PARTS = ("questions", "texts", "objects")
ANSWERS = "answers.json"  # the answer vocabulary, beside the rows
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LARGEST = 1 << 36  # bytes of a file
LONGEST_LINE = 1 << 24  # bytes
SHOWN_FROM = 1 << 26  # bytes: checking a larger file takes seconds and has a progress bar

Row = dict[str, Any]


class PictureRows(Sequence[Row]):
    """The rows of a file, each read from the disk when it is accessed; only their offsets are in memory.

    A row has all of PARTS (empty lists where the file lacks them), and a question has "type" ("" by default) and
    "answers" ({}). No file stays open, so a loader process may inherit or unpickle the object.

    Attributes:
        file: the file with the rows.
        samples: the ids and image paths of the rows, without texts.
        skipped: the rows left out because their image is missing; empty if `strict`.
    """

    def __init__(self, path: Path, visual_dir: Path, *, strict: bool = True) -> None:
        """Check all lines of `path` and find their images, which are named relative to the folder `visual_dir`.

        Raises:
            UserError: a fault in the file, with the number of its line; no rows; no such folder; no image in it, or, if
                `strict`, one that is missing or leads out of the folder.
        """
        self.file = Path(path)
        try:
            folder = ImageFolder(visual_dir)
        except UserError as error:
            raise UserError(f"the pictures of {path}: {error}") from None
        places, rows = array("q"), dict[str, int]()
        found = locate(Samples.pack(_scan(self.file, folder.root, places, rows)), folder)
        if not rows:
            raise UserError(f"{path}: the file has no rows; give JSON Lines with one picture per line")
        if found.skipped and (strict or not found.samples):
            first = found.skipped[0]
            raise UserError(
                f"{path}: {len(found.skipped)} of {len(rows)} pictures cannot be used, the first is {first.path} (id "
                f"{first.id!r}): {first.reason}; add the pictures, or remove their lines"
            )
        self.samples, self.skipped = found.samples, found.skipped
        table = np.array(places, dtype=np.int64).reshape(-1, 3)
        self._places = np.delete(table, [rows[row.id] for row in found.skipped], axis=0)  # (N, 3): line, start, end

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Row:
        line, start, end = self._places[index].tolist()  # accepts negative ones, raises IndexError
        try:
            with self.file.open("rb") as file:
                file.seek(start)
                content = file.read(end - start)
        except OSError as error:
            raise UserError(f"{self.file}: line {line} cannot be read any more ({error.strerror or error})") from None
        return _row(content, where=f"{self.file}, line {line}")

    def path(self, index: int) -> Path:
        """Return the absolute path of an image, without reading its row."""
        return self.samples.path(index)

    def id(self, index: int) -> str:
        """Return the id of a picture, without reading its row."""
        return self.samples[index].id


def read_answers(path: Path) -> list[str]:
    """Return the answer vocabulary in a JSON file: a list of different texts, in the order of the labels.

    Raises:
        UserError: not such a file.
    """
    found = texts_of({"answers": load_json(Path(path))}, "answers", where=str(path))
    if not found or len(set(found)) < len(found):
        raise UserError(f"{path}: {'two answers are equal' if found else 'the list is empty'}; give different answers")
    return found


def _scan(path: Path, root: Path, places: array, rows: dict[str, int]) -> Iterator[Sample]:
    """Yield id and image of every row; append its line, start and end to `places`, and its number to `rows` by id."""
    try:
        require_file(path, largest=LARGEST)
        size = path.stat().st_size
        with path.open("rb") as file, progress(size, str(path), unit="B", enabled=size >= SHOWN_FROM) as bar:
            bar.unit_scale = True
            for line, start, content in _lines(file, path):
                where = f"{path}, line {line}"
                row = _row(content, where=where)
                if rows.setdefault(row["id"], len(rows)) != len(places) // 3:
                    raise UserError(f"{where}: the id {row['id']!r} appears twice; give each picture one line")
                places.extend((line, start, start + len(content)))
                yield Sample(row["id"], image_path(root, row["image"], where=where), texts=())
                bar.update(len(content))
    except OSError as error:
        raise UserError(f"{path}: the picture rows cannot be read ({error.strerror or error})") from None


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, offset and content of every line that is not blank."""
    line = start = 0
    while content := file.readline(LONGEST_LINE):
        line += 1
        if len(content) == LONGEST_LINE:
            raise UserError(f"{path}, line {line}: longer than {LONGEST_LINE:,} bytes; write one picture per line")
        mark = len(BYTE_ORDER_MARK) if line == 1 and content.startswith(BYTE_ORDER_MARK) else 0
        if content[mark:].strip():
            yield line, start + mark, content[mark:]
        start += len(content)


def _row(content: bytes, *, where: str) -> Row:
    """Return the row in a line; raise UserError for anything else."""
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(f"{where}: not JSON in UTF-8: {shorten(error)}") from None
    row = object_of(value, where=where)
    row["id"] = id_of(row, "id", where=where)
    text_of(row, "image", where=where)
    for part, check in zip(PARTS, (_check_question, _check_text, _check_object), strict=True):
        for i, item in enumerate(list_of(row, part, where=where) if part in row else row.setdefault(part, [])):
            place = f"{where}, {part}[{i}]"
            check(object_of(item, where=place), place)
    return row


def _check_question(question: dict[str, Any], where: str) -> None:
    id_of(question, "id", where=where)
    text_of(question, "question", where=where)
    question.setdefault("type", "")
    text_of(question, "type", where=where)
    answers = question.setdefault("answers", {})
    for answer, score in object_of(answers, where=f"{where}, 'answers'").items():
        text_of({"answer": answer}, "answer", where=where)
        if not _is_number(score) or not 0 <= score <= 1:
            raise UserError(f"{where}: the score of the answer {answer!r} must be from 0 to 1, not {_shown(score)}")


def _check_text(text: dict[str, Any], where: str) -> None:
    text_of(text, "text", where=where)
    for box in list_of(text, "boxes", where=where) if "boxes" in text else ():
        _check_box(box, where)


def _check_object(named: dict[str, Any], where: str) -> None:
    text_of(named, "name", where=where)
    _check_box(value_of(named, "box", where=where), where)


def _check_box(box: object, where: str) -> None:
    if isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)):
        left, top, right, bottom = box
        if 0 <= left < right <= 1 and 0 <= top < bottom <= 1:
            return
    raise UserError(
        f"{where}: a box is [left, top, right, bottom] in shares of the picture, 0 ≤ left < right ≤ 1 and 0 ≤ top < "
        f"bottom ≤ 1, not {shorten(box)}"
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: object) -> str:
    return str(value) if _is_number(value) else kind(value)
