"""Results of shards, each written as a whole when the shard is finished.

FOLDER/shards.json              identity of the predictions (trainer/prediction/identity.py)
FOLDER/predictions/NAME.jsonl   rows of the shard NAME.tar, or NAME.parquet with save_as=parquet
FOLDER/skipped/NAME.jsonl       its pictures that cannot be used, if any
FOLDER/finished/NAME.json       counts, and size and time of the shard; written last

A process that is killed loses the shards that it has begun; the next command predicts these again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import require_inside, sha256, to_json, write_bytes, write_json, write_text
from common.reading import read_json
from data.cache.digests import Signature, signature_of
from data.readers.shard_lists import Shard
from data.schema import Skipped
from trainer.prediction.parquet_rows import read_parquet_rows, to_parquet
from trainer.prediction.resume import Rows, other_settings

RECORD, ROWS, SKIPPED, FINISHED = "shards.json", "predictions", "skipped", "finished"
PAUSE = 1.0  # seconds between two looks for the results of other processes


@dataclass(slots=True)
class Collected:
    """Results of a shard so far; the rows as JSON lines, which take a third of the memory of their objects."""

    rows: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    emotions: Counter[str] = field(default_factory=Counter)
    unfamiliar: int = 0

    def add(self, rows: Sequence[Mapping[str, Any]], skipped: Sequence[Skipped]) -> None:
        self.rows += [to_json(row) for row in rows]
        self.skipped += skipped
        self.emotions.update(str(row["emotion"]) for row in rows if row["emotion"] is not None)
        self.unfamiliar += sum(bool(row.get("unfamiliar")) for row in rows)


class ShardResults:
    """The files of the results; several processes write at once, each the shards that are its own."""

    def __init__(self, folder: Path, shards: Sequence[Shard], *, save_as: str) -> None:
        self.folder, self.shards, self.save_as = folder, shards, save_as
        self.before = 0  # results in the folder when the command began, also of other shards
        for name in (ROWS, SKIPPED, FINISHED):
            require_inside(folder / name, folder, is_folder=True)

    def begin(self, identity: Mapping[str, Any], *, overwrite: bool) -> list[int]:
        """Return the indices of the shards that are not finished with this identity.

        Raises:
            UserError: there are results with another identity, which would be mixed with these.
        """
        record = self.folder / RECORD
        earlier = None
        with suppress(OSError, ValueError):
            earlier = read_json(record)
        if overwrite:
            for name in (FINISHED, ROWS, SKIPPED):
                shutil.rmtree(self.folder / name, ignore_errors=True)
        elif earlier != identity and (count := self._count()):
            raise UserError(
                f"{self.folder} holds the predictions of {count:,} shards by an earlier command with "
                f"{other_settings(earlier, identity)}: choose another name=…, or discard them with "
                "trainer.overwrite=true"
            )
        write_json(record, identity)
        todo = [index for index in range(len(self.shards)) if not self._is_finished(index)]
        self.before = self._count()
        return todo

    def write(self, index: int, found: Collected, signature: Signature | None) -> None:
        """Write the results of a shard; they count once the last file, that in finished/, is there."""
        rows = self._path(ROWS, index, self.save_as)
        if self.save_as == "parquet":
            write_bytes(rows, [to_parquet(map(json.loads, found.rows))], durable=True)
        else:
            write_text(rows, found.rows, durable=True)
        skipped = self._path(SKIPPED, index, "jsonl")
        if found.skipped:
            write_text(
                skipped,
                (to_json({"id": one.id, "image": str(one.path), "reason": one.reason}) for one in found.skipped),
                durable=True,
            )
        else:
            skipped.unlink(missing_ok=True)  # of an earlier content of the shard
        name = self.shards[index].name
        record = {
            "shard": list(signature or ())[:2],
            "pictures": len(found.rows),
            "skipped": sum(one.id != name for one in found.skipped),
            "faults": [one.reason for one in found.skipped if one.id == name],
            "unfamiliar": found.unfamiliar,
            "emotions": dict(found.emotions),
            "bytes": rows.stat().st_size,
            "sha256": sha256(rows),
        }
        write_text(self._path(FINISHED, index, "json"), to_json(record), durable=True)

    def finished(self) -> int:
        """Return the number of shards that all processes have finished since `begin`; in its process alone."""
        return self._count() - self.before

    def wait_for(self, count: int, *, minutes: float) -> None:
        """Return when all processes together have finished so many shards.

        Raises:
            UserError: none was finished for so many minutes.
        """
        last, since = -1, time.monotonic()
        while (now := self.finished()) < count:
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > 60 * minutes:
                raise UserError(
                    f"{count - now} shards of other processes are not finished, and none was for "
                    f"trainer.timeout_minutes={minutes:g}: repeat the command to predict them"
                )
            time.sleep(PAUSE)

    def pictures(self, indices: Sequence[int]) -> int:
        """Return the number of pictures with a prediction in these shards."""
        return sum(read_json(self._path(FINISHED, index, "json"))["pictures"] for index in indices)

    def summary(self) -> dict[str, Any]:
        """Return counts over all shards, and the faults of single shards by name."""
        total: Counter[str] = Counter()
        emotions: Counter[str] = Counter()
        faults: dict[str, list[str]] = {}
        for index, shard in enumerate(self.shards):
            record = read_json(self._path(FINISHED, index, "json"))
            total.update({key: record[key] for key in ("pictures", "skipped", "unfamiliar")})
            emotions.update(record["emotions"])
            faults |= {shard.name: record["faults"]} if record["faults"] else {}
        counts = {key: total[key] for key in ("pictures", "skipped", "unfamiliar")}
        return {"shards": len(self.shards), **counts, "emotions": dict(emotions.most_common()), "faults": faults}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield all rows, in the order of the shards."""
        for index in range(len(self.shards)):
            path = self._path(ROWS, index, self.save_as)
            yield from read_parquet_rows(path) if self.save_as == "parquet" else Rows(path)

    def _count(self) -> int:
        return sum(1 for _ in (self.folder / FINISHED).rglob("*.json"))

    def _is_finished(self, index: int) -> bool:
        """Return whether the shard has results, and is still as it was."""
        try:
            record = read_json(self._path(FINISHED, index, "json"))
            whole = self._path(ROWS, index, self.save_as).stat().st_size == record["bytes"]
            same = record["shard"] == list(signature_of(self.shards[index].path) or ())[:2]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if not (whole and same):
            self._path(FINISHED, index, "json").unlink()
        return whole and same

    def _path(self, kind: str, index: int, suffix: str) -> Path:
        path = Path(self.shards[index].name)
        return self.folder / kind / path.parent / f"{path.stem}.{suffix}"
