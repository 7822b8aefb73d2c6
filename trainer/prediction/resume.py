"""Predictions that are being written, and how they go on where an earlier command was broken off.

FOLDER/unfinished.json          what they are made of; it is there as long as anything is left to do
FOLDER/predictions.jsonl.part   the rows so far, in the order of the images
FOLDER/skipped.jsonl.part       the images so far that could not be used

Both grow batch by batch, so a process that is killed leaves whole lines and perhaps a torn one. Going on, everything
behind the last batch of which nothing is missing is cut off and made again.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import require_inside, write_json, writing
from common.reading import read_json
from data.samples import Samples
from data.schema import Skipped

ROWS, SKIPPED, RECORD = "predictions.jsonl", "skipped.jsonl.part", "unfinished.json"
DIGESTS = {
    "checkpoint": "another checkpoint",
    "images": "other images (or their files have changed since)",
    "dataset.vad_lexicon": "another dataset.vad_lexicon",
}


class Rows(Sequence[dict[str, Any]]):
    """The rows of a file of JSON lines, each read when it is asked for: however many there are, memory is not full."""

    def __init__(self, path: Path) -> None:
        self.path, self.ends = path, array("q", [0])
        with path.open("rb") as file:
            for line in file:
                self.ends.append(self.ends[-1] + len(line))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]  # negative ones, and IndexError
        with self.path.open("rb") as file:
            file.seek(self.ends[index])
            return json.loads(file.readline())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            yield from map(json.loads, file)


class Unfinished:
    """The files of predictions in the making; nobody else may be writing into `folder`.

    Args:
        folder: of the results.
        samples: all that are to be predicted, in order.
        batch_size: where a batch ends, its size decides what each of its images gets, in the last digits.
    """

    def __init__(self, folder: Path, samples: Samples, *, batch_size: int) -> None:
        self.folder, self.samples, self.batch_size = folder, samples, batch_size
        self.record, self.named = folder / RECORD, folder / ROWS
        self.part, self.skipped = folder / f"{ROWS}.part", folder / SKIPPED
        for path in (self.record, self.named, self.part, self.skipped):
            require_inside(path, folder)

    def begin(self, made_of: Mapping[str, Any], *, overwrite: bool) -> int:
        """The number of images that are behind us: none, or what an earlier command left that wanted the same.

        Args:
            made_of: see trainer.prediction.identity; to be compared with what is written down of the earlier command.
            overwrite: begin anew in any case.

        Raises:
            UserError: there are predictions that are made of something else, which would be lost.
        """
        earlier = None if overwrite else self._earlier()
        if earlier not in (None, made_of) and next(self._scan(self.part), None) is not None:
            raise UserError(self._refusal(earlier, made_of))
        if earlier == made_of:
            if self.named.exists() and not self.part.exists():
                return len(self.samples)
            if self.part.exists():
                return self._cut()
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in (self.record, self.skipped, self.part):
                path.unlink(missing_ok=True)
            self.part.touch(exist_ok=False)
        write_json(self.record, made_of)
        return 0

    def add(self, rows: Iterable[Mapping[str, Any]], skipped: Iterable[Skipped]) -> None:
        """What came of the batches after those that are behind us; the skipped images first, see `_behind`."""
        self._append(self.skipped, [[image.id, str(image.path), image.reason] for image in skipped])
        self._append(self.part, rows)

    @property
    def has_rows(self) -> bool:
        return next(self._scan(self.part if self.part.exists() else self.named), None) is not None

    def name_rows(self) -> Rows:
        """All rows are there: their file gets its name."""
        if self.part.exists():
            with writing(self.named):
                self.part.replace(self.named)
        return Rows(self.named)

    def skipped_images(self) -> list[Skipped]:
        return [Skipped(id, Path(path), reason) for (id, path, reason), _ in self._scan(self.skipped)]

    def close(self) -> None:
        """Nothing is left to do."""
        for path in (self.record, self.part, self.skipped):
            path.unlink(missing_ok=True)

    # ------------------------------------------------------------------ what an earlier command left

    def _earlier(self) -> Any:
        with suppress(OSError, ValueError):
            return read_json(self.record)
        return None

    def _refusal(self, earlier: Any, made_of: Mapping[str, Any]) -> str:
        known = earlier if isinstance(earlier, dict) else {}
        key = next((key for key in (*made_of, *known) if known.get(key) != made_of.get(key)), "images")
        what = f"{key}={json.dumps(known.get(key))}, not {json.dumps(made_of.get(key))}"
        return (
            f"{self.part} holds {sum(1 for _ in self._scan(self.part))} predictions that an earlier command began with "
            f"{DIGESTS.get(key, what)}: repeat that command to go on with them, name another place (name=…), or give "
            "them up (trainer.overwrite=true)"
        )

    def _cut(self) -> int:
        """Cut off what is behind the last whole batch; the number of images before it."""
        behind, row_end, skipped_end = self._behind()
        with writing(self.part):
            for path, end in ((self.part, row_end), (self.skipped, skipped_end)):
                if path.exists():
                    os.truncate(path, end)
        return behind

    def _behind(self) -> tuple[int, int, int]:
        """How many images are done, and where in the two files what belongs to them ends.

        Each image has a line in one of them. Those of a batch's skipped images are written before its rows, so a row
        says that nothing before it is missing.
        """
        rows, skipped = self._scan(self.part), self._scan(self.skipped)
        row, image = next(rows, None), next(skipped, None)
        ends = [0, 0]
        whole = (0, 0, 0)
        for index in range(len(self.samples)):
            if index % self.batch_size == 0:
                whole = (index, *ends)
            id = self.samples[index].id.encode("utf-8", "replace").decode("utf-8")  # as it was written
            if row is not None and isinstance(row[0], dict) and row[0].get("id") == id:
                ends[0], row = row[1], next(rows, None)
            elif image is not None and isinstance(image[0], list) and image[0][:1] == [id] and len(image[0]) == 3:
                ends[1], image = image[1], next(skipped, None)
            else:
                return whole
        return (len(self.samples), *ends)

    def _scan(self, path: Path) -> Iterator[tuple[Any, int]]:
        """The values in the whole lines, and where each line ends."""
        if not path.exists():
            return
        end = 0
        with path.open("rb") as file:
            for line in file:
                end += len(line)
                if not line.endswith(b"\n"):
                    return
                try:
                    yield json.loads(line), end
                except (ValueError, RecursionError):  # not as it was written: as if it were torn
                    return

    def _append(self, path: Path, values: Iterable[Any]) -> None:
        lines = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        if lines:
            with writing(path), path.open("ab") as file:
                file.write(lines.encode("utf-8", "replace"))  # a file name may be undecodable
