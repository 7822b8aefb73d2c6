"""Find the shards that a pattern such as shards/{0000..0099}.tar, a folder, or the name of one file stands for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from glob import glob, has_magic
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.reading import expand_user
from data.image_files import LINK, has_images, id_of
from data.schema import Skipped
from data.shards import ARROW, PARQUET, SUFFIXES, TAR

MOST = 1_000_000  # shards
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
WAY_OUT = {TAR: "braceexpand", PARQUET: "pyarrow", ARROW: "pyarrow"}


class Shard(NamedTuple):
    name: str  # path below the folder of the list, with slashes: begins ids, and names the files of results
    path: Path  # absolute


class Shards(NamedTuple):
    found: list[Shard]
    skipped: list[Skipped]  # missing, named twice, or links out of the folder


def find_shards(pattern: str, *, where: str, follow_links: bool = False) -> Shards | None:
    """Return the shards in the order of the list; None if `pattern` names none, but a file or folder of something else.

    Args:
        where: the key, for messages.
        follow_links: in a folder, links may lead out of it.

    Raises:
        UserError: none of the shards exists, they are compressed, or two of them would have the same results.
    """
    path = expand_user(pattern)
    if str(pattern).lower().endswith(COMPRESSED):
        raise UserError(f"{where}={pattern}: pictures are read at any place of a shard; unpack it to a plain .tar")
    if path.is_dir():
        found = _in_folder(path, follow_links=follow_links)
    elif path.is_file() or not any(suffix in str(path).lower() for suffix in SUFFIXES):
        found = Shards([_shard(path, path.parent)], []) if path.suffix.lower() in SUFFIXES else None
    else:
        found = _listed(str(path), where=where)
    if found is not None:
        _check(found, where=f"{where}={pattern}")
    return found


def _shard(path: Path, root: Path) -> Shard:
    return Shard(id_of(Path(os.path.relpath(path, root)).as_posix()), path.absolute())


def _in_folder(folder: Path, *, follow_links: bool) -> Shards | None:
    """Return the shards of a folder and its subfolders, such as the splits of datasets' save_to_disk."""
    files = sorted(_files(folder, depth=2))
    if not files or has_images(folder, follow_links=follow_links):
        return None
    inside, found = Path(os.path.realpath(folder)), Shards([], [])
    for path in files:
        shard = _shard(path, folder)
        if follow_links or Path(os.path.realpath(path)).is_relative_to(inside):
            found.found.append(shard)
        else:
            found.skipped.append(Skipped(shard.name, path, LINK))
    return found


def _files(folder: Path, *, depth: int) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "cache-")):  # cache-*: left by datasets
                continue
            if entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                yield Path(entry.path)
            elif depth > 1 and entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path), depth=depth - 1)


def _listed(pattern: str, *, where: str) -> Shards:
    """Return the shards of a pattern with braces, `*` or `?`; the part before these is the folder of the list."""
    root = Path(re.split(r"[{*?\[]", pattern, maxsplit=1)[0] + "_").parent
    names = list(islice(_expanded(pattern, where=where), MOST + 1))
    if len(names) > MOST:
        raise UserError(f"{where}={pattern} stands for more than {MOST:,} shards: give it in parts")
    found, seen = Shards([], []), set()
    for path in map(Path, names):
        shard, real = _shard(path, root), os.path.realpath(path)
        if not path.is_file():
            found.skipped.append(Skipped(shard.name, shard.path, "there is no such shard"))
        elif path.suffix.lower() not in SUFFIXES:
            found.skipped.append(Skipped(shard.name, shard.path, f"it is not a shard ({', '.join(SUFFIXES)})"))
        elif real in seen:
            found.skipped.append(Skipped(shard.name, shard.path, "the list names this shard twice; it is read once"))
        else:
            seen.add(real)
            found.found.append(shard)
    return found


def _expanded(pattern: str, *, where: str) -> Iterator[str]:
    if "{" in pattern:
        require_packages(TAR)
        from braceexpand import UnbalancedBracesError, braceexpand
    else:
        yield from sorted(glob(pattern)) if has_magic(pattern) else [pattern]  # noqa: PTH207
        return
    try:
        for name in braceexpand(pattern):
            yield from sorted(glob(name)) if has_magic(name) else [name]  # noqa: PTH207 -- Path.glob wants it relative
    except UnbalancedBracesError:
        raise UserError(f"{where}={pattern}: a brace is not closed, as in {{0000..0099}}.tar") from None


def require_packages(suffix: str) -> None:
    """Raise UserError if the package for shards with this suffix is not installed."""
    from importlib.util import find_spec

    package = WAY_OUT[suffix]
    if find_spec(package) is None:
        raise UserError(f"shards need {package}: pip install -e .[shards], or pip install {package}")


def _check(shards: Shards, *, where: str) -> None:
    if not shards.found:
        first = f": {shards.skipped[0].path} ({shards.skipped[0].reason})" if shards.skipped else ""
        raise UserError(f"{where}: none of its {len(shards.skipped):,} shards can be read{first}")
    if any(shard.path.suffix.lower() != TAR for shard in shards.found):
        require_packages(PARQUET)
    seen: dict[str, str] = {}
    for shard in shards.found:
        if ".." in Path(shard.name).parts:
            raise UserError(
                f"{where}: {shard.path} is not below the folder of the list; write the pattern without '..'"
            )
        other = seen.setdefault(str(Path(shard.name).with_suffix("")), shard.name)
        if other != shard.name:
            raise UserError(f"{where}: {other} and {shard.name} differ in their suffix alone; rename one of them")
