"""Read the split of each painting from a CSV or JSON file (`--split FILE`)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError
from data.readers.annotations import kind
from data.readers.records import Records, load
from data.readers.table import column_of
from data.split_names import NAMES, one_split_each, split_name

IMAGE_SUFFIX = re.compile(r"\.(jpe?g|png)$", re.IGNORECASE)


class SplitFile:
    """The split of paintings, named as Style/painting or painting, with or without the suffix of an image.

    The file is a CSV or JSON lines with the columns split and painting (and art_style) or image; or a JSON object from
    painting to split, or from split to a list of paintings.

    Raises:
        UserError: not such a file, an unknown name of a split, or a painting in two splits.
    """

    def __init__(self, path: Path) -> None:
        self._splits = one_split_each(_pairs(path), where=str(path))

    def __call__(self, name: str) -> str:
        """Return the split of `Style/painting`, or "" if it is not in the file."""
        return self._splits.get(name) or self._splits.get(name.partition("/")[2], "")


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    content = load(path)
    if isinstance(content, Records):
        for where, record in content.entries:
            if "split" not in record:
                raise UserError(f"{where}: no column 'split'; expected the columns split and painting or image")
            yield _painting(record, where), split_name(record["split"], where=where)
        return
    for key, value in content.items():
        where = f"{path}: {key!r}"
        if isinstance(value, list) and key.lower() in NAMES:
            yield from ((_name(str(painting)), split_name(key, where=where)) for painting in value)
        elif isinstance(value, str):
            yield _name(key), split_name(value, where=where)
        else:
            raise UserError(f"{where} needs the name of a split (or a split, a list of paintings), not {kind(value)}")


def _painting(record: dict[str, object], where: str) -> str:
    painting = record.get("painting") or record.get(column_of("image", record))
    if not isinstance(painting, str) or not painting.strip():
        raise UserError(f"{where}: no painting; expected the columns split and painting or image")
    style = str(record.get("art_style") or "").strip()
    return _name(f"{style}/{painting.strip()}" if style else painting)


def _name(text: str) -> str:
    """Return Style/painting in NFC, or painting, without the suffix of an image."""
    name = unicodedata.normalize("NFC", text.strip()).replace("\\", "/")
    return IMAGE_SUFFIX.sub("", name)
