"""Files of unfinished predictions, and how an interrupted command continues.

FOLDER/unfinished.json          identity of the predictions (trainer/prediction/identity.py), until all is written
FOLDER/predictions.jsonl.part   rows so far, in the order of the images
FOLDER/skipped.jsonl.part       unusable images so far

Both .part files grow batch by batch, so a killed process leaves whole lines and perhaps a partial one. The next command
removes everything after the last complete batch and continues from there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import explain_write_errors, require_inside, to_json, write_json, write_text
from common.reading import read_json
from data.samples import Samples
from data.schema import Skipped

ROWS, SKIPPED, RECORD = "predictions.jsonl", "skipped.jsonl.part", "unfinished.json"
DIGESTS = {
    "checkpoint": "another checkpoint",
    "images": "other images (or their files have changed since)",
    "dataset.vad_lexicon": "another dataset.vad_lexicon",
    "trainer.test.vle": "another trainer.test.vle",
}


def other_settings(earlier: Any, identity: Mapping[str, Any]) -> str:
    """Return the first difference between two identities, as in "another checkpoint" or "KEY=1, not 2"."""
    known = earlier if isinstance(earlier, dict) else {}
    key = next((key for key in (*identity, *known) if known.get(key) != identity.get(key)), "images")
    what = f"{key}={json.dumps(known.get(key))}, not {json.dumps(identity.get(key))}"
    return DIGESTS.get(key, what)


class Rows:
    """The rows of a JSON-lines file, read on every iteration so that any number fits in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        with self.path.open("rb") as file:
            return sum(1 for _ in file)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            yield from map(json.loads, file)


class Unfinished:
    """The files of unfinished predictions; the caller holds the lock of `folder`.

    Args:
        folder: of the results.
        samples: all images to predict, in order.
        batch_size: a result may depend on its batch in the last digits, so complete batches are kept and redone.
    """

    def __init__(self, folder: Path, samples: Samples, *, batch_size: int) -> None:
        self.folder, self.samples, self.batch_size = folder, samples, batch_size
        self.record, self.named = folder / RECORD, folder / ROWS
        self.part, self.skipped = folder / f"{ROWS}.part", folder / SKIPPED
        for path in (self.record, self.named, self.part, self.skipped):
            require_inside(path, folder)

    def begin(self, identity: Mapping[str, Any], *, overwrite: bool) -> int:
        """Return the number of images already done by an earlier command with the same identity.

        Args:
            identity: see trainer.prediction.identity; compared with that of the earlier command.
            overwrite: discard what the earlier command left.

        Raises:
            UserError: there are predictions with another identity, which would be lost.
        """
        earlier = None if overwrite else self._earlier()
        if earlier not in (None, identity) and next(self._scan(self.part), None) is not None:
            raise UserError(self._refusal(earlier, identity))
        if earlier == identity:
            if self.named.exists() and not self.part.exists():
                return len(self.samples)
            if self.part.exists():
                return self._truncate()
        with explain_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in (self.record, self.skipped, self.part):
                path.unlink(missing_ok=True)
            self.part.touch(exist_ok=False)
        write_json(self.record, identity)
        return 0

    def add(self, rows: Iterable[Mapping[str, Any]], skipped: Iterable[Skipped]) -> None:
        """Append the results of a finished batch; the skipped images first, see `_complete`."""
        self._append(self.skipped, [[image.id, str(image.path), image.reason] for image in skipped])
        self._append(self.part, rows)

    @property
    def has_rows(self) -> bool:
        return next(self._scan(self.part if self.part.exists() else self.named), None) is not None

    def name_rows(self) -> Rows:
        """Rename the complete .part file to predictions.jsonl and return its rows."""
        if self.part.exists():
            with explain_write_errors(self.named):
                self.part.replace(self.named)
        return Rows(self.named)

    def replace_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write predictions.jsonl again, once it is complete; an interrupted command leaves the old or the new file."""
        write_text(self.named, map(to_json, rows))

    def skipped_images(self) -> list[Skipped]:
        return [Skipped(id, Path(path), reason) for (id, path, reason), _ in self._scan(self.skipped)]

    def close(self) -> None:
        """Remove the temporary files."""
        for path in (self.record, self.part, self.skipped):
            path.unlink(missing_ok=True)

    def _earlier(self) -> Any:
        with suppress(OSError, ValueError):
            return read_json(self.record)
        return None

    def _refusal(self, earlier: Any, identity: Mapping[str, Any]) -> str:
        return (
            f"{self.part} holds {sum(1 for _ in self._scan(self.part))} predictions of an earlier command with "
            f"{other_settings(earlier, identity)}: repeat that command to continue them, choose another name=…, or "
            "discard them with trainer.overwrite=true"
        )

    def _truncate(self) -> int:
        """Remove everything after the last complete batch, and return the number of images before."""
        done, row_end, skipped_end = self._complete()
        with explain_write_errors(self.part):
            for path, end in ((self.part, row_end), (self.skipped, skipped_end)):
                if path.exists():
                    os.truncate(path, end)
        return done

    def _complete(self) -> tuple[int, int, int]:
        """Return the number of images in complete batches, and where their lines end in the two files.

        Each image has a line in one of them. A batch's skipped images are written before its rows, so a row means
        that nothing before it is missing.
        """
        rows, skipped = self._scan(self.part), self._scan(self.skipped)
        row, image = next(rows, None), next(skipped, None)
        ends = [0, 0]
        whole = (0, 0, 0)
        for index in range(len(self.samples)):
            if index % self.batch_size == 0:
                whole = (index, *ends)
            id = self.samples[index].id
            if row is not None and isinstance(row[0], dict) and row[0].get("id") == id:
                ends[0], row = row[1], next(rows, None)
            elif image is not None and isinstance(image[0], list) and image[0][:1] == [id] and len(image[0]) == 3:
                ends[1], image = image[1], next(skipped, None)
            else:
                return whole
        return (len(self.samples), *ends)

    def _scan(self, path: Path) -> Iterator[tuple[Any, int]]:
        """Yield the value of each whole line and the offset of its end, up to the first damaged line."""
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
                except (ValueError, RecursionError):  # damaged: treated like a partial line
                    return

    def _append(self, path: Path, values: Iterable[Any]) -> None:
        lines = "".join(map(to_json, values))
        if lines:
            with explain_write_errors(path), path.open("ab") as file:
                file.write(lines.encode("utf-8", "backslashreplace"))  # a file name may be undecodable
