"""Find the image files of a folder by their suffixes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from data.images import suffixes

NAMED = 8  # files in a message
LINK = "it is a symbolic link out of the folder, or to a folder; dataset.follow_links=true follows it"


class ImageFiles(NamedTuple):
    """The content of a folder and its subfolders, sorted, without hidden files and folders."""

    images: list[Path]
    links: list[Path]  # symbolic links that are not followed: to files outside, and to folders
    others: list[Path]  # files without the suffix of an image


def find_images(path: Path, *, follow_links: bool = False) -> ImageFiles:
    """Return `path` itself if it is a file, or else `images_in` the folder; raises UserError if there is no image."""
    if path.is_file():
        return ImageFiles([path], [], [])
    if not path.is_dir():
        raise UserError(f"image={path}: there is no such file or folder")
    found = images_in(path, follow_links=follow_links)
    if not found.images:
        links = f"; symbolic links that need dataset.follow_links=true: {len(found.links):,}" if found.links else ""
        raise UserError(f"image={path}: the folder holds no image ({', '.join(sorted(suffixes()))}){links}")
    return found


def id_of(path: Path | str) -> str:
    """Return a path as an id: bytes that are not UTF-8 are escaped (caf\\xe9.jpg), as ids are hashed and written."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def unread(files: list[Path]) -> str:
    """Return a sentence that names the first of the files without the suffix of an image."""
    names, more = ", ".join(file.name for file in files[:NAMED]), len(files) - NAMED
    return (
        f"files that are not read, since their names have no suffix of an image: {len(files):,} ({names}"
        f"{f' and {more:,} more' if more > 0 else ''})"
    )


def images_in(folder: Path, *, root: Path | None = None, follow_links: bool = False) -> ImageFiles:
    """Find the images in a folder and its subfolders.

    A folder from somebody else could show any image of this machine by links, so these are followed only on demand.

    Args:
        root: links to files may lead anywhere in it; default: the folder.
        follow_links: follow all links; a folder that is reached twice counts once.
    """
    found = ImageFiles([], [], [])
    inside = os.path.realpath(root or folder)
    for file in _walk(folder, follow_links=follow_links):
        if not follow_links and file.is_symlink() and (file.is_dir() or not _is_inside(file, inside)):
            found.links.append(file)
        elif file.suffix.lower() not in suffixes():
            found.others.append(file)
        else:
            found.images.append(file)
    return ImageFiles(*map(sorted, found))


def has_images(folder: Path, *, follow_links: bool = False) -> bool:
    """Return whether the folder or a subfolder has an image or a link to one."""
    return any(file.suffix.lower() in suffixes() for file in _walk(folder, follow_links=follow_links))


def _is_inside(file: Path, folder: str) -> bool:
    return Path(os.path.realpath(file)).is_relative_to(folder)


def _walk(folder: Path, *, follow_links: bool) -> Iterator[Path]:
    """Yield the files, links to nothing, and, unless they are followed, links to folders."""
    seen = set()  # links can form a circle
    for place, subfolders, names in os.walk(folder, followlinks=follow_links):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if follow_links:
            real = os.path.realpath(place)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
        else:
            yield from (path for name in subfolders if (path := Path(place, name)).is_symlink())
        candidates = (Path(place, name) for name in names if not name.startswith("."))
        yield from (file for file in candidates if file.is_file() or file.is_symlink())
