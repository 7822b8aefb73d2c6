"""Logits of emotions for every picture, computed once and kept as a text file.

FILE.jsonl   first {"labels": […], "of": what computed them}, then {"id", "image", "digest", SOURCE: […]} a picture

A picture is known by what its file holds: in another split or data set, its id and name may be those of another.
It grows batch by batch, so what was computed before an interruption is not computed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from common.files import write_text, writing
from common.progress import progress
from common.reading import expanded, read_bytes
from data.cache.digests import FileDigests
from data.cache.feature_cache import MEMO
from data.samples import Samples
from data.schema import Batch
from trainer.runs.console import significant

LOGITS = "logits.jsonl"  # of a run
TEACHER = "teacher"  # a source
Logits = dict[str, dict[str, Tensor]]  # (C,) of each source, by a picture's id or digest


def digests_of(samples: Samples, cache: str | None, *, show: bool = True) -> list[str | None]:
    """What tells the pictures apart; None where a file cannot be read.

    Args:
        cache: the dataset.feature_cache, which remembers the digests of files that did not change.
        show: a line of progress where files have to be read.
    """
    memo = None if cache is None else expanded(cache) / MEMO
    paths = [samples.path(row) for row in range(len(samples))]
    contents = FileDigests(memo).contents(paths, show=show)
    return [contents[path].digest for path in paths]


def read_logits(path: Path, samples: Samples, digests: Sequence[str | None]) -> Logits:
    """What the file holds of these pictures, by their ids.

    Args:
        digests: see `digests_of`.

    Raises:
        UserError: no such file, not readable, or of other labels.
    """
    try:
        head, *rows = _lines(read_bytes(path).decode("utf-8", "replace")) or [None]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not isinstance(head, dict) or not isinstance(head.get("labels"), list):
        raise UserError(f"{path} is no file of logits: its first line does not name the labels")
    labels = list(samples.labels)
    if head["labels"] != labels:
        raise UserError(
            f"{path} was made for the emotions {', '.join(map(str, head['labels']))}; here they are {', '.join(labels)}"
        )
    return _by_id(dict(_logits(rows, len(labels))), samples, digests)


def complete_logits(
    path: Path,
    samples: Samples,
    digests: Sequence[str | None],
    compute: Callable[[Batch], Mapping[str, Tensor]],
    *,
    of: str,
    loader: Callable[[Samples], Iterable[Batch]],
    what: str,
) -> Logits:
    """What the file holds of these pictures, by their ids, once those that it lacks are computed and added.

    Args:
        digests: see `digests_of`.
        compute: a batch → (B, C) of each source.
        of: what computes them; a file of something else is begun anew.
        loader: batches of the pictures that are missing.
        what: for the line of progress.

    Pictures that cannot be read have none.
    """
    found = _begun(path, {"labels": list(samples.labels), "of": of})
    rows = [row for row, digest in enumerate(digests) if digest is not None and digest not in found]
    if rows:
        missing = samples.pick(rows)
        names = {sample.id: (sample.path.name, digests[row]) for sample, row in zip(missing, rows, strict=True)}
        bar = progress(len(missing), what, unit="image")
        with writing(path), path.open("a", encoding="utf-8") as file, bar:
            for batch in loader(missing):
                values = {source: logits.float().cpu() for source, logits in compute(batch).items()}
                for row, id in enumerate(batch.ids):
                    (name, digest), logits = names[id], {source: _rounded(v[row]) for source, v in values.items()}
                    file.write(_line({"id": id, "image": name, "digest": digest, **logits}))
                    found[digest] = {source: torch.tensor(numbers) for source, numbers in logits.items()}
                file.flush()
                bar.update(len(batch.ids))
    return _by_id(found, samples, digests)


def _by_id(found: Logits, samples: Samples, digests: Sequence[str | None]) -> Logits:
    return {sample.id: found[d] for sample, d in zip(samples, digests, strict=True) if d in found}


def _rounded(logits: Tensor) -> list[float]:
    return [significant(value) for value in logits.tolist()]


def _begun(path: Path, head: Mapping[str, Any]) -> Logits:
    """What the file holds under this head; without a torn line at its end, and new where it has another head."""
    text = read_bytes(path).decode("utf-8", "replace") if path.exists() else ""
    first, *rows = _lines(text) or [None]
    if first != head:
        write_text(path, _line(head))
        return {}
    whole = [row for row in rows if _is_row(row)]
    if len(whole) < len(rows) or not text.endswith("\n"):
        write_text(path, "".join(map(_line, (head, *whole))))
    return dict(_logits(whole, len(head["labels"])))


def _is_row(row: Any) -> bool:
    """The last line of a run that was killed is none."""
    return isinstance(row, dict) and isinstance(row.get("digest"), str)


def _logits(rows: Sequence[Any], classes: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for row in filter(_is_row, rows):
        values = {name: value for name, value in row.items() if _are_logits(value, classes)}
        if values:
            yield row["digest"], {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}


def _are_logits(value: Any, classes: int) -> bool:
    return isinstance(value, list) and len(value) == classes and all(type(v) in (int, float) for v in value)


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value) + "\n"  # in ASCII: names of files may hold anything, the ends of lines of Unicode too


def _lines(text: str) -> list[Any]:
    return [_parsed(line) for line in text.splitlines()]


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
