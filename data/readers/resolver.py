"""Find the image file for a name in the annotations, also if its file name is spelled differently.

Archives, unzip programs and file systems change file names that are not ASCII: `é` may be one character (NFC) or two
(NFD), an escape (`#U00e9`), its UTF-8 bytes decoded with another encoding (`Ã©`, often lower-cased to `ã©`; `├⌐`), a
`?`, or missing. WikiArt has some 700 such names. Two spellings match if one can result from the other in these ways, or
if they differ in case alone. A backslash may stand for a slash.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import unicodedata
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path, PurePath
from typing import NamedTuple

from common.errors import UserError
from common.reading import expand_user

EXACT, OTHER_SPELLING, MISSING, AMBIGUOUS = "exact", "other spelling", "missing", "ambiguous"
MISREADINGS = ("latin-1", "cp1252", "cp437", "cp850", "mac-roman")  # with which UTF-8 names may have been decoded
VARIABLE = re.compile(r"[^\x00-\x7f]|[?_ ]")  # characters that may be added, lost or replaced
MARKS, MOST_MARKS = "?_\ufffd", 4  # replacements of a character, or of each of its bytes
LONGEST = 2048  # characters of a name: 255 bytes, each in its longest misreading or escape
MOST_ALIKE = 200  # names that differ only in non-ASCII characters; among more, only equal ones match
ESCAPE = re.compile(r"#U([0-9a-fA-F]{4})|#L([0-9a-fA-F]{6})")  # Info-ZIP's unzip in a locale without UTF-8
BYTE_AS_CHARACTER = (
    "emoscribe-byte-as-character"  # error handler: an undefined byte becomes the character of its number
)
codecs.register_error(BYTE_AS_CHARACTER, lambda e: (e.object[e.start : e.end].decode("latin-1"), e.end))


class Found(NamedTuple):
    path: Path  # absolute: of the file, or of the name if there is none
    how: str  # EXACT, OTHER_SPELLING, MISSING or AMBIGUOUS
    candidates: tuple[str, ...] = ()  # the names that match equally well
    refused: str = ""  # why the file must not be opened

    @property
    def reason(self) -> str:
        """Why the image cannot be used."""
        if self.how == AMBIGUOUS:
            return f"its name may stand for any of {', '.join(map(repr, self.candidates))}; rename the right one"
        return self.refused or "there is no such file"


def relative_name(root: Path, name: str) -> PurePath:
    """Return `name` as a path relative to `root`; raise UserError if it is empty, absolute or contains `..`."""
    relative = PurePath(name)
    if not relative.parts or "\0" in name:
        raise UserError(f"image name {name!r} is not the name of a file")
    if relative.anchor or ".." in relative.parts:
        raise UserError(f"image name {name!r} leads out of {root}; names are relative to that folder, without '..'")
    return relative


class ImageFolder:
    """A folder of images, in which each subfolder is listed once; raises UserError if there is no such folder.

    Args:
        follow_links: symbolic links may lead out of the folder.
    """

    def __init__(self, root: Path, *, follow_links: bool = False) -> None:
        self.root, self.follow_links = Path(os.path.realpath(expand_user(root))), follow_links
        if not self.root.is_dir():
            raise UserError(f"there is no folder {root}")
        self._folders: dict[tuple[str, ...], tuple[_Listing, bool]] = {(): (_Listing(self.root), True)}

    def find(self, name: str) -> Found:
        """Find the image `name`, relative to the root.

        Raises:
            UserError: the name is empty or absolute, or leads out of the root through `..` or, unless `follow_links`,
                a symbolic link.
        """
        relative = relative_name(self.root, name)
        listing, exact = self._listing(relative.parts[:-1])
        names = listing.matches(relative.name)
        if not names and "\\" in name:  # written on Windows
            found = self.find(name.replace("\\", "/"))
            return found._replace(how=OTHER_SPELLING) if found.how == EXACT else found
        if not names:
            return Found(self.root / relative, MISSING)
        if len(names) > 1:
            return Found(self.root / relative, AMBIGUOUS, tuple(names))
        path = self._entry(listing, names[0], relative)
        return Found(path, EXACT if exact and names[0] == relative.name else OTHER_SPELLING)

    def _listing(self, parts: tuple[str, ...]) -> tuple[_Listing, bool]:
        """Return the listing of the folder, empty if missing or ambiguous, and whether its spelling is exact."""
        if parts not in self._folders:
            parent, exact = self._listing(parts[:-1])
            names = parent.matches(parts[-1])
            path = self._entry(parent, names[0], PurePath(*parts)) if len(names) == 1 else None
            self._folders[parts] = _Listing(path), exact and names == [parts[-1]]
        return self._folders[parts]

    def _entry(self, listing: _Listing, name: str, relative: PurePath) -> Path:
        """Return the path of an entry; raise UserError for a symbolic link out of the root that is not followed."""
        path, followed = listing.path / name, self.follow_links or name not in listing.links
        if not followed and not Path(os.path.realpath(path)).is_relative_to(self.root):
            raise UserError(
                f"image name {str(relative)!r} is a symbolic link out of {self.root}; put the pictures themselves "
                "there, or set dataset.follow_links=true (--follow-links) if you trust the links"
            )
        return path


class _Listing:
    """The names in one folder; `path` is None for a missing folder."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.names: set[str] = set()
        self.links: set[str] = set()
        with contextlib.suppress(OSError):  # not a folder, or one without permission to list it
            for entry in os.scandir(path) if path is not None else ():
                self.names.add(entry.name)
                if entry.is_symlink():
                    self.links.add(entry.name)

    def matches(self, name: str) -> list[str]:
        """Return the entry `name`, or else all entries that are another spelling of it."""
        if name in self.names:
            return [name]
        if self.path is None or len(name) > LONGEST:
            return []
        # On a case-insensitive file system, or for a new file. Path.exists raises for a name that is too long.
        if os.path.exists(self.path / name):  # noqa: PTH110
            if (self.path / name).is_symlink():
                self.links.add(name)
            return [name]
        if alike := self._by_case.get(_composed(name).casefold()):
            return sorted(alike)
        near = sorted({other for key in _skeletons(name) for other in self._by_skeleton.get(key, ())})
        if len(near) > MOST_ALIKE:
            near = [other for other in near if _composed(other) == _composed(name)]
        return [other for other in near if same_name(name, other)]

    @cached_property
    def _by_case(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for name in self.names:
            index.setdefault(_composed(name).casefold(), []).append(name)
        return index

    @cached_property
    def _by_skeleton(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for name in self.names:
            for key in _skeletons(name):
                index.setdefault(key, []).append(name)
        return index


def same_name(a: str, b: str) -> bool:
    """Return whether one of two file names can result from the other by damage to its non-ASCII characters."""
    if _unescaped(a).isascii() and _unescaped(b).isascii():
        return a == b
    return _results_from(a, b) or _results_from(b, a)


def _results_from(short: str, full: str) -> bool:
    """Return whether `short` is `full` after non-ASCII characters were misread, replaced or dropped."""
    readings = {unicodedata.normalize(form, _unescaped(short)) for form in ("NFC", "NFD")}
    return any(_matches(reading, form) for form in _renderings(_unescaped(full)) for reading in readings)


def _matches(short: str, form: str) -> bool:
    """Return whether `short` is `form` with non-ASCII characters in another case, replaced by marks, or missing.

    A bit mask holds all reachable positions in `short`: a backtracking match would take exponential time for a name of
    many marks.
    """
    places, marks = 1, sum(_bits(short, mark) for mark in MARKS)
    for char in form:
        if char.isascii():
            places = (places & _bits(short, char)) << 1
        else:
            after = places
            for text in {char, char.lower(), char.upper(), " " if char == "\xa0" else char}:
                reached = places
                for letter in text:
                    reached = (reached & _bits(short, letter)) << 1
                after |= reached
            for _ in range(MOST_MARKS):
                places = (places & marks) << 1
                after |= places
            places = after
        if not places:
            return False
    return bool(places >> len(short) & 1)


@lru_cache(maxsize=1 << 12)
def _bits(text: str, char: str) -> int:
    """Return a mask of the positions of `char` in `text`."""
    return sum(1 << place for place, found in enumerate(text) if found == char)


def _renderings(name: str) -> set[str]:
    """Return `name` composed and decomposed, unchanged and with its UTF-8 bytes decoded with other encodings."""
    forms = {unicodedata.normalize(form, text) for text in _readings(name) for form in ("NFC", "NFD")}
    return forms | {_misread(form, encoding) for form in forms for encoding in MISREADINGS}


def _readings(name: str) -> set[str]:
    """Return `name` and what it was if its UTF-8 bytes were misread once or twice."""
    found = {unicodedata.normalize("NFC", name)}
    for _ in range(2):
        found |= {reading for text in found for encoding in MISREADINGS for reading in _decoded(text, encoding)}
    return found


def _decoded(name: str, encoding: str) -> Iterator[str]:
    if UNDECODED.search(name):  # bytes in that encoding
        yield os.fsencode(name).decode(encoding, "replace")
    for text in (name, LOWERED.sub(lambda match: match[0].upper(), name)):
        with contextlib.suppress(UnicodeError):
            yield text.encode(encoding).decode("utf-8")


UNDECODED = re.compile(r"[\udc80-\udcff]")
LOWERED = re.compile(r"[\xe2-\xfe](?=[\x80-\xbf])")  # the first byte of a character, as a lower-cased Latin-1 letter


def _misread(name: str, encoding: str) -> str:
    return name.encode("utf-8", "replace").decode(encoding, BYTE_AS_CHARACTER)


def _skeletons(name: str) -> set[str]:
    """Return `name` without the characters that may change; two spellings of a name have one in common."""
    if name.isascii() and "#" not in name:
        return {VARIABLE.sub("", name)}
    forms = {unicodedata.normalize(form, text) for text in _readings(_unescaped(name)) for form in ("NFC", "NFD")}
    return {VARIABLE.sub("", form) for form in forms}


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", _unescaped(name))


def _unescaped(name: str) -> str:
    def char(match: re.Match[str]) -> str:
        code = int(match[1] or match[2], 16)
        return chr(code) if 0x80 <= code <= 0x10FFFF and not 0xD800 <= code < 0xE000 else match[0]

    return ESCAPE.sub(char, name)
