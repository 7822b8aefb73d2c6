"""Emotion logits of every image, computed once and kept in a text file.

FILE.jsonl   first {"labels": […], "of": what computed them}, then per image {"id", "image", "digest", SOURCE: […]}

An image is identified by the digest of its file: its id and name may occur in another split or data set. The file grows
batch by batch, so that nothing is computed again after an interruption.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from common.files import explain_write_errors, to_json, write_text
from common.progress import progress
from common.reading import expand_user, read_bytes
from data.cache.digests import FileDigests
from data.cache.feature_cache import MEMO
from data.samples import Samples
from data.schema import Batch
from trainer.runs.console import round_significant

LOGITS = "logits.jsonl"  # of a run
TEACHER = "teacher"  # a source
Logits = dict[str, dict[str, Tensor]]  # image id or digest → source → (C,)


def digests_of(samples: Samples, cache: str | None, *, show: bool = True) -> list[str | None]:
    """Return the digest of every image file; None if it cannot be read.

    Args:
        cache: dataset.feature_cache, which stores the digests of unchanged files.
        show: show progress if files have to be read.
    """
    return file_digests([samples.path(row) for row in range(len(samples))], cache, show=show)


def file_digests(paths: Sequence[Path], cache: str | None, *, show: bool = True) -> list[str | None]:
    """As digests_of."""
    contents = FileDigests(None if cache is None else expand_user(cache) / MEMO).contents(paths, show=show)
    return [contents[path].digest for path in paths]


def read_logits(path: Path, samples: Samples, digests: Sequence[str | None]) -> Logits:
    """Return the logits that the file holds of these images, by image id.

    Args:
        digests: see `digests_of`.

    Raises:
        UserError: the file is missing, not readable, or has other labels.
    """
    try:
        head, *rows = _lines(read_bytes(path).decode("utf-8", "replace")) or [None]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not isinstance(head, dict) or not isinstance(head.get("labels"), list):
        raise UserError(f"{path} is not a file of logits: its first line does not list the labels")
    labels = list(samples.labels)
    if head["labels"] != labels:
        raise UserError(
            f"{path} was made for the emotions {', '.join(map(str, head['labels']))}; here they are {', '.join(labels)}"
        )
    return _by_id(_logits(rows, len(labels)), samples, digests)


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
    """Add the missing logits of these images to the file; return all of them by image id, except of unreadable images.

    Args:
        digests: see `digests_of`.
        compute: a batch → (B, C) of each source.
        of: identifies the network; the file of another one is replaced.
        loader: the batches of some samples.
        what: label of the progress bar.
    """
    found = _open_rows(path, {"labels": list(samples.labels), "of": of})
    rows = [row for row, digest in enumerate(digests) if digest is not None and digest not in found]
    if rows:
        missing = samples.pick(rows)
        names = {sample.id: (sample.path.name, digests[row]) for sample, row in zip(missing, rows, strict=True)}
        bar = progress(len(missing), what, unit="image")
        with explain_write_errors(path), path.open("a", encoding="utf-8") as file, bar:
            for batch in loader(missing):
                values = {source: logits.float().tolist() for source, logits in compute(batch).items()}
                for row, id in enumerate(batch.ids):
                    name, digest = names[id]
                    logits = {source: [round_significant(value) for value in v[row]] for source, v in values.items()}
                    file.write(_line({"id": id, "image": name, "digest": digest, **logits}))
                    found[digest] = {source: torch.tensor(numbers) for source, numbers in logits.items()}
                file.flush()
                bar.update(len(batch.ids))
    return _by_id(found, samples, digests)


def _by_id(found: Logits, samples: Samples, digests: Sequence[str | None]) -> Logits:
    return {sample.id: found[d] for sample, d in zip(samples, digests, strict=True) if d in found}


def _open_rows(path: Path, head: Mapping[str, Any]) -> Logits:
    """Return the rows under this head, by digest; remove an incomplete last line, and all of it under another head."""
    text = read_bytes(path).decode("utf-8", "replace") if path.exists() else ""
    first, *rows = _lines(text) or [None]
    if first != head:
        write_text(path, _line(head))
        return {}
    complete = [row for row in rows if _is_row(row)]
    if len(complete) < len(rows) or not text.endswith("\n"):
        write_text(path, "".join(map(_line, (head, *complete))))
    return _logits(complete, len(head["labels"]))


def _is_row(row: Any) -> bool:
    """Return False for the incomplete last line of a killed run."""
    return isinstance(row, dict) and isinstance(row.get("digest"), str)


def _logits(rows: Sequence[Any], classes: int) -> Logits:
    found: Logits = {}
    for row in filter(_is_row, rows):
        values = {name: value for name, value in row.items() if _are_logits(value, classes)}
        if values:
            found[row["digest"]] = {name: torch.tensor(v, dtype=torch.float32) for name, v in values.items()}
    return found


def _are_logits(value: Any, classes: int) -> bool:
    return isinstance(value, list) and len(value) == classes and all(type(v) in (int, float) for v in value)


def _line(value: Mapping[str, Any]) -> str:
    return to_json(value, ensure_ascii=True)  # ASCII, as file names may contain Unicode line separators


def _lines(text: str) -> list[Any]:
    return [_parsed(line) for line in text.splitlines()]


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
