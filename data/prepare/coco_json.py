"""Read the large JSON files of COCO and VQA, which share a layout: an object of lists of records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError, shorten
from common.progress import progress
from data.readers.annotations import list_of, object_of, read_text

Record = dict[str, Any]


def load_lists(path: Path, compact: Callable[[Record], object] | None = None) -> Record:
    """Return the object in a JSON file.

    Args:
        compact: replaces each object while the file is parsed; millions of dictionaries would take gigabytes.

    Raises:
        UserError: no such file, or not a JSON object.
    """
    try:
        content = json.loads(read_text(path), object_hook=compact)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON that can be read: {shorten(error)}") from None
    return object_of(content, where=str(path))


def entries(content: Record, key: str, path: Path) -> Iterator[tuple[str, Record]]:
    """Yield the place, for messages, and the record of every item of the list under `key`, with a progress bar."""
    records = list_of(content, key, where=str(path))
    with progress(len(records), f"{path.name}: {key}", unit="record") as bar:
        for i, record in enumerate(records):
            where = f"{path}: {key}[{i}]"
            yield where, object_of(record, where=where)
            bar.update()
