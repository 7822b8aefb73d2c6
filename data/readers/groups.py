"""The group of each image, such as its style: from a column of the annotations, its folder, or WikiArt's file name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from common.config.rules import GROUPS
from common.errors import UserError
from common.reading import expand_user
from data.readers.annotations import load_json
from data.readers.table import column_of, records
from data.shards import name_in

WIKIART = re.compile(r"(?P<artist>[^_]+)_.*?(?:\D(?P<year>1\d{3}|20\d{2})(?:-\d+)?)?")  # artist_title-1873.jpg


def group_of_path(path: Path, by: str) -> str | None:
    """Return the group of an image by one of GROUPS; None if its name is not such a name.

    Args:
        by: folder: the name of its folder; artist, period: as in WikiArt's names, a period of 50 years (1850–1899).
    """
    path = name_in(path)
    if by == "folder":
        return path.parent.name
    found = WIKIART.fullmatch(path.stem)
    if by == "artist" or not found or not found["year"]:
        return found["artist"] if found and by == "artist" else None
    start = int(found["year"]) // 50 * 50
    return f"{start}–{start + 49}"


def read_groups(dataset: Mapping, by: str) -> dict[str, str] | None:
    """Return the column `by` of the test annotations by image id; None if they have none and it is one of GROUPS.

    Raises:
        UserError: no such column.
    """
    path, name = dataset["test_ds"]["json_path"], dataset["name"]
    found: dict[str, str] = {}
    columns: dict[str, None] = {}
    if path is not None and name in ("artemis", "demo"):
        data = load_json(expand_user(path))  # an object of objects, else its reader refuses it
        for id, entry in data.items():
            columns |= dict.fromkeys(entry)
            found |= {id: str(entry[by])} if by in entry else {}
    elif path is not None and name == "table":
        for _, record in records(expand_user(path)):
            columns |= dict.fromkeys(record)
            value, id = record.get(by), str(record.get(column_of("image", record), "")).strip()
            if value not in (None, ""):
                found.setdefault(id, str(value).strip())
    if found or by in GROUPS:
        return found or None
    known = ", ".join((*GROUPS, *columns))
    raise UserError(f"trainer.test.group_by={by}: {path} has no such column; choose one of {known}")
