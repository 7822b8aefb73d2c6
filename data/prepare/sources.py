"""Select the pictures of a folder that `data.prepare images` copies."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from data.image_files import images_in

LINK = "a symbolic link out of the folder, or to a folder, is not followed (--follow-links)"


class Sources(NamedTuple):
    names: list[str]  # relative to the folder
    left_out: dict[str, str]  # reason
    not_annotated: int = 0  # pictures that no annotation names


def select(source: Path, annotations: list[Path], *, follow_links: bool) -> Sources:
    """Return the pictures in `source` that the `annotations` name, or all if there are no such files.

    Raises:
        UserError: there is none.
    """
    found = images_in(source, follow_links=follow_links)
    names = [os.path.relpath(path, source) for path in found.images]
    if annotations:
        wanted, missing = _annotated(source, annotations, follow_links=follow_links)
        return Sources(sorted(wanted), missing, len({*names} - wanted))
    if not names:
        raise UserError(f"{source}: the folder contains no picture")
    return Sources(names, _closed_folders(source) | {os.path.relpath(path, source): LINK for path in found.links})


def annotation_files(folder: Path) -> list[Path]:
    """Return the files of a prepared ArtEmis in a folder that name pictures."""
    return [path for path in sorted(folder.glob("artEmisX_*.json")) if "_annot_" not in path.name]


def _annotated(source: Path, files: list[Path], *, follow_links: bool) -> tuple[set[str], dict[str, str]]:
    """Return the names of the pictures that the files list, and the reasons for those not found."""
    from data.readers.artemis import read_artemis  # imported here: they need numpy, --help does not
    from data.readers.resolver import ImageFolder
    from data.readers.split import locate

    names: set[str] = set()
    missing: dict[str, str] = {}
    folder = ImageFolder(source, follow_links=follow_links)
    for path in files:
        found = locate(read_artemis(path, folder.root, labels=None), folder)
        names |= {os.path.relpath(found.samples.path(i), folder.root) for i in range(len(found.samples))}
        missing |= {os.path.relpath(image.path, folder.root): image.reason for image in found.skipped}
    if not names:
        raise UserError(
            f"{source} has none of the pictures that {files[0]} names, such as {next(iter(missing), 'none')}; give the "
            "folder that holds the folders of the styles, or --no-only-annotated"
        )
    return names, missing


def _closed_folders(source: Path) -> dict[str, str]:
    """Return the folders that cannot be read, with the reason."""
    errors: list[OSError] = []
    deque(os.walk(source, onerror=errors.append), maxlen=0)
    return {os.path.relpath(e.filename, source): f"the folder cannot be read ({e.strerror})" for e in errors}
