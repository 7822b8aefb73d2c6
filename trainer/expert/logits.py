"""Logits of emotions for every picture, computed once and kept as a text file.

FILE.jsonl   first {"labels": […], "of": what computed them}, then {"id", "image", SOURCE: […]} for each picture

It grows batch by batch, so what was computed before an interruption is not computed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.samples import Samples
from data.schema import Batch, Sample
from errors import UserError
from files import write_text, writing
from foreign import read_bytes
from progress import progress
from trainer.reasons import significant

LOGITS = "logits.jsonl"  # of a run
TEACHER = "teacher"  # a source
Key = tuple[str, str]  # id of a picture, name of its file
Logits = dict[Key, dict[str, Tensor]]  # (C,) of each source


def key_of(sample: Sample) -> Key:
    return sample.id, sample.path.name


def read_logits(path: Path, labels: Sequence[str]) -> Logits:
    """What the file holds.

    Raises:
        UserError: no such file, not readable, or of other labels.
    """
    try:
        head, *rows = _lines(read_bytes(path).decode("utf-8", "replace")) or [None]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not isinstance(head, dict) or not isinstance(head.get("labels"), list):
        raise UserError(f"{path} is no file of logits: its first line does not name the labels")
    if head["labels"] != list(labels):
        raise UserError(
            f"{path} was made for the emotions {', '.join(map(str, head['labels']))}; here they are {', '.join(labels)}"
        )
    return dict(_logits(rows, len(labels)))


def complete_logits(
    path: Path,
    samples: Samples,
    compute: Callable[[Batch], Mapping[str, Tensor]],
    *,
    of: str,
    loader: Callable[[Samples], Iterable[Batch]],
    what: str,
) -> Logits:
    """What the file holds of these pictures, once those that it lacks are computed and added.

    Args:
        compute: a batch → (B, C) of each source.
        of: what computes them; a file of something else is begun anew.
        loader: batches of the pictures that are missing.
        what: for the line of progress.

    Pictures that cannot be read have none.
    """
    found = _begun(path, {"labels": list(samples.labels), "of": of})
    missing = samples.pick(row for row, sample in enumerate(samples) if key_of(sample) not in found)
    if len(missing):
        by_id = {sample.id: sample for sample in missing}
        bar = progress(len(missing), what, unit="image")
        with writing(path), path.open("a", encoding="utf-8") as file, bar:
            for batch in loader(missing):
                values = {source: logits.float().cpu() for source, logits in compute(batch).items()}
                for row, id in enumerate(batch.ids):
                    key, logits = key_of(by_id[id]), {source: _rounded(v[row]) for source, v in values.items()}
                    file.write(_line({"id": key[0], "image": key[1], **logits}))
                    found[key] = {source: torch.tensor(numbers) for source, numbers in logits.items()}
                file.flush()
                bar.update(len(batch.ids))
    wanted = {key_of(sample) for sample in samples}
    return {key: values for key, values in found.items() if key in wanted}


def _rounded(logits: Tensor) -> list[float]:
    return [significant(value) for value in logits.tolist()]


def _begun(path: Path, head: Mapping[str, Any]) -> Logits:
    """What the file holds under this head; without a torn line at its end, and new where it has another head."""
    text = read_bytes(path).decode("utf-8", "replace") if path.exists() else ""
    first, *rows = _lines(text) or [None]
    if first != head:
        write_text(path, _line(head))
        return {}
    whole = [row for row in rows if isinstance(row, dict)]
    if len(whole) < len(rows) or not text.endswith("\n"):
        write_text(path, "".join(map(_line, (head, *whole))))
    return dict(_logits(whole, len(head["labels"])))


def _logits(rows: Sequence[Any], classes: int) -> Iterator[tuple[Key, dict[str, Tensor]]]:
    for row in rows:
        if not isinstance(row, dict):
            continue  # the last line of a run that was killed
        values = {name: value for name, value in row.items() if _are_logits(value, classes)}
        if values:
            key = (str(row.get("id")), str(row.get("image")))
            yield key, {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}


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
